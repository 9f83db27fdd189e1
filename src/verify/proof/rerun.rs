//! Nodes that run again on inputs with perturbations of the size of rounding.

use super::graph::{Construction, Source};
use super::networks::Networks;
use crate::kernels::DOMAIN;
use crate::kernels::proof::{KEPT, ROUNDED};
use crate::onnx::{NodeProto, attr_int};

/// Number of times that a node runs on rounded inputs.
pub(super) const DRAWS: usize = 4;

impl Construction<'_> {
    /// Runs a node again on rounded inputs, if one of its outputs is among the values to be rerun.
    pub(super) fn rounded(
        &mut self,
        node: &NodeProto,
        proto: &NodeProto,
        sources: &[Option<Source>],
        outputs: &[(String, String)],
    ) {
        if !outputs.iter().any(|(name, _)| self.looks.rounded.contains(name)) {
            return;
        }
        let graph = &self.networks.analysis.graph;
        for draw in 0..DRAWS {
            let mut copy = proto.clone();
            for (slot, source) in sources.iter().enumerate() {
                let name = &node.input[slot];
                let value = match source {
                    Some(Source::Kept { .. }) => graph.value(name),
                    // Weights that are cut.
                    Some(Source::Own(_)) => self.networks.unchanged.origins.get(name).and_then(|origin| {
                        let (output, slot) = &origin.reader;
                        graph.nodes[self.networks.original(output)?].input(*slot)
                    }),
                    _ => None,
                };
                if let Some(dtype) = value.and_then(|value| self.networks.float_type(value)) {
                    let op_type = Networks::operator(ROUNDED, dtype);
                    let seed = (draw * 64 + slot) as i64;
                    copy.input[slot] =
                        self.builder.add_in(DOMAIN, &op_type, &[&proto.input[slot]], vec![attr_int("seed", seed)]);
                }
            }
            copy.name = self.builder.fresh(&node.name);
            copy.output = node.output.iter().map(|name| self.local_name(name)).collect();
            self.builder.nodes.push(copy.clone());
            for ((name, own), other) in outputs.iter().zip(copy.output.iter().filter(|name| !name.is_empty())) {
                let dtype = graph.value(name).and_then(|value| self.networks.float_type(value));
                let (Some(dtype), true) = (dtype, self.looks.rounded.contains(name)) else { continue };
                let measured = self.builder.fresh("measured");
                let names = vec![String::new(), measured.clone()];
                self.builder.push(DOMAIN, &Networks::operator(KEPT, dtype), &[own, other], names, vec![]);
                if let Some(watched) = self.watched.iter_mut().find(|watched| watched.value == *name) {
                    watched.rounded.push(measured);
                }
            }
        }
    }
}
