//! Nodes and initializers that are not used after the graph is rewritten.

use std::collections::HashSet;

use crate::error::Error;
use crate::graph::model::Model;
use crate::graph::{Graph, Node};
use crate::onnx::NodeProto;
use crate::onnx::builder::{inputs_of, needed, outputs_of};
use crate::write::{Edits, NodeOut};

/// The nodes of the output, with their inputs and outputs.
#[derive(Debug, Default)]
pub(crate) struct NewNodes {
    nodes: Vec<NodeOut>,
    /// The names that each node takes as input, and those that it outputs.
    names: Vec<(Vec<String>, Vec<String>)>,
    /// Whether the outputs of each node were used in the original.
    was_read: Vec<bool>,
    /// Errors of nodes by position. Such a node may no longer be used.
    faults: Vec<(usize, Error)>,
}

impl NewNodes {
    /// Adds a node. `original` is the node that it replaces, if any.
    pub(crate) fn push(&mut self, node: NodeOut, proto: &NodeProto, graph: &Graph, original: Option<&Node>) {
        let is_read = |value: &usize| {
            let value = &graph.values[*value];
            !value.consumers.is_empty() || !value.captured_by.is_empty()
        };
        let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        self.nodes.push(node);
        self.names.push((owned(inputs_of(proto)), owned(outputs_of(proto))));
        self.was_read.push(original.is_none_or(|node| node.outputs.iter().flatten().any(is_read)));
    }

    /// Records an error of the last node.
    pub(crate) fn faulty(&mut self, fault: Error) {
        self.faults.push((self.nodes.len() - 1, fault));
    }

    /// Adds the nodes to the edits, except those that are no longer used, and removes initializers that are no longer
    /// used. Nodes and initializers that were not used in the original either are kept. Returns the error of the first
    /// kept node that has one.
    pub(crate) fn settle(self, model: &Model, graph: &Graph, edits: &mut Edits) -> Option<Error> {
        fn borrowed(names: &[String]) -> Vec<&str> {
            names.iter().map(String::as_str).collect()
        }
        let nodes = self.names.iter().zip(&self.was_read);
        let nodes = nodes.map(|((reads, gives), was_read)| (borrowed(reads), borrowed(gives), !was_read));
        let (kept, read) = needed(nodes, model.graph().output.iter().map(|output| output.name.as_str()));
        let fault = self.faults.into_iter().find(|(at, _)| kept[*at]).map(|(_, fault)| fault);
        edits.nodes = self.nodes.into_iter().zip(kept).filter(|(_, kept)| *kept).map(|(node, _)| node).collect();
        let is_input: HashSet<&str> = model.graph().input.iter().map(|input| input.name.as_str()).collect();
        edits.initializers.retain(|initializer| {
            let name = initializer.name(model);
            let was_read = graph.value(name).is_none_or(|value| {
                let value = &graph.values[value];
                !value.consumers.is_empty() || !value.captured_by.is_empty()
            });
            // An initializer that is also a graph input is the default value of the input.
            read.contains(name) || !was_read || is_input.contains(name)
        });
        fault
    }
}
