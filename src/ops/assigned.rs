//! Assignment of a block along one axis, as `x[:, 2:5] = y` does: the common part of operators that write at grids of
//! indices.
//!
//! Coupling: along the written axis, the result holds the indices of the data and, where they are written, those of
//! the updates; every other axis is shared. If such axes shrink, the result is written as a Concat, or as a Gather of
//! one.

use crate::graph::dim::Dim;
use crate::onnx::attr_int;
use crate::operator::couple::grid::Positions;
use crate::operator::couple::layout::{Axis, Layout, Piece};
use crate::operator::couple::space::axis_size;
use crate::operator::{CoupleCx, PatchCx, RuleError};

/// The input that is overwritten.
const DATA: usize = 0;
/// The input with the new elements.
const UPDATES: usize = 2;

/// The operators that may replace the node.
pub(super) const REPLACEMENTS: &[&str] = &["Concat", "Gather", "Identity"];

/// Maximum number of runs of neighbouring indices that a Concat joins; more become a Gather.
const RUNS: usize = 4;

/// The block that is written along the one axis that is not overwritten whole.
pub(super) struct Block {
    /// The axis.
    pub(super) axis: usize,
    /// The positions at which the updates are written.
    pub(super) positions: Positions,
}

/// Couples data (input 0), updates (input 2) and output 0. The updates are written at `block`; `None`: everywhere.
///
/// # Errors
/// [`RuleError::UnknownShape`] if a rank is not known.
pub(super) fn couple(cx: &mut CoupleCx<'_>, block: Option<&Block>) -> Result<(), RuleError> {
    let (data, updates) = (cx.separated(DATA)?, cx.separated(UPDATES)?);
    if data.rank() != updates.rank() {
        return Err(RuleError::UnknownShape);
    }
    let mut axes = Vec::new();
    for (at, (old, new)) in data.axes.iter().zip(&updates.axes).enumerate() {
        axes.push(match block.filter(|block| block.axis == at) {
            Some(block) => joined(cx, old, new, &block.positions)?,
            None => cx.tie(old, new),
        });
    }
    cx.set(0, Layout { axes });
    Ok(())
}

/// Returns the axis of the result along which a block is written.
fn joined(cx: &mut CoupleCx<'_>, old: &Axis, new: &Axis, positions: &Positions) -> Result<Axis, RuleError> {
    if old.iter().chain(new).all(|piece| matches!(piece, Piece::Fixed(_))) {
        return Ok(old.clone());
    }
    let taken = axis_size(old).and_then(|len| Some((len, positions.distinct(len)?)));
    let Some((len, taken)) = taken.filter(|(_, taken)| axis_size(new) == Some(taken.len())) else {
        cx.keep(old, "the axis is written at indices that are not known, or that repeat");
        cx.keep(new, "the axis is written at indices that are not known, or that repeat");
        return Ok(old.clone());
    };
    let result = cx.new_space(len)?;
    let (from_data, from_updates) = (cx.single(old), cx.single(new));
    let text = "the index comes from an axis whose size can't change";
    let mut is_taken = vec![false; len];
    for (at, position) in taken.into_iter().enumerate() {
        is_taken[position] = true;
        match from_updates {
            Some(space) => cx.unite(space, at, result, position),
            None => cx.keep_range(result, position..position + 1, text),
        }
    }
    for at in (0..len).filter(|at| !is_taken[*at]) {
        match from_data {
            Some(space) => cx.unite(space, at, result, at),
            None => cx.keep_range(result, at..at + 1, text),
        }
    }
    Ok(cx.whole(result))
}

/// Writes the node in other operators if one of the first `named` axes, to which the indices refer, shrinks.
///
/// # Errors
/// A size along the axis is not known.
pub(super) fn patch(cx: &mut PatchCx<'_>, block: Option<&Block>, named: usize) -> Result<(), RuleError> {
    let shrinks = |axis| cx.output_shrinks(0, axis) || cx.input_shrinks(DATA, axis) || cx.input_shrinks(UPDATES, axis);
    if !(0..named).any(shrinks) {
        return Ok(());
    }
    let Some(Block { axis, positions }) = block else {
        let updates = cx.name_of(UPDATES);
        cx.replace("Identity", &[updates], vec![]);
        return Ok(());
    };
    let axis = *axis;
    let size = |slot: usize| cx.old_size(slot, axis).and_then(|size| usize::try_from(size).ok());
    let (old, new) = (size(DATA).ok_or(RuleError::UnknownShape)?, size(UPDATES).ok_or(RuleError::UnknownShape)?);
    let taken = positions.distinct(old).ok_or(RuleError::UnknownShape)?;
    let all = |kept: Option<Vec<usize>>, size: usize| kept.unwrap_or_else(|| (0..size).collect());
    let (left, written) = (all(cx.kept_input(DATA, axis), old), all(cx.kept_input(UPDATES, axis), new));
    // The position of every kept index of the result in the concatenation of the data and then the updates.
    let mut joined = Vec::new();
    for index in all(cx.kept_output(0, axis), old) {
        let position = match taken.iter().position(|position| *position == index) {
            Some(at) => written.binary_search(&at).ok().map(|at| left.len() + at),
            None => left.binary_search(&index).ok(),
        };
        joined.push(position.ok_or_else(|| RuleError::invalid("the block and the result lose different indices"))?);
    }
    let is_end = |at: usize| {
        let (here, next) = (joined[at], joined.get(at + 1));
        next.is_none_or(|next| *next != here + 1 || *next == left.len())
    };
    let ends: Vec<usize> = (0..joined.len()).filter(|at| is_end(*at)).collect();
    let (data, updates) = (cx.name_of(DATA), cx.name_of(UPDATES));
    if ends.len() > RUNS {
        let both = cx.insert("Concat", &[data, updates], vec![attr_int("axis", axis as i64)]);
        let positions: Vec<i64> = joined.iter().map(|position| *position as i64).collect();
        let positions = cx.constant(&positions);
        let fact = cx.resized(DATA, axis, Dim::from((left.len() + written.len()) as i64));
        cx.replace("Gather", &[(both, fact), positions], vec![attr_int("axis", axis as i64)]);
        return Ok(());
    }
    let mut parts = Vec::new();
    let mut from = 0;
    for end in ends {
        let (first, last) = (joined[from], joined[end]);
        from = end + 1;
        let (source, offset, len, slot) = if first < left.len() {
            (&data, 0, left.len(), DATA)
        } else {
            (&updates, left.len(), written.len(), UPDATES)
        };
        if last - first + 1 == len {
            parts.push(source.clone());
            continue;
        }
        let (start, stop) = ((first - offset) as i64, (last + 1 - offset) as i64);
        let limits = [start, stop, axis as i64].map(|limit| cx.constant(&[limit]));
        let [start, stop, along] = limits;
        let part = cx.insert("Slice", &[source.clone(), start, stop, along], vec![]);
        parts.push((part, cx.resized(slot, axis, Dim::from((last - first + 1) as i64))));
    }
    cx.replace("Concat", &parts, vec![attr_int("axis", axis as i64)]);
    Ok(())
}
