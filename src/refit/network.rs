//! A network in the form that the refit uses: fused nodes lowered, all sizes known.

use std::collections::HashSet;

use crate::error::Error;
use crate::graph::fact::static_shape;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::{Graph, Node, NodeId, ValueId};
use crate::lower::{Extent, Lowered};
use crate::onnx::builder::inputs_of;
use crate::operator::linear::{Linear, LinearCx};
use crate::operator::part::{Part, PartCx};
use crate::operator::{Folding, Operators};

/// A lowered network at fixed sizes.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) lowered: Lowered,
    /// By node, the first output of the file's node that it comes from.
    pub(super) stems_from: Vec<String>,
    /// By value, whether it depends on an input of the network.
    is_computed: Vec<bool>,
}

impl Network {
    /// Lowers a network. `facts` are those of the model at fixed sizes.
    ///
    /// # Errors
    /// The model contradicts itself.
    pub(super) fn new(model: &Model, graph: &Graph, operators: &Operators, facts: &Facts) -> Result<Self, Error> {
        let lowered = Lowered::new(model, graph, operators, facts, Extent::All)?;
        let mut is_computed = vec![false; lowered.graph.values.len()];
        lowered.graph.inputs.iter().for_each(|input| is_computed[*input] = true);
        for node in &lowered.graph.nodes {
            let is_random = lowered.operators.get(node.id).is_none_or(|op| op.folding() == Folding::Never);
            let mut read = inputs_of(&node.proto).into_iter().filter_map(|name| lowered.graph.value(name));
            if is_random || read.any(|value| is_computed[value]) {
                node.outputs.iter().flatten().for_each(|output| is_computed[*output] = true);
            }
        }
        let output = |origin: &NodeId| graph.nodes[*origin].proto.first_output().to_owned();
        let stems_from = lowered.origins.iter().map(output).collect();
        Ok(Self { lowered, stems_from, is_computed })
    }

    pub(super) fn graph(&self) -> &Graph {
        &self.lowered.graph
    }

    /// Whether a value depends on an input of the network.
    pub(super) fn is_computed(&self, value: ValueId) -> bool {
        self.is_computed[value]
    }

    /// Returns the shape of a value. `None`: a size is not known.
    pub(super) fn shape(&self, value: ValueId) -> Option<Vec<usize>> {
        static_shape(self.lowered.facts.values[value].as_ref()?.shape.as_ref()?)
    }

    pub(super) fn is_float(&self, value: ValueId) -> bool {
        self.lowered.facts.values[value].as_ref().is_some_and(crate::graph::fact::Fact::is_float)
    }

    /// Whether a value is a constant that is stored in the form in which it is read.
    pub(super) fn is_stored(&self, value: ValueId) -> bool {
        self.graph().tensor(&self.lowered.model, value).is_some()
    }

    /// Returns the values that a node reads, including those read by its subgraphs.
    pub(super) fn read_by(&self, node: &Node) -> Vec<ValueId> {
        inputs_of(&node.proto).into_iter().filter_map(|name| self.graph().value(name)).collect()
    }

    /// Returns a node as a linear map with a constant weight. `None`: it is not one.
    pub(super) fn linear(&self, node: &Node) -> Option<Linear> {
        let is_constant = |slot: usize| node.input(slot).is_some_and(|value| !self.is_computed(value));
        let cx = LinearCx { node, facts: &self.lowered.facts, is_constant: &is_constant };
        self.lowered.operators.get(node.id)?.linear(&cx)
    }

    /// Returns a node as a part of a pattern. `None`: it is not one.
    pub(super) fn part(&self, node: &Node) -> Option<Part> {
        let cx = PartCx { node, facts: &self.lowered.facts };
        self.lowered.operators.get(node.id)?.part(&cx)
    }

    /// Returns the only node that reads a value, and the slot. `None`: others read it, or it is a network output.
    pub(super) fn only_reader(&self, value: ValueId) -> Option<(&Node, usize)> {
        let value = &self.graph().values[value];
        match value.consumers.as_slice() {
            [(node, slot)] if !value.is_output && value.captured_by.is_empty() => {
                Some((&self.graph().nodes[*node], *slot))
            }
            _ => None,
        }
    }

    /// Returns all nodes from which values are computed.
    pub(super) fn ancestors(&self, values: &[ValueId]) -> HashSet<usize> {
        let mut open: Vec<usize> =
            values.iter().filter_map(|value| Some(self.graph().values[*value].producer?.0)).collect();
        let mut found = HashSet::new();
        while let Some(node) = open.pop() {
            if found.insert(node) {
                let read = self.read_by(&self.graph().nodes[node]);
                open.extend(read.into_iter().filter_map(|value| Some(self.graph().values[value].producer?.0)));
            }
        }
        found
    }
}
