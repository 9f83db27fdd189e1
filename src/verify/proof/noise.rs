//! Noise that replaces inputs of nodes, in both networks.

use std::collections::HashSet;

use super::looks::Looks;
use super::networks::Networks;
use crate::graph::{NodeId, ValueId};
use crate::kernels::DOMAIN;
use crate::kernels::proof::NOISE;
use crate::onnx::builder::Builder;
use crate::onnx::{DataType, attr_int};

/// The values that noise replaces, and the nodes that generate it.
pub(super) struct Noise<'a> {
    pub(super) networks: Networks<'a>,
    pub(super) looks: &'a Looks,
}

impl Noise<'_> {
    pub(super) fn name(value: &str) -> String {
        format!("__noise/{value}")
    }

    /// Returns the element type of the noise that replaces a value as an input of a node. `None`: no noise replaces it.
    pub(super) fn of(&self, node: NodeId, value: ValueId) -> Option<DataType> {
        let name = &self.networks.analysis.graph.values[value].name;
        if !self.looks.opened.contains(&node) || !self.looks.flat.contains(name) {
            return None;
        }
        self.networks.float_type(value)
    }

    /// Returns the replaced inputs of a node of the lowered original: slots with the names of noise.
    pub(super) fn opened(
        &self,
        node: NodeId,
        builder: &mut Builder,
        made: &mut HashSet<ValueId>,
    ) -> Vec<(usize, String)> {
        let lowered = self.networks.lowered;
        let origin = lowered.origins[node];
        if !self.looks.opened.contains(&origin) {
            return Vec::new();
        }
        let inputs = &self.networks.analysis.graph.nodes[origin].inputs;
        let mut replaced = Vec::new();
        for (slot, value) in lowered.graph.nodes[node].inputs.iter().enumerate() {
            let Some(value) = value.filter(|value| inputs.contains(&Some(*value))) else { continue };
            let Some(dtype) = self.of(origin, value) else { continue };
            let value_name = &lowered.graph.values[value].name;
            let name = Self::name(value_name);
            if made.insert(value) {
                let seed = vec![attr_int("seed", value as i64)];
                let sizes = self.looks.sizes.get(value_name).map(|(expected, _)| builder.int_vector(expected));
                let inputs = match &sizes {
                    Some(sizes) => vec!["", sizes.as_str()],
                    None => vec![value_name.as_str()],
                };
                builder.push(DOMAIN, &Networks::operator(NOISE, dtype), &inputs, vec![name.clone()], seed);
            }
            replaced.push((slot, name));
        }
        replaced
    }
}
