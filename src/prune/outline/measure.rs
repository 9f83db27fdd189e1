//! Measures widths, positions and heads of values, before and after a cut.

use std::collections::BTreeSet;

use super::Change;
use crate::analysis::Analysis;
use crate::graph::sizes::Sizes;
use crate::graph::{NodeId, ValueId};
use crate::operator::couple::kept::Kept;
use crate::operator::couple::layout::{Axis, Layout, Piece, SpaceId};

/// A node that multiplies by a weight.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) node: NodeId,
    /// Number of elements of its output for each channel.
    pub(super) positions: f64,
    /// The sizes of the axes with positions, without the first axis of the value.
    pub(super) sizes: Vec<i64>,
    /// Number of channels of its output.
    pub(super) channels: Change,
}

/// A network and its cut, to be measured.
pub(super) struct Measure<'a> {
    pub(super) analysis: &'a Analysis,
    pub(super) kept: &'a Kept,
    pub(super) sizes: &'a Sizes,
}

impl Measure<'_> {
    fn whole(&self, value: ValueId) -> Option<Vec<i64>> {
        let shape = self.analysis.facts.values[value].as_ref()?.shape.as_ref()?;
        shape.iter().map(|size| size.eval(self.sizes)).collect()
    }

    fn layout(&self, value: ValueId) -> Option<&Layout> {
        self.analysis.coupling.layouts[value].as_ref()
    }

    /// Returns which axes of a value have channels: those with a space among `own`, or if there are none, those with
    /// any space.
    fn channel_axes(layout: &Layout, own: &BTreeSet<SpaceId>) -> Vec<bool> {
        let has = |axis: &Axis, is_it: &dyn Fn(SpaceId) -> bool| axis.iter().filter_map(Piece::space).any(is_it);
        let of_own: Vec<bool> = layout.axes.iter().map(|axis| has(axis, &|space| own.contains(&space))).collect();
        match of_own.contains(&true) {
            true => of_own,
            false => layout.axes.iter().map(|axis| has(axis, &|_| true)).collect(),
        }
    }

    /// Returns the number of elements of a value for each of its channels, and the sizes of the axes without channels.
    fn positions_of(&self, value: ValueId, is_channel: &[bool]) -> Option<(f64, Vec<i64>)> {
        let whole = self.whole(value)?;
        let fixed: Vec<(usize, i64)> = whole
            .into_iter()
            .enumerate()
            .filter(|(axis, _)| !is_channel.get(*axis).copied().unwrap_or(false))
            .collect();
        let positions = fixed.iter().map(|(_, size)| *size as f64).product();
        Some((
            positions,
            fixed.into_iter().filter(|(axis, size)| *axis > 0 && *size > 1).map(|(_, size)| size).collect(),
        ))
    }

    /// Returns the number of elements of a value for each of its channels; `None` if its shape is not known.
    pub(super) fn positions(&self, value: ValueId) -> Option<f64> {
        let is_channel = Self::channel_axes(self.layout(value)?, &BTreeSet::new());
        Some(self.positions_of(value, &is_channel)?.0)
    }

    /// Returns the layer of a node; `None` if it takes no weight as input.
    pub(super) fn layer(&self, at: NodeId) -> Option<Layer> {
        let node = &self.analysis.graph.nodes[at];
        let uses = (0..node.inputs.len()).filter_map(|slot| self.analysis.coupling.weight_use(at, slot));
        let own: BTreeSet<SpaceId> = uses.flat_map(|weight| weight.axes.iter().flatten().copied()).collect();
        if own.is_empty() {
            return None;
        }
        let value = node.output(0)?;
        let layout = self.layout(value)?;
        let is_channel = Self::channel_axes(layout, &own);
        let (positions, sizes) = self.positions_of(value, &is_channel)?;
        let whole = self.whole(value)?;
        let mut channels = (1, 1);
        for (axis, pieces) in layout.axes.iter().enumerate().filter(|(axis, _)| is_channel[*axis]) {
            let after = self.kept.axis_size(pieces).eval(self.sizes).unwrap_or(whole[axis]);
            channels = (channels.0 * count(whole[axis]), channels.1 * count(after));
        }
        Some(Layer { node: at, positions, sizes, channels })
    }

    /// Returns the number of heads and of dimensions per head for a product of activations; `None` if channels are not
    /// divided into heads.
    pub(super) fn heads(&self, at: NodeId) -> Option<(Change, Change)> {
        let node = &self.analysis.graph.nodes[at];
        if (0..node.inputs.len()).any(|slot| self.analysis.coupling.weight_use(at, slot).is_some()) {
            return None;
        }
        let size = |piece: &Piece| self.kept.piece_size(piece).as_const().map_or(0, count);
        let divided = |space: SpaceId, (heads, inner): (usize, usize)| {
            let outer = Piece::Part { space, inner, extent: heads };
            let rest = Piece::Part { space, inner: 1, extent: inner };
            ((heads, size(&outer)), (inner, size(&rest)))
        };
        for layout in node.inputs.iter().flatten().filter_map(|value| self.layout(*value)) {
            let pieces: Vec<&Piece> = layout.axes.iter().flatten().collect();
            for piece in &pieces {
                if let Piece::Part { space, inner, extent } = **piece
                    && inner > 1
                    && pieces.contains(&&Piece::Part { space, inner: 1, extent: inner })
                {
                    return Some(divided(space, (extent, inner)));
                }
            }
            // After selecting one of several projections, the digits are separate spaces.
            let whole = |space: SpaceId| pieces.iter().find(|piece| piece.space() == Some(space));
            for division in self.analysis.coupling.spaces.divisions() {
                let mut digits = division.digits.iter().flatten().filter_map(|space| whole(*space));
                if let (Some(heads), Some(inner)) = (digits.next(), digits.next_back()) {
                    let change = |piece: &Piece| (piece.size().as_const().map_or(0, count), size(piece));
                    return Some((change(heads), change(inner)));
                }
            }
        }
        // A fused node divides its channels internally.
        let own = self.analysis.coupling.spaces.divisions().find(|division| division.node == node.name)?;
        match own.sizes.as_slice() {
            [.., heads, inner] if *heads > 1 => Some(divided(own.space, (*heads, *inner))),
            _ => None,
        }
    }

    /// Returns the node that takes a constant with channels along this axis as input, and the size of the axis.
    pub(super) fn reader(&self, tensor: &str, axis: usize) -> Option<(NodeId, usize)> {
        let value = self.analysis.graph.value(tensor)?;
        let uses = self.analysis.coupling.uses.iter().filter(|weight| weight.value == value);
        uses.filter_map(|weight| {
            let space = weight.axes.get(axis).copied().flatten()?;
            Some((weight.node, self.analysis.coupling.spaces.all()[space].len))
        })
        .next()
    }
}

fn count(size: i64) -> usize {
    usize::try_from(size).unwrap_or(0)
}
