//! Inlining of model-local functions: calls become copies of the function's nodes, until no call is left.
//!
//! Every value and node of a body is named `<call>/<inner>`, so that one function called twice gives distinct values.

mod body;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use self::body::Body;
use crate::error::Error;
use crate::onnx::{FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};

/// Calls within calls; real exports nest a handful, and a deeper chain could exhaust the stack.
const DEEPEST_NESTING: usize = 64;

/// Functions that call others several times grow exponentially; the largest real exports have some ten thousand nodes.
const MOST_NODES: usize = 1_000_000;

/// Domain, name and overload: what a node names to call a function.
type Key = (String, String, String);

fn domain(name: &str) -> &str {
    if name == "ai.onnx" { "" } else { name }
}

fn key_of(node: &NodeProto) -> Key {
    (domain(&node.domain).to_owned(), node.op_type.clone(), node.overload.clone())
}

/// Replaces all calls in the main graph and its subgraphs, and adds the operator sets that the bodies import.
///
/// # Errors
/// A function that calls itself, is defined twice, or is written for other versions of the operators than the model;
/// a call that does not fit.
pub(super) fn inline_functions(proto: &mut ModelProto, path: &Path) -> Result<(), Error> {
    let functions = std::mem::take(&mut proto.functions);
    let mut by_key = HashMap::new();
    for function in &functions {
        let key = (domain(&function.domain).to_owned(), function.name.clone(), function.overload.clone());
        if by_key.insert(key, function).is_some() {
            let text = format!("function {:?} of domain {:?} is defined twice", function.name, function.domain);
            return Err(Error::input(path, text));
        }
    }
    let mut inliner = Inliner {
        path,
        functions: by_key,
        imports: proto.opset_import.iter().map(|import| (domain(&import.domain).to_owned(), import.version)).collect(),
        values: HashSet::new(),
        nodes: HashSet::new(),
        open: Vec::new(),
        count: 0,
    };
    let Some(graph) = proto.graph.as_mut() else { return Ok(()) };
    inliner.take_names(graph);
    graph.node = inliner.expand(std::mem::take(&mut graph.node))?;
    for (domain, version) in inliner.imports {
        let is_known = |import: &OperatorSetIdProto| self::domain(&import.domain) == domain;
        if !proto.opset_import.iter().any(is_known) {
            proto.opset_import.push(OperatorSetIdProto { domain, version });
        }
    }
    Ok(())
}

struct Inliner<'f> {
    path: &'f Path,
    functions: HashMap<Key, &'f FunctionProto>,
    /// Operator sets of the model, extended by those of the bodies.
    imports: BTreeMap<String, i64>,
    /// Names of values that exist anywhere in the model.
    values: HashSet<String>,
    /// Names of nodes that exist anywhere in the model.
    nodes: HashSet<String>,
    /// The functions whose bodies are being expanded, outermost first.
    open: Vec<Key>,
    /// Nodes made so far.
    count: usize,
}

impl Inliner<'_> {
    /// Notes the names of a graph and its subgraphs, so that no new name collides with them.
    fn take_names(&mut self, graph: &GraphProto) {
        self.values.extend(graph.initializer.iter().map(|tensor| tensor.name.clone()));
        self.values.extend(graph.input.iter().chain(&graph.output).map(|value| value.name.clone()));
        for node in &graph.node {
            self.values.extend(node.input.iter().chain(&node.output).cloned());
            self.nodes.insert(node.name.clone());
            node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)).for_each(|inner| {
                self.take_names(inner);
            });
        }
    }

    /// The nodes with all calls replaced, also in their subgraphs.
    fn expand(&mut self, nodes: Vec<NodeProto>) -> Result<Vec<NodeProto>, Error> {
        let mut result = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            for attribute in &mut node.attribute {
                for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    graph.node = self.expand(std::mem::take(&mut graph.node))?;
                }
            }
            let key = key_of(&node);
            match self.functions.get(&key).copied() {
                None => result.push(node),
                Some(function) => {
                    let body = self.call(&node, &key, function);
                    result.extend(body.map_err(|error| match error.node() {
                        // The innermost call that failed is the one to look at.
                        Some(_) => error,
                        None => error.at_node(&node.name, node.op_type.clone()),
                    })?);
                }
            }
        }
        Ok(result)
    }

    /// The nodes that stand for one call.
    fn call(&mut self, node: &NodeProto, key: &Key, function: &FunctionProto) -> Result<Vec<NodeProto>, Error> {
        let name = &function.name;
        if self.open.contains(key) {
            return Err(Error::input(self.path, format!("function {name:?} calls itself")));
        }
        if self.open.len() >= DEEPEST_NESTING {
            return Err(Error::input(self.path, format!("functions are nested deeper than {DEEPEST_NESTING} calls")));
        }
        let (given, formal) = (node.input.len(), function.input.len());
        if given > formal || node.output.len() > function.output.len() {
            let text = format!(
                "expected at most {formal} inputs and {} outputs, which function {name:?} has, found {given} and {}",
                function.output.len(),
                node.output.len()
            );
            return Err(Error::input(self.path, text));
        }
        self.agree_on_operators(function)?;
        let nodes = Body::new(node, function, &mut self.values, &mut self.nodes).instantiate();
        let nodes = nodes.map_err(|message| Error::input(self.path, message))?;
        self.count += nodes.len();
        if self.count > MOST_NODES {
            let text = format!("inlining its functions gives more than {MOST_NODES} nodes");
            return Err(Error::input(self.path, text));
        }
        self.open.push(key.clone());
        let expanded = self.expand(nodes);
        self.open.pop();
        expanded
    }

    /// The operators of a body must mean what they mean in the model; domains that only name functions don't count.
    fn agree_on_operators(&mut self, function: &FunctionProto) -> Result<(), Error> {
        let mut used = BTreeSet::new();
        self.domains_of(&function.node, &mut used);
        for import in &function.opset_import {
            let name = domain(&import.domain);
            if !used.contains(name) {
                continue;
            }
            let version = *self.imports.entry(name.to_owned()).or_insert(import.version);
            if version != import.version {
                let shown = if name.is_empty() { "ai.onnx" } else { name };
                let text = format!(
                    "expected function {:?} to use version {version} of {shown} as the model does, found version {}",
                    function.name, import.version
                );
                return Err(Error::input(self.path, text)
                    .hint("export the model again without functions, or inline them with onnx.inliner"));
            }
        }
        Ok(())
    }

    /// The domains of the operators (not functions) that the nodes use.
    fn domains_of(&self, nodes: &[NodeProto], used: &mut BTreeSet<String>) {
        for node in nodes {
            if !self.functions.contains_key(&key_of(node)) {
                used.insert(domain(&node.domain).to_owned());
            }
            for graph in node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)) {
                self.domains_of(&graph.node, used);
            }
        }
    }
}
