//! # Split
//! Divides a tensor along `axis`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Split.html>. All opsets (`split` is an input from 13, `num_outputs`
//! from 18).
//!
//! Coupling: every output is a span of the input.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::couple::space::axis_size;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::patch::PatchCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, axis_index, onnx};

fn types_split() -> &'static [OpType] {
    const { &[onnx("Split")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_split, &Split)];

struct Split;

/// The sizes of the outputs along the axis of size `size`.
fn sizes(node: &Node, given: Option<Vec<Dim>>, size: &Dim) -> Option<Vec<Dim>> {
    if let Some(sizes) = node.proto.ints("split") {
        return Some(sizes.iter().copied().map(Dim::from).collect());
    }
    // A patched node has sizes even where the original has none.
    if given.is_some() || node.input(1).is_some() {
        return given;
    }
    let count = node.proto.int("num_outputs").unwrap_or(node.outputs.len() as i64).max(1);
    let each = size.ceil_div(&Dim::from(count))?;
    let mut sizes = vec![each.clone(); usize::try_from(count).ok()?.min(4096)];
    if size.as_const().is_some() {
        // The last one is smaller where it does not come out even.
        let others = &each * &Dim::from(count - 1);
        *sizes.last_mut()? = size - &others;
    }
    Some(sizes)
}

/// The parts must make up the whole, or channels would be coupled that do not exist.
fn check_sizes(sizes: &[Dim], outputs: usize, whole: &Dim) -> Result<(), RuleError> {
    if sizes.len() < outputs {
        return Err(RuleError::invalid(format!("expected sizes for {outputs} outputs, found {}", sizes.len())));
    }
    let known: Vec<i64> = sizes.iter().filter_map(Dim::as_const).collect();
    if let Some(size) = known.iter().find(|size| **size < 0) {
        return Err(RuleError::invalid(format!("the size {size} of an output is negative")));
    }
    let sum = known.iter().fold(0i64, |sum, size| sum.saturating_add(*size));
    let is_wrong = |whole| sum > whole || (known.len() == sizes.len() && sum != whole);
    if whole.as_const().is_some_and(is_wrong) || sum > i64::from(u32::MAX) {
        return Err(RuleError::invalid(format!("outputs of sizes {known:?} do not make up an axis of size {whole}")));
    }
    Ok(())
}

impl NodeRules for Split {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let axis = axis_index(node.int("axis", 0), shape.len())?;
        let (dtype, known) = (cx.input(0)?.dtype, cx.input(0)?.known.clone().filter(|_| shape.len() == 1));
        let given = cx.ints(1).map(<[Dim]>::to_vec);
        let sizes = sizes(node, given, &shape[axis]);
        if let Some(sizes) = &sizes {
            check_sizes(sizes, node.outputs.len(), &shape[axis])?;
        }
        let mut start = 0;
        for slot in 0..node.outputs.len() {
            let size = sizes.as_ref().and_then(|sizes| sizes.get(slot).cloned());
            let count = size.as_ref().and_then(Dim::as_const).and_then(|size| usize::try_from(size).ok());
            let end = start + count.unwrap_or(0);
            let part = match (&known, count) {
                (Some(Known::Ints(values)), Some(_)) => values.get(start..end).map(|part| Known::Ints(part.to_vec())),
                _ => None,
            };
            start = end;
            let mut part_shape = shape.clone();
            part_shape[axis] = size.unwrap_or_else(|| cx.fresh());
            cx.set(slot, Fact::new(dtype, part_shape).with_known(part));
        }
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.separated(0)?;
        let axis = axis_index(node.int("axis", 0), layout.rank())?;
        let len = axis_size(&layout.axes[axis]);
        let whole = cx.single(&layout.axes[axis]);
        let mut start = 0usize;
        for slot in 0..node.outputs.len() {
            if node.output(slot).is_none() {
                return Err(RuleError::unsupported("one of its outputs is omitted"));
            }
            let shape = cx.output_shape(slot)?;
            let size = shape.get(axis).ok_or(RuleError::UnknownShape)?.clone();
            let mut axes = layout.axes.clone();
            axes[axis] = match (whole, size.as_const().and_then(|size| usize::try_from(size).ok())) {
                (Some(space), Some(count)) => {
                    if len.is_none_or(|len| start.saturating_add(count) > len) {
                        return Err(RuleError::UnknownShape);
                    }
                    let part = cx.new_space(count);
                    (0..count).for_each(|i| cx.unite(space, start + i, part, i));
                    if count == 1 {
                        cx.keep_range(part, 0..1, "is the only index of an output");
                    }
                    start += count;
                    cx.whole(part)
                }
                (Some(_), None) => return Err(RuleError::UnknownShape),
                (None, _) => fixed_axis(&size),
            };
            cx.set(slot, Layout { axes });
        }
        Ok(())
    }

    fn patch(&self, node: &Node, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let axis = axis_index(node.int("axis", 0), cx.rank(0))?;
        if !cx.input_shrinks(0, axis) {
            return Ok(());
        }
        let new: Option<Vec<i64>> = (0..node.outputs.len()).map(|slot| cx.new_output_size(slot, axis)).collect();
        let new = new.ok_or_else(|| RuleError::unsupported("the size of an output is not known"))?;
        if node.proto.ints("split").is_some() {
            cx.set_ints("split", &new);
            return Ok(());
        }
        if node.input(1).is_some() {
            return cx.set_input_ints(1, &new.iter().copied().map(Some).collect::<Vec<_>>());
        }
        if new.iter().all(|size| *size == new[0]) {
            return Ok(());
        }
        if node.version >= 13 {
            cx.remove_attribute("num_outputs");
            cx.set_input_tensor(1, &new, &[new.len() as i64]);
        } else {
            cx.set_ints("split", &new);
        }
        Ok(())
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.moves(&[0]);
        Ok(())
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let axis = axis_index(node.int("axis", 0), shape.len())?;
        let mut parts = Vec::new();
        for slot in 0..node.outputs.len() {
            let of_output = cx.output_shape(slot)?;
            parts.push(match cx.dy_of(slot) {
                Some(dy) => dy,
                None => {
                    let zero = cx.scalar(0.0);
                    cx.expand(&zero, &of_output)
                }
            });
        }
        let dx = cx.concat(&parts, axis);
        cx.give(0, dx);
        Ok(())
    }
}
