//! Checks of names: every value is defined once, everything that is read is defined, and nothing waits for itself.

use std::collections::{HashMap, HashSet};

use super::order::topological_order;
use crate::onnx::{GraphProto, NodeProto};

/// What is wrong, and the node at which it shows.
pub(super) type Fault<'a> = (String, Option<&'a NodeProto>);

/// The names that are visible in a graph: its own and those of the graphs around it.
struct Scope<'a> {
    /// What defines each name.
    own: HashMap<&'a str, Definition<'a>>,
    outer: Option<&'a Scope<'a>>,
}

#[derive(Clone, Copy)]
enum Definition<'a> {
    Input,
    Initializer,
    Node(&'a NodeProto),
}

impl Definition<'_> {
    fn describe(self) -> String {
        match self {
            Definition::Input => "a graph input".to_owned(),
            Definition::Initializer => "an initializer".to_owned(),
            Definition::Node(node) => describe(node),
        }
    }
}

/// A node as messages show it.
pub(super) fn describe(node: &NodeProto) -> String {
    if node.name.is_empty() {
        let output = node.output.first().map_or("nothing", String::as_str);
        return format!("{} producing {output:?}", node.op_type);
    }
    format!("{:?} ({})", node.name, node.op_type)
}

impl Scope<'_> {
    fn contains(&self, name: &str) -> bool {
        self.own.contains_key(name) || self.outer.is_some_and(|outer| outer.contains(name))
    }
}

/// Checks a graph and its subgraphs.
pub(super) fn check_names(graph: &GraphProto) -> Result<(), Fault<'_>> {
    check_graph(graph, None)
}

fn check_graph<'g>(graph: &'g GraphProto, outer: Option<&Scope<'_>>) -> Result<(), Fault<'g>> {
    let mut own: HashMap<&str, Definition<'_>> = HashMap::new();
    let sparse = graph.sparse_initializer.iter().filter_map(|sparse| sparse.values.as_ref());
    for tensor in graph.initializer.iter().chain(sparse) {
        if own.insert(&tensor.name, Definition::Initializer).is_some() {
            return Err((format!("two initializers are named {:?}", tensor.name), None));
        }
    }
    let mut inputs = HashSet::new();
    for input in &graph.input {
        if !inputs.insert(&input.name) {
            return Err((format!("two graph inputs are named {:?}", input.name), None));
        }
        // An initializer that is listed as input too is the default of that input.
        own.entry(&input.name).or_insert(Definition::Input);
    }
    for node in &graph.node {
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            if let Some(other) = own.insert(output, Definition::Node(node)) {
                let other = other.describe();
                return Err((format!("value {output:?} is defined a second time, after {other}"), Some(node)));
            }
        }
    }
    let scope = Scope { own, outer };
    for node in &graph.node {
        if let Some(name) = node.input.iter().find(|name| !name.is_empty() && !scope.contains(name)) {
            return Err((format!("reads value {name:?}, which nothing defines"), Some(node)));
        }
        for inner in node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)) {
            check_graph(inner, Some(&scope))?;
        }
    }
    if let Some(output) = graph.output.iter().find(|output| !scope.contains(&output.name)) {
        return Err((format!("nothing defines graph output {:?}", output.name), None));
    }
    topological_order(graph).map_err(|at| {
        ("the graph has a cycle through this node".to_owned(), graph.node.get(at))
    })?;
    Ok(())
}
