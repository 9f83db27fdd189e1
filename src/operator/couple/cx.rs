//! The interface of coupling to an operator.

mod broadcast;

use std::collections::BTreeSet;

use super::grid::{Column, Grid, column, tuples};
use super::layout::{Axis, Layout, Piece, SpaceId, fixed_axis};
use super::space::{self, Reason, Shrinks};
use super::{Coupling, WeightUse};
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::graph::facts::Facts;
use crate::graph::{Graph, Node, ValueId};
use crate::onnx::DataType;
use crate::operator::RuleError;

/// The interface of coupling to the rule of an operator.
pub struct CoupleCx<'a> {
    pub(crate) node: &'a Node,
    pub(crate) graph: &'a Graph,
    pub(crate) facts: &'a Facts,
    pub(crate) is_constant: &'a dyn Fn(ValueId) -> bool,
    pub(crate) coupling: &'a mut Coupling,
    /// The inputs whose axes the rule has asked for.
    pub(crate) asked: BTreeSet<usize>,
}

impl CoupleCx<'_> {
    /// Returns the fact of input `slot`; `None` if the node lacks that input or nothing is known of it.
    pub fn fact(&self, slot: usize) -> Option<&Fact> {
        self.facts.values[self.node.input(slot)?].as_ref()
    }

    /// Returns the fact of output `slot`.
    pub fn output_fact(&self, slot: usize) -> Option<&Fact> {
        self.facts.values[self.node.output(slot)?].as_ref()
    }

    /// Returns the shape of output `slot`.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn output_shape(&self, slot: usize) -> Result<Vec<Dim>, RuleError> {
        self.output_fact(slot).and_then(|fact| fact.shape.clone()).ok_or(RuleError::UnknownShape)
    }

    /// Returns the known integers of input `slot`.
    pub fn ints(&self, slot: usize) -> Option<&[Dim]> {
        self.fact(slot)?.known.as_ref().and_then(Known::ints)
    }

    /// Returns the index tuples along the last axis of input `slot`; `None` if they are no grid.
    pub fn tuples(&self, slot: usize) -> Option<Grid> {
        tuples(&self.coupling.grids, self.facts, self.node.input(slot)?)
    }

    /// Returns the integers of input `slot` as one column; `None` if they differ along more than one axis.
    pub fn column(&self, slot: usize) -> Option<Column> {
        column(&self.coupling.grids, self.facts, self.node.input(slot)?)
    }

    /// Whether the node has input `slot`.
    pub fn has(&self, slot: usize) -> bool {
        self.node.input(slot).is_some()
    }

    /// Whether input `slot` is a constant: an initializer, or the output of a Constant node.
    pub fn is_constant(&self, slot: usize) -> bool {
        self.node.input(slot).is_some_and(|value| (self.is_constant)(value))
    }

    /// Whether input `slot` is a weight: computed from constants alone, by any chain of nodes.
    pub fn is_weight(&self, slot: usize) -> bool {
        let Some(value) = self.node.input(slot) else {
            return false;
        };
        let mut open = vec![value];
        let mut seen = BTreeSet::new();
        while let Some(value) = open.pop() {
            if !seen.insert(value) || (self.is_constant)(value) {
                continue;
            }
            match self.graph.values[value].producer {
                None => return false,
                Some((node, _)) => open.extend(self.graph.nodes[node].inputs.iter().flatten()),
            }
        }
        true
    }

    /// Returns the axes of input `slot`. A constant gets spaces of its own for this use.
    ///
    /// Digits of one space may still be adjacent, as a reshape leaves them. Use [`CoupleCx::separated`] unless the
    /// rule can handle that.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`] if the rank is not known or the input is missing.
    pub fn layout(&mut self, slot: usize) -> Result<Layout, RuleError> {
        self.asked.insert(slot);
        let value = self.node.input(slot).ok_or(RuleError::UnknownShape)?;
        if !(self.is_constant)(value) {
            return self.coupling.layouts[value].clone().ok_or(RuleError::UnknownShape);
        }
        let fact = self.facts.values[value].as_ref().ok_or(RuleError::UnknownShape)?;
        // Sizes, indices and text.
        if matches!(fact.dtype, DataType::Int64 | DataType::Int32 | DataType::String) {
            return fact.shape.as_deref().map(Layout::fixed).ok_or(RuleError::UnknownShape);
        }
        self.constant_layout(value, slot)
    }

    /// Returns the axes of input `slot`, which holds indices, with every divided axis split into independent digits. A
    /// constant may shrink like a weight: the meaning of one element does not depend on the others.
    ///
    /// # Errors
    /// As [`CoupleCx::layout`].
    pub fn of_indices(&mut self, slot: usize) -> Result<Layout, RuleError> {
        let layout = self.quantized_layout(slot)?;
        Ok(self.separate(&layout))
    }

    /// Returns the axes of input `slot` if its integers stand for other numbers, as the input of a DequantizeLinear
    /// does: a constant of 32-bit integers, such as a bias, then counts as a weight too. Otherwise the same as
    /// [`CoupleCx::layout`].
    ///
    /// # Errors
    /// As [`CoupleCx::layout`].
    pub fn quantized_layout(&mut self, slot: usize) -> Result<Layout, RuleError> {
        self.asked.insert(slot);
        let value = self.node.input(slot).ok_or(RuleError::UnknownShape)?;
        if (self.is_constant)(value) { self.constant_layout(value, slot) } else { self.layout(slot) }
    }

    /// Returns the axes of a constant at input `slot`: spaces of its own for this use.
    fn constant_layout(&mut self, value: ValueId, slot: usize) -> Result<Layout, RuleError> {
        let fact = self.facts.values[value].as_ref().ok_or(RuleError::UnknownShape)?;
        let shape = fact.shape.as_ref().ok_or(RuleError::UnknownShape)?;
        let is_long = |size: &Dim| size.as_const().is_some_and(|size| size > space::LONGEST_AXIS as i64);
        if let Some(size) = shape.iter().find(|size| is_long(size)) {
            return Err(RuleError::unsupported(format!(
                "an axis of {size} indices is longer than the maximum of {}",
                space::LONGEST_AXIS
            )));
        }
        let (node, spaces) = (self.node.id, &mut self.coupling.spaces);
        let known = self.coupling.uses.iter().rev().take_while(|weight| weight.node == node);
        let mut axes = known.clone().find(|weight| weight.slot == slot).map(|weight| weight.axes.clone());
        if axes.is_none() {
            let sizes = shape.iter().map(|size| size.as_const().and_then(|size| usize::try_from(size).ok()));
            let new: Vec<Option<SpaceId>> =
                sizes.map(|size| size.filter(|size| *size != 1).map(|size| spaces.add(size))).collect();
            if fact.dtype.bit_size().is_some_and(|bits| bits < 8) {
                let text = format!(
                    "the weight has elements of type {}, several of which share a byte",
                    fact.dtype.spec_name()
                );
                let reason = Reason { text, node: self.node.name.clone() };
                new.iter().flatten().for_each(|space| {
                    let whole = spaces.whole(*space);
                    spaces.freeze_axis(&whole, &reason);
                });
            }
            self.coupling.uses.push(WeightUse { value, node, slot, axes: new.clone() });
            axes = Some(new);
        }
        let axes = axes.unwrap_or_default();
        let spaces = &self.coupling.spaces;
        Ok(Layout { axes: axes.iter().map(|space| space.map_or_else(Axis::new, |s| spaces.whole(s))).collect() })
    }

    /// Returns the axes of input `slot` with every divided axis split into independent digits.
    ///
    /// # Errors
    /// As [`CoupleCx::layout`].
    pub fn separated(&mut self, slot: usize) -> Result<Layout, RuleError> {
        let layout = self.layout(slot)?;
        Ok(self.separate(&layout))
    }

    /// Returns a layout with every divided axis split into independent digits.
    pub fn separate(&mut self, layout: &Layout) -> Layout {
        Layout { axes: self.coupling.spaces.separate(&layout.axes, &self.node.name) }
    }

    /// The same as [`CoupleCx::separated`], for an input of `rank` axes. If nothing is known of the input, because a
    /// barrier computes it, its axes never shrink.
    ///
    /// # Errors
    /// As [`CoupleCx::layout`], if the input is missing.
    pub fn separated_of_rank(&mut self, slot: usize, rank: usize) -> Result<Layout, RuleError> {
        match self.separated(slot) {
            Err(RuleError::UnknownShape) if self.has(slot) => {
                let unknown: Vec<Dim> = (0..rank).map(|axis| Dim::symbol(&format!("?{slot}/{axis}"))).collect();
                Ok(Layout::fixed(&unknown))
            }
            known => known,
        }
    }

    /// Returns the axes of input `slot` for an operator that mixes elements along the axes `mixed`. Digits of one
    /// space may be adjacent if the inner ones are mixed: the operator mixes each block on its own, whatever the block
    /// has lost. Otherwise the mixed elements must be the same in every block, and the axes are separated.
    ///
    /// # Errors
    /// As [`CoupleCx::layout`].
    pub fn mixing(&mut self, slot: usize, mixed: &[usize]) -> Result<Layout, RuleError> {
        let layout = self.layout(slot)?;
        let mut begun = BTreeSet::new();
        for (at, axis) in layout.axes.iter().enumerate() {
            for space in axis.iter().filter_map(Piece::space) {
                if mixed.contains(&at) {
                    begun.insert(space);
                } else if begun.contains(&space) {
                    return self.separated(slot);
                }
            }
        }
        Ok(layout)
    }

    /// Sets the axes of output `slot`. Digits that are no longer adjacent become spaces of their own.
    pub fn set(&mut self, slot: usize, mut layout: Layout) {
        let Some(value) = self.node.output(slot) else {
            return;
        };
        if !self.coupling.spaces.is_contiguous(&layout.axes) {
            layout.axes = self.coupling.spaces.separate(&layout.axes, &self.node.name);
        }
        self.coupling.spaces.mark_borders(&layout.axes, &self.node.name);
        self.coupling.layouts[value] = Some(layout);
    }

    /// Gives output `slot` axes that never shrink.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`].
    pub fn set_fixed(&mut self, slot: usize) -> Result<(), RuleError> {
        if self.node.output(slot).is_some() {
            let shape = self.output_shape(slot)?;
            self.set(slot, Layout::fixed(&shape));
        }
        Ok(())
    }

    /// Ties two axes that hold the same indices and returns the axis that stands for both.
    pub fn tie(&mut self, a: &Axis, b: &Axis) -> Axis {
        let reason = self.reason_to_stay(a, b);
        self.coupling.spaces.tie(a, b, &reason)
    }

    /// States why indices are kept if one of two tied axes can shrink and the other can't.
    fn reason_to_stay(&self, a: &Axis, b: &Axis) -> Reason {
        let reason = |text: String| Reason { text, node: self.node.name.clone() };
        if !a.iter().chain(b).any(|piece| matches!(piece, Piece::Fixed(_))) {
            return reason(String::new());
        }
        let mut origins = self.node.inputs.iter().flatten().filter_map(|value| self.coupling.origins[*value]);
        match origins.next() {
            Some(origin) => {
                let kind =
                    if self.graph.is_sparse(origin) { "a sparse initializer" } else { "an input of the network" };
                reason(format!("the channels belong to {}, {kind}", self.graph.values[origin].name))
            }
            None => reason("the node combines the axis with one whose size can't change".to_owned()),
        }
    }

    /// Keeps every index of an axis. `text` is a clause with a subject that tells the user why.
    pub fn keep(&mut self, axis: &Axis, text: &str) {
        let reason = Reason { text: text.to_owned(), node: self.node.name.clone() };
        self.coupling.spaces.freeze_axis(axis, &reason);
    }

    /// Keeps a range of indices of a space.
    pub fn keep_range(&mut self, space: SpaceId, range: std::ops::Range<usize>, text: &str) {
        let reason = Reason { text: text.to_owned(), node: self.node.name.clone() };
        self.coupling.spaces.freeze(space, range, &reason);
    }

    /// Keeps everything that the node takes as input.
    pub fn keep_inputs(&mut self, text: &str) {
        for slot in 0..self.node.inputs.len() {
            if let Ok(layout) = self.layout(slot) {
                for axis in &layout.axes {
                    self.keep(axis, text);
                }
            }
        }
    }

    /// Keeps every input of the node that other nodes compute.
    pub fn keep_known_inputs(&mut self, text: &str) {
        for value in self.node.inputs.iter().flatten() {
            for axis in self.coupling.layouts[*value].clone().unwrap_or_default().axes {
                self.keep(&axis, text);
            }
        }
    }

    /// Declares that only the type of input `slot` matters: its axes are free.
    pub fn ignore(&mut self, slot: usize) {
        self.asked.insert(slot);
    }

    /// Keeps the axes of inputs that the rule has not asked for.
    pub(crate) fn keep_unasked(&mut self) {
        for slot in 0..self.node.inputs.len() {
            let is_constant = self.node.input(slot).is_none_or(|value| (self.is_constant)(value));
            if !is_constant
                && !self.asked.contains(&slot)
                && let Ok(layout) = self.layout(slot)
            {
                layout.axes.iter().for_each(|axis| self.keep(axis, "the node needs every index of this axis"));
            }
        }
    }

    /// Returns the number of indices of a space.
    pub fn size_of(&self, space: SpaceId) -> usize {
        self.coupling.spaces.all()[space].len
    }

    /// Makes a space of `len` free indices.
    ///
    /// # Errors
    /// The axis is longer than [`space::LONGEST_AXIS`].
    pub fn new_space(&mut self, len: usize) -> Result<SpaceId, RuleError> {
        if len > space::LONGEST_AXIS {
            return Err(RuleError::unsupported(format!(
                "an axis of {len} indices is longer than the maximum of {}",
                space::LONGEST_AXIS
            )));
        }
        Ok(self.coupling.spaces.add(len))
    }

    /// Makes an axis of copies of one value. The copies are removed together with the channels that they meet; copies
    /// that meet no channels are kept. The axis never shrinks if its size is unknown or larger than in any network.
    pub fn repeated_axis(&mut self, size: &Dim) -> Axis {
        match space::new_axis_size(size) {
            Some(len) => {
                let space = self.coupling.spaces.add(len);
                let reason =
                    Reason { text: "the axis holds copies of one value".to_owned(), node: self.node.name.clone() };
                self.coupling.spaces.mark_repeated(space, reason);
                self.whole(space)
            }
            None => fixed_axis(size),
        }
    }

    /// Returns the axis that is one whole space.
    pub fn whole(&self, space: SpaceId) -> Axis {
        self.coupling.spaces.whole(space)
    }

    /// Returns one whole space for an axis; `None` for an axis that never shrinks.
    pub fn single(&mut self, axis: &Axis) -> Option<SpaceId> {
        self.coupling.spaces.single(axis, &self.node.name)
    }

    /// Unites two single indices.
    pub fn unite(&mut self, a: SpaceId, a_at: usize, b: SpaceId, b_at: usize) {
        self.coupling.spaces.unite(a, a_at, b, b_at);
    }

    /// Divides a space into digits of the given sizes, outermost first (digits of size one are dropped). `shrinks`
    /// states which may shrink, by position in `sizes`.
    pub fn digits(&mut self, space: SpaceId, sizes: &[usize], shrinks: Shrinks) -> Vec<Axis> {
        let real: Vec<usize> = sizes.iter().copied().filter(|size| *size > 1).collect();
        if real.is_empty() {
            return vec![Axis::new(); sizes.len()];
        }
        let shrinks = shrinks.without_ones(sizes);
        let mut spaces = self.coupling.spaces.digits(space, &real, shrinks, &self.node.name).into_iter();
        sizes
            .iter()
            .map(|size| if *size > 1 { spaces.next().map_or_else(Axis::new, |s| self.whole(s)) } else { Axis::new() })
            .collect()
    }

    /// Returns the outermost digit of a channel axis that a norm divides into `count` groups of consecutive channels.
    ///
    /// Selection removes either equally many channels from every group, or whole groups.
    pub fn norm_groups(&mut self, axis: &Axis, count: usize) -> Axis {
        self.norm_groups_of(axis, count, 1)
    }

    /// The same for a norm whose kernel only accepts groups with a multiple of `multiple` channels.
    pub fn norm_groups_of(&mut self, axis: &Axis, count: usize, multiple: usize) -> Axis {
        let Some(space) = self.single(axis) else {
            return fixed_axis(&Dim::from(count as i64));
        };
        let len = self.coupling.spaces.all()[space].len;
        if count <= 1 || count > len || !len.is_multiple_of(count) {
            return Axis::new();
        }
        self.coupling.spaces.prefer_multiples(space, len / count, multiple);
        let outer = self.coupling.spaces.outer_digit(space, len / count, &self.node.name);
        self.whole(outer)
    }

    /// Requires that every block of `block` consecutive indices of a space loses equally many, whatever the options.
    pub fn equal_blocks(&mut self, space: SpaceId, block: usize) {
        self.coupling.spaces.require_equal_blocks(space, block, &self.node.name);
    }

    /// Marks an axis of a weight as produced: a contraction computes its indices.
    pub fn produces(&mut self, axis: &Axis) {
        for piece in axis {
            if let Piece::Part { space, .. } = piece {
                self.coupling.spaces.mark_produced(*space);
            }
        }
    }

    /// Marks an axis of a weight as consumed: a contraction sums over its indices.
    pub fn consumes(&mut self, axis: &Axis) {
        for piece in axis {
            if let Piece::Part { space, .. } = piece {
                self.coupling.spaces.mark_consumed(*space);
            }
        }
    }
}
