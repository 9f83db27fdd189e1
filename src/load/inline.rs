//! Inlining of model-local functions: the nodes of the function, with unique names, replace every call.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::onnx::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};

/// Maximum depth of nested calls. Real exports nest modules about ten deep.
const DEEPEST_CALL: usize = 100;

/// Maximum depth of nested subgraphs. The protobuf decoders of ONNX stop at 100 nested messages, and a subgraph takes
/// three.
const DEEPEST_SUBGRAPH: usize = 32;

/// Maximum number of nodes that inlining may process. A few functions that call each other twice would grow without
/// bound.
const MOST_NODES: usize = 250_000;

/// Domain, name and overload: a node refers to its function by these.
type Key = (String, String, String);

fn plain_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

fn key_of(domain: &str, name: &str, overload: &str) -> Key {
    (plain_domain(domain).to_owned(), name.to_owned(), overload.to_owned())
}

fn show(function: &FunctionProto) -> String {
    let overload = if function.overload.is_empty() { String::new() } else { format!(":{}", function.overload) };
    format!("function {:?}", format!("{}::{}{overload}", function.domain, function.name))
}

/// Replaces all calls of model-local functions with the functions' nodes, and removes the functions.
///
/// # Errors
/// A function calls itself, a call does not match its function, or a function imports another opset version than the
/// model.
pub(super) fn inline_functions(proto: &mut ModelProto) -> Result<(), String> {
    let functions = std::mem::take(&mut proto.functions);
    let mut by_key: HashMap<Key, &FunctionProto> = HashMap::new();
    for function in &functions {
        if by_key.insert(key_of(&function.domain, &function.name, &function.overload), function).is_some() {
            return Err(format!("{} is defined twice", show(function)));
        }
    }
    let Some(graph) = &mut proto.graph else {
        return Ok(());
    };
    let mut inliner = Inliner {
        functions: by_key,
        values: HashSet::new(),
        nodes: HashSet::new(),
        prefixes: HashSet::new(),
        opsets: &mut proto.opset_import,
        count: 0,
        open: Vec::new(),
    };
    inliner.take_names(graph);
    let nodes = std::mem::take(&mut graph.node);
    graph.node = inliner.expand(nodes, 0)?;
    Ok(())
}

/// A call of a function.
struct Call<'a> {
    function: &'a FunctionProto,
    node: &'a NodeProto,
    prefix: String,
}

impl Call<'_> {
    /// Returns the attribute to which a reference resolves: that of the call, or else the function's default.
    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        let default = || self.function.attribute_proto.iter().find(|attribute| attribute.name == name);
        self.node.attr(name).or_else(default)
    }
}

/// Maps names in a function's body to names in the graph.
type Names = BTreeMap<String, String>;

struct Inliner<'a> {
    functions: HashMap<Key, &'a FunctionProto>,
    values: HashSet<String>,
    nodes: HashSet<String>,
    prefixes: HashSet<String>,
    opsets: &'a mut Vec<OperatorSetIdProto>,
    count: usize,
    /// The functions whose bodies are being expanded, outermost first.
    open: Vec<Key>,
}

/// Returns a name that is not in the set, and adds it: `wanted`, or `wanted` with a number.
fn unique(taken: &mut HashSet<String>, wanted: String) -> String {
    if taken.insert(wanted.clone()) {
        return wanted;
    }
    let mut number = 1usize;
    loop {
        let name = format!("{wanted}_{number}");
        if taken.insert(name.clone()) {
            return name;
        }
        number += 1;
    }
}

impl Inliner<'_> {
    fn take_names(&mut self, graph: &GraphProto) {
        self.values.extend(defined_names(graph).cloned());
        for node in &graph.node {
            self.nodes.insert(node.name.clone());
            for graph in subgraphs(node) {
                self.take_names(graph);
            }
        }
    }

    /// Returns the nodes with all calls replaced, including those in subgraphs.
    fn expand(&mut self, nodes: Vec<NodeProto>, depth: usize) -> Result<Vec<NodeProto>, String> {
        if depth > DEEPEST_SUBGRAPH {
            return Err(format!("subgraphs are nested more than {DEEPEST_SUBGRAPH} levels deep"));
        }
        let mut result = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            self.count += 1;
            if self.count > MOST_NODES {
                return Err(format!("the functions of the model expand to more than {MOST_NODES} nodes"));
            }
            for attribute in &mut node.attribute {
                for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    graph.node = self.expand(std::mem::take(&mut graph.node), depth + 1)?;
                }
            }
            let key = key_of(&node.domain, &node.op_type, &node.overload);
            let Some(function) = self.functions.get(&key).copied() else {
                result.push(node);
                continue;
            };
            if self.open.contains(&key) {
                return Err(format!("{} calls itself, at node {:?}", show(function), node.name));
            }
            if self.open.len() == DEEPEST_CALL {
                return Err(format!(
                    "function calls are nested more than {DEEPEST_CALL} levels deep, at {}",
                    show(function)
                ));
            }
            self.agree_on_opsets(function)?;
            let body = self
                .body(function, &node)
                .map_err(|message| format!("node {:?} calls {}: {message}", node.name, show(function)))?;
            self.open.push(key);
            result.extend(self.expand(body, depth)?);
            self.open.pop();
        }
        Ok(result)
    }

    /// Checks that a function and the model import the same version of every operator set. Adds imports that the model
    /// lacks.
    fn agree_on_opsets(&mut self, function: &FunctionProto) -> Result<(), String> {
        for import in &function.opset_import {
            let known = self.opsets.iter().find(|known| plain_domain(&known.domain) == plain_domain(&import.domain));
            match known {
                None => self.opsets.push(import.clone()),
                Some(known) if known.version != import.version => {
                    let domain = if import.domain.is_empty() { "ai.onnx" } else { &import.domain };
                    return Err(format!(
                        "{} imports opset {} of domain {domain}, but the model imports opset {}",
                        show(function),
                        import.version,
                        known.version
                    ));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Returns the nodes that replace one call.
    fn body(&mut self, function: &FunctionProto, node: &NodeProto) -> Result<Vec<NodeProto>, String> {
        for (what, given, declared) in
            [("inputs", node.input.len(), function.input.len()), ("outputs", node.output.len(), function.output.len())]
        {
            if given > declared {
                return Err(format!("expected at most {declared} {what}, found {given}"));
            }
        }
        let first_output = || node.output.iter().find(|name| !name.is_empty()).cloned().unwrap_or_default();
        let wanted = if node.name.is_empty() { first_output() } else { node.name.clone() };
        let call = Call { function, node, prefix: unique(&mut self.prefixes, wanted) };
        let mut names = Names::new();
        for (at, name) in function.input.iter().enumerate() {
            names.insert(name.clone(), node.input.get(at).cloned().unwrap_or_default());
        }
        let mut passed_on = Vec::new();
        for (name, actual) in function.output.iter().zip(&node.output).filter(|(_, actual)| !actual.is_empty()) {
            // A name that stands for an input or an earlier output already needs an Identity node to get a second name.
            match names.get(name) {
                Some(source) => passed_on.push((source.clone(), actual.clone())),
                None => {
                    names.insert(name.clone(), actual.clone());
                }
            }
        }
        let computed = function.node.iter().flat_map(|node| &node.output).filter(|name| !name.is_empty());
        let mut defined = HashSet::new();
        for name in computed {
            if function.input.contains(name) || !defined.insert(name) {
                return Err(format!("its value {name:?} is defined twice"));
            }
            if !names.contains_key(name) {
                let fresh = self.fresh(&call, name);
                names.insert(name.clone(), fresh);
            }
        }
        for (name, _) in function.output.iter().zip(&node.output).filter(|(_, actual)| !actual.is_empty()) {
            if !function.input.contains(name) && !defined.contains(name) {
                return Err(format!("none of its nodes defines its output {name:?}"));
            }
        }
        let mut result = Vec::with_capacity(function.node.len() + passed_on.len());
        for (at, inner) in function.node.iter().enumerate() {
            result.push(self.node(&call, &names, at, inner)?);
        }
        for (source, actual) in passed_on {
            if source.is_empty() {
                return Err(format!("it returns an input that the call omits as {actual:?}"));
            }
            result.push(NodeProto {
                name: unique(&mut self.nodes, format!("{}/Identity", call.prefix)),
                op_type: "Identity".to_owned(),
                input: vec![source],
                output: vec![actual],
                ..NodeProto::default()
            });
        }
        Ok(result)
    }

    fn fresh(&mut self, call: &Call<'_>, name: &str) -> String {
        unique(&mut self.values, format!("{}/{name}", call.prefix))
    }

    /// Returns a node of the body with the names of the graph and with its attribute references resolved.
    fn node(&mut self, call: &Call<'_>, names: &Names, at: usize, inner: &NodeProto) -> Result<NodeProto, String> {
        let mut node = inner.clone();
        let own = if inner.name.is_empty() { format!("{}_{at}", inner.op_type) } else { inner.name.clone() };
        node.name = unique(&mut self.nodes, format!("{}/{own}", call.prefix));
        for name in node.input.iter_mut().chain(&mut node.output) {
            rename(names, name)?;
        }
        let mut attributes = Vec::with_capacity(inner.attribute.len());
        for mut attribute in std::mem::take(&mut node.attribute) {
            if !attribute.ref_attr_name.is_empty() {
                // An attribute that has no value in the call and no default is absent from the inner node too.
                if let Some(given) = call.attribute(&attribute.ref_attr_name) {
                    attributes.push(AttributeProto { name: attribute.name, ..given.clone() });
                }
                continue;
            }
            for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                self.subgraph(call, names, graph)?;
            }
            attributes.push(attribute);
        }
        node.attribute = attributes;
        Ok(node)
    }

    /// Renames the values that a subgraph of the body defines, and those that it uses from the body.
    fn subgraph(&mut self, call: &Call<'_>, outer: &Names, graph: &mut GraphProto) -> Result<(), String> {
        let mut names = outer.clone();
        let mut own = HashSet::new();
        for name in defined_names(graph).filter(|name| !name.is_empty()) {
            // Subgraphs of old models may list an initializer as an input too. It is one value and gets one name.
            if own.insert(name.clone()) {
                let fresh = self.fresh(call, name);
                names.insert(name.clone(), fresh);
            }
        }
        for at in 0..graph.node.len() {
            graph.node[at] = self.node(call, &names, at, &graph.node[at])?;
        }
        let sparse = graph.sparse_initializer.iter_mut().filter_map(|sparse| sparse.values.as_mut());
        for tensor in graph.initializer.iter_mut().chain(sparse) {
            rename(&names, &mut tensor.name)?;
        }
        for info in graph.input.iter_mut().chain(&mut graph.output) {
            rename(&names, &mut info.name)?;
        }
        for name in graph.value_info.iter_mut().map(|info| &mut info.name) {
            if let Some(new) = names.get(name) {
                name.clone_from(new);
            }
        }
        for name in graph.quantization_annotation.iter_mut().map(|annotation| &mut annotation.tensor_name) {
            if let Some(new) = names.get(name) {
                name.clone_from(new);
            }
        }
        Ok(())
    }
}

fn rename(names: &Names, name: &mut String) -> Result<(), String> {
    if name.is_empty() {
        return Ok(());
    }
    let new = names
        .get(name)
        .ok_or_else(|| format!("it uses the value {name:?}, which neither its inputs nor its nodes define"))?;
    name.clone_from(new);
    Ok(())
}

fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
}

/// Returns the names that a graph itself defines, without those of its subgraphs.
fn defined_names(graph: &GraphProto) -> impl Iterator<Item = &String> {
    let sparse = graph.sparse_initializer.iter().filter_map(|sparse| sparse.values.as_ref());
    let tensors = graph.initializer.iter().chain(sparse).map(|tensor| &tensor.name);
    let inputs = graph.input.iter().map(|input| &input.name);
    tensors.chain(inputs).chain(graph.node.iter().flat_map(|node| &node.output))
}

#[cfg(test)]
mod tests;
