//! The order in which nodes can run, and the outer values that their subgraphs use.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::onnx::{GraphProto, NodeProto};

/// Returns the names of outer values that the subgraphs of a node (If, Loop, Scan) use.
pub(crate) fn captured(node: &NodeProto) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for graph in node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)) {
        let inner: HashSet<&str> = defined(graph).collect();
        let read = graph.node.iter().flat_map(|node| node.input.iter().map(String::as_str).chain(captured(node)));
        let read = read.chain(graph.output.iter().map(|output| output.name.as_str()));
        names.extend(read.filter(|name| !name.is_empty() && !inner.contains(name)));
    }
    names
}

/// Returns the names that a graph itself defines: inputs, constants, outputs of its nodes.
fn defined(graph: &GraphProto) -> impl Iterator<Item = &str> {
    let sparse = graph.sparse_initializer.iter().filter_map(|sparse| sparse.values.as_ref());
    let constants = graph.initializer.iter().chain(sparse).map(|tensor| tensor.name.as_str());
    let inputs = graph.input.iter().map(|input| input.name.as_str());
    let outputs = graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str));
    constants.chain(inputs).chain(outputs)
}

/// Returns the positions of the nodes in a topological order that is as close to the file's order as possible.
///
/// # Errors
/// The position of a node on a cycle.
pub(crate) fn topological_order(graph: &GraphProto) -> Result<Vec<usize>, usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut producer: HashMap<&str, usize> = HashMap::new();
    for (i, node) in graph.node.iter().enumerate() {
        producer.extend(node.output.iter().filter(|name| !name.is_empty()).map(|name| (name.as_str(), i)));
    }
    let reads: Vec<Vec<usize>> = graph
        .node
        .iter()
        .map(|node| {
            let names = node.input.iter().map(String::as_str).chain(captured(node));
            names.filter_map(|name| producer.get(name).copied()).collect()
        })
        .collect();
    let mut marks = vec![Mark::New; graph.node.len()];
    let mut order = Vec::with_capacity(graph.node.len());
    // Depth-first search with an explicit stack, because deep graphs could overflow the stack of the thread.
    for root in 0..graph.node.len() {
        let mut stack = vec![(root, 0)];
        while let Some((at, next)) = stack.pop() {
            if next == 0 {
                if marks[at] == Mark::Done {
                    continue;
                }
                marks[at] = Mark::Open;
            }
            if let Some(&before) = reads[at].get(next) {
                stack.push((at, next + 1));
                match marks[before] {
                    Mark::New => stack.push((before, 0)),
                    Mark::Open => return Err(before),
                    Mark::Done => {}
                }
            } else {
                marks[at] = Mark::Done;
                order.push(at);
            }
        }
    }
    Ok(order)
}
