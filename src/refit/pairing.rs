//! The pairs of values of the pruned network and the original's values of which they are the kept part.

use std::collections::HashMap;

use super::RefitCut;
use super::network::Network;
use crate::graph::{Node, NodeId, Reader, ValueId};
use crate::operator::linear::LinearAxis;

/// The kept indices of every axis. `None`: the axis is kept whole.
pub(super) type KeptIndices = Vec<Option<Vec<usize>>>;

/// The pairs of values of the pruned network and the original's values of which they are the kept part.
pub(super) struct Pairing<'a> {
    cut: RefitCut<'a>,
    pub(super) original: &'a Network,
    pub(super) pruned: &'a Network,
    /// Outputs of layers inside fused nodes, by their ids in the pruned network.
    inside: HashMap<ValueId, (ValueId, KeptIndices)>,
}

impl<'a> Pairing<'a> {
    /// Pairs the outputs of layers inside fused nodes.
    pub(super) fn new(cut: RefitCut<'a>, original: &'a Network, pruned: &'a Network) -> Self {
        let mut pairing = Self { cut, original, pruned, inside: HashMap::new() };
        let mut inside = HashMap::new();
        for node in &pruned.graph().nodes {
            let Some(output) = node.output(0).filter(|output| pairing.kept(*output).is_none()) else { continue };
            if pruned.linear(node).is_some()
                && let Some(found) = pairing.kept_inside(node, output)
            {
                inside.insert(output, found);
            }
        }
        pairing.inside = inside;
        pairing
    }

    /// As [`Pairing::kept`], for the output of a layer inside a fused node. The layer is paired with the original's node at
    /// the same position, and its output keeps the indices that its weight keeps.
    fn kept_inside(&self, node: &Node, output: ValueId) -> Option<(ValueId, KeptIndices)> {
        let fused = &self.pruned.stems_from[node.id];
        let of_same = |network: &Network| -> Vec<NodeId> {
            (0..network.stems_from.len()).filter(|at| network.stems_from[*at] == *fused).collect()
        };
        let (before, after) = (of_same(self.original), of_same(self.pruned));
        let place = after.iter().position(|at| *at == node.id).filter(|_| before.len() == after.len())?;
        let original = &self.original.lowered;
        let same = &original.graph.nodes[before[place]];
        if same.op() != node.op() {
            return None;
        }
        let linear = self.original.linear(same)?;
        let read = original.origin_uses().get(&Reader { node: same.id, slot: linear.weight }).copied()?;
        let slices = self.cut.rewritten.slices.kept(read.node, read.slot);
        let of_axis = |axis: &LinearAxis| {
            let at = linear.weight_axes.iter().position(|own| own == axis)?;
            slices?.get(&at).cloned()
        };
        let kept: KeptIndices = linear.output_axes.iter().map(of_axis).collect();
        let value = same.output(0)?;
        self.fits(value, output, &kept).then_some((value, kept))
    }

    /// Whether a value of the pruned network has the sizes of the kept part of one of the original.
    fn fits(&self, original: ValueId, value: ValueId, kept: &KeptIndices) -> bool {
        let (Some(before), Some(after)) = (self.original.shape(original), self.pruned.shape(value)) else {
            return false;
        };
        let fits = |((kept, before), after): ((&Option<Vec<usize>>, &usize), &usize)| {
            kept.as_ref().map_or(*before, Vec::len) == *after
        };
        let is_known = kept.len() == before.len() && before.len() == after.len();
        is_known && kept.iter().zip(&before).zip(&after).all(fits)
    }

    /// Returns the original's counterpart of a value, and its kept indices of every axis. `None`: it is not known.
    pub(super) fn kept(&self, value: ValueId) -> Option<(ValueId, KeptIndices)> {
        if let Some(found) = self.inside.get(&value) {
            return Some(found.clone());
        }
        let name = &self.pruned.graph().values[value].name;
        let of_original = self.cut.analysis.graph.value(name)?;
        let original = self.original.graph().value(name)?;
        if !self.original.is_float(original) || !self.pruned.is_float(value) {
            return None;
        }
        let layout = self.cut.analysis.coupling.layouts[of_original].as_ref();
        let kept = match layout {
            Some(layout) => layout.axes.iter().map(|axis| self.cut.rewritten.kept.axis_indices(axis)).collect(),
            None => vec![None; self.original.shape(original)?.len()],
        };
        self.fits(original, value, &kept).then_some((original, kept))
    }

    /// Returns, by value of the pruned network, whether it differs from the kept part of the original's.
    pub(super) fn changed_values(&self) -> Vec<bool> {
        let original = &self.original.lowered.model.graph().initializer;
        let dims: HashMap<&str, &[i64]> =
            original.iter().map(|tensor| (tensor.name.as_str(), tensor.dims.as_slice())).collect();
        let graph = self.pruned.graph();
        let mut changed = vec![false; graph.values.len()];
        for tensor in &self.pruned.lowered.model.graph().initializer {
            if let Some(value) = graph.value(&tensor.name) {
                changed[value] = dims.get(tensor.name.as_str()).is_none_or(|dims| *dims != tensor.dims.as_slice());
            }
        }
        for node in &graph.nodes {
            let is_new = |value: &ValueId| self.original.graph().value(&graph.values[*value].name).is_none();
            if node.inputs.is_empty() && node.outputs.iter().flatten().any(is_new) {
                node.outputs.iter().flatten().for_each(|output| changed[*output] = true);
            }
            if self.pruned.read_by(node).into_iter().any(|value| changed[value]) {
                node.outputs.iter().flatten().for_each(|output| changed[*output] = true);
            }
        }
        changed
    }
}
