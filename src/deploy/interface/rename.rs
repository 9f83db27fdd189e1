//! Renaming of values, everywhere in a graph and in the bodies of its nodes.

use std::collections::HashMap;

use crate::onnx::GraphProto;

/// Renames values, all at once, so that two values can exchange their names.
pub(super) fn rename(graph: &mut GraphProto, names: &HashMap<String, String>) {
    let change = |name: &mut String| {
        if let Some(new) = names.get(name) {
            name.clone_from(new);
        }
    };
    for value in graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info) {
        change(&mut value.name);
    }
    graph.initializer.iter_mut().for_each(|tensor| change(&mut tensor.name));
    for tensor in graph.sparse_initializer.iter_mut().filter_map(|sparse| sparse.values.as_mut()) {
        change(&mut tensor.name);
    }
    graph.quantization_annotation.iter_mut().for_each(|annotation| change(&mut annotation.tensor_name));
    for node in &mut graph.node {
        node.input.iter_mut().chain(&mut node.output).for_each(change);
        for attribute in &mut node.attribute {
            attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|body| rename(body, names));
        }
    }
}

/// Renames a value at the nodes that read it, in bodies too. The node that computes it keeps the old name.
pub(super) fn rename_reads(graph: &mut GraphProto, from: &str, to: &str) {
    for node in &mut graph.node {
        for input in node.input.iter_mut().filter(|input| *input == from) {
            to.clone_into(input);
        }
        for attribute in &mut node.attribute {
            attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|body| rename_reads(body, from, to));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{NodeProto, ValueInfoProto, attr_graph};

    fn node(inputs: &[&str], output: &str) -> NodeProto {
        NodeProto {
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        }
    }

    #[test]
    fn two_values_exchange_names_in_bodies_too() {
        let body = GraphProto { node: vec![node(&["x"], "z")], ..GraphProto::default() };
        let outer = NodeProto { attribute: vec![attr_graph("then_branch", body)], ..node(&["x", "y"], "o") };
        let input = ["x", "y"].map(|name| ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() });
        let mut graph = GraphProto { node: vec![outer], input: input.to_vec(), ..GraphProto::default() };
        let names = HashMap::from([("x".to_owned(), "y".to_owned()), ("y".to_owned(), "x".to_owned())]);
        rename(&mut graph, &names);
        assert_eq!(graph.input.iter().map(|value| value.name.as_str()).collect::<Vec<_>>(), ["y", "x"]);
        assert_eq!(graph.node[0].input, ["y", "x"]);
        assert_eq!(
            graph.node[0].attribute[0].g.as_ref().map(|body| body.node[0].input.clone()),
            Some(vec!["y".to_owned()])
        );
        rename_reads(&mut graph, "y", "w");
        assert_eq!(graph.node[0].input, ["w", "x"]);
        assert_eq!(graph.input[0].name, "y");
    }
}
