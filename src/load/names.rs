//! Checks of names: every value is defined once, every used value is defined, and there are no cycles.

use std::collections::{HashMap, HashSet};

use crate::onnx::order::topological_order;
use crate::onnx::{GraphProto, NodeProto};

/// A message, and the node to which it applies.
pub(super) type Fault<'a> = (String, Option<&'a NodeProto>);

/// The names that are visible in a graph: its own and those of the enclosing graphs.
struct Scope<'a> {
    /// The definition of each name of this graph.
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

/// Returns the description of a node for messages.
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
        // An initializer that is also listed as an input is the default value of that input.
        own.entry(&input.name).or_insert(Definition::Input);
    }
    for node in &graph.node {
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            if let Some(other) = own.insert(output, Definition::Node(node)) {
                let other = other.describe();
                return Err((
                    format!("value {output:?} is defined twice; the first definition is {other}"),
                    Some(node),
                ));
            }
        }
    }
    let scope = Scope { own, outer };
    for node in &graph.node {
        if let Some(name) = node.input.iter().find(|name| !name.is_empty() && !scope.contains(name)) {
            return Err((format!("it uses the value {name:?}, which is not defined"), Some(node)));
        }
        for inner in node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)) {
            check_graph(inner, Some(&scope))?;
        }
    }
    if let Some(output) = graph.output.iter().find(|output| !scope.contains(&output.name)) {
        return Err((format!("the graph output {:?} is not defined", output.name), None));
    }
    topological_order(graph)
        .map_err(|at| ("the graph has a cycle through this node".to_owned(), graph.node.get(at)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::onnx::{AttributeProto, TensorProto, ValueInfoProto};

    fn node(name: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        NodeProto {
            name: name.to_owned(),
            op_type: "Add".to_owned(),
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: outputs.iter().map(|name| (*name).to_owned()).collect(),
            ..NodeProto::default()
        }
    }

    fn value(name: &str) -> ValueInfoProto {
        ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() }
    }

    fn tensor(name: &str) -> TensorProto {
        TensorProto { name: name.to_owned(), ..TensorProto::default() }
    }

    fn graph(nodes: Vec<NodeProto>) -> GraphProto {
        GraphProto { node: nodes, input: vec![value("x")], output: vec![value("y")], ..GraphProto::default() }
    }

    /// Returns the message, and the name of the node to which it applies.
    fn fault(graph: &GraphProto) -> (String, String) {
        let (message, node) = check_names(graph).unwrap_err();
        (message, node.map(|node| node.name.clone()).unwrap_or_default())
    }

    fn with_branch(mut node: NodeProto, branch: GraphProto) -> NodeProto {
        node.attribute.push(AttributeProto { g: Some(branch), ..AttributeProto::default() });
        node
    }

    #[test]
    fn nodes_may_be_in_any_order_and_inputs_may_have_defaults() {
        let mut good = graph(vec![node("b", &["t", "w"], &["y"]), node("a", &["x", ""], &["t", ""])]);
        good.initializer.push(tensor("w"));
        good.input.push(value("w"));
        assert!(check_names(&good).is_ok());
    }

    #[test]
    fn names_that_are_undefined_or_defined_twice_are_errors() {
        let (message, at) = fault(&graph(vec![node("a", &["x"], &["y"]), node("b", &["x"], &["y"])]));
        assert!(message.contains("\"y\" is defined twice") && message.contains("\"a\" (Add)"), "{message}");
        assert_eq!(at, "b");
        let (message, at) = fault(&graph(vec![node("a", &["x", "gone"], &["y"])]));
        assert!(message.contains("\"gone\", which is not defined") && at == "a", "{message}");
        let mut clash = graph(vec![node("a", &["x"], &["y"])]);
        clash.initializer.push(tensor("y"));
        assert!(fault(&clash).0.contains("is an initializer"));
        clash.initializer.push(tensor("y"));
        assert!(fault(&clash).0.contains("two initializers"));
        let mut inputs = graph(vec![node("a", &["x"], &["y"])]);
        inputs.input.push(value("x"));
        assert!(fault(&inputs).0.contains("two graph inputs"));
        assert!(fault(&graph(vec![node("a", &["x"], &["z"])])).0.contains("graph output \"y\""));
    }

    #[test]
    fn a_cycle_is_an_error_at_one_of_its_nodes() {
        let nodes = vec![node("in", &["x"], &["s"]), node("a", &["s", "u"], &["t"]), node("b", &["t"], &["u", "y"])];
        let (message, at) = fault(&graph(nodes));
        assert!(message.contains("cycle") && (at == "a" || at == "b"), "{message} at {at}");
        // A node whose subgraph uses the node's output is a cycle too.
        let branch = GraphProto { output: vec![value("y")], ..GraphProto::default() };
        assert!(fault(&graph(vec![with_branch(node("if", &["x"], &["y"]), branch)])).0.contains("cycle"));
    }

    #[test]
    fn subgraphs_can_use_values_of_the_enclosing_graph() {
        let inner =
            GraphProto { node: vec![node("n", &["t"], &["o"])], output: vec![value("o")], ..GraphProto::default() };
        let nodes = |inner: GraphProto| vec![with_branch(node("if", &["x"], &["y"]), inner), node("a", &["x"], &["t"])];
        assert!(check_names(&graph(nodes(inner.clone()))).is_ok());
        let lost = GraphProto { node: vec![node("n", &["q"], &["o"])], ..inner };
        assert_eq!(fault(&graph(nodes(lost))).1, "n");
    }
}
