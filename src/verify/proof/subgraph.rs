//! New names for the outer values that the bodies of a node read.

use std::collections::{HashMap, HashSet};

use crate::onnx::{GraphProto, NodeProto};

/// Renames the outer values that the bodies of a node read.
pub(super) fn rename_captured(node: &mut NodeProto, names: &HashMap<String, String>) {
    if names.is_empty() {
        return;
    }
    for attribute in &mut node.attribute {
        attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|graph| rename_in(graph, names));
    }
}

fn rename_in(graph: &mut GraphProto, names: &HashMap<String, String>) {
    let inputs = graph.input.iter().map(|input| &input.name);
    let own: HashSet<String> = inputs
        .chain(graph.initializer.iter().map(|tensor| &tensor.name))
        .chain(graph.node.iter().flat_map(|node| &node.output))
        .cloned()
        .collect();
    let outer: HashMap<String, String> =
        names.iter().filter(|(name, _)| !own.contains(*name)).map(|(a, b)| (a.clone(), b.clone())).collect();
    let rename = |name: &mut String| {
        if let Some(new) = outer.get(name) {
            name.clone_from(new);
        }
    };
    for node in &mut graph.node {
        node.input.iter_mut().for_each(rename);
        rename_captured(node, &outer);
    }
    graph.output.iter_mut().for_each(|output| rename(&mut output.name));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{ValueInfoProto, attr_graph};

    #[test]
    fn only_names_from_outside_are_renamed() {
        let node = |input: &[&str], output: &str| NodeProto {
            op_type: "Add".to_owned(),
            input: input.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        };
        let info = |name: &str| ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() };
        let graph = GraphProto {
            node: vec![node(&["x", "y"], "own"), node(&["own", "x"], "z")],
            output: vec![info("z"), info("x")],
            ..GraphProto::default()
        };
        let mut outer = node(&["c"], "r");
        outer.attribute.push(attr_graph("then_branch", graph));
        let names = [("x", "new"), ("own", "wrong")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        rename_captured(&mut outer, &names.into());
        let graph = outer.attribute[0].g.as_ref().unwrap();
        assert_eq!(graph.node[0].input, ["new", "y"]);
        assert_eq!(graph.node[1].input, ["own", "new"]);
        assert_eq!(graph.output[1].name, "new");
    }
}
