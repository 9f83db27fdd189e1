//! # Concat
//! Joins tensors along `axis`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Concat.html>. Opsets 4 and later.
//!
//! Coupling: every axis but `axis` is shared by all inputs and Y; along `axis`, input i is one span of Y.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::operator::couple::grid::{Grid, GridCx};
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::couple::space::axis_size;
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PreimageCx, ReferenceCx, Registration, RuleError, axis_index, onnx,
};

fn types_concat() -> &'static [OpType] {
    const { &[onnx("Concat")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_concat, |node| Ok(Box::new(Concat::parse(node))))];

#[derive(Debug)]
struct Concat {
    axis: i64,
    /// The number of inputs.
    inputs: usize,
}

impl Concat {
    fn parse(node: &Node) -> Self {
        Self { axis: node.int("axis", 1), inputs: node.inputs.len() }
    }
}

impl Operator for Concat {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let mut shape = cx.shape(0)?;
        let axis = axis_index(self.axis, shape.len())?;
        for slot in 1..cx.input_count() {
            let other = cx.shape(slot)?;
            if other.len() != shape.len() {
                let text = format!("input {slot} has rank {}, but input 0 has rank {}", other.len(), shape.len());
                return Err(RuleError::invalid(text));
            }
            for (at, size) in other.iter().enumerate() {
                if at == axis {
                    shape[at] = &shape[at] + size;
                } else if !cx.equal(&shape[at], size) {
                    let text = format!("sizes {} and {size} differ at axis {at}", shape[at]);
                    return Err(RuleError::invalid(text));
                } else if shape[at].as_const().is_none() && size.as_const().is_some() {
                    shape[at] = size.clone();
                }
            }
        }
        let dtype = cx.input(0)?.dtype;
        let known = (shape.len() == 1).then(|| joined(cx)).flatten();
        cx.set(0, Fact::new(dtype, shape).with_known(known));
        Ok(())
    }

    fn grid(&self, cx: &GridCx<'_>) -> Option<Grid> {
        // Single indices that are joined into tuples.
        let last = cx.output_shape()?.len().checked_sub(1)?;
        let is_joined = axis_index(self.axis, last + 1).ok()? == last;
        let column = |slot: usize| cx.shape(slot)?.last()?.is(1).then(|| cx.column(slot)).flatten();
        if is_joined { (0..self.inputs).map(column).collect() } else { None }
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let shape = cx.output_shape(0)?;
        let axis = axis_index(self.axis, shape.len())?;
        let layouts = (0..self.inputs).map(|slot| cx.separated(slot)).collect::<Result<Vec<_>, _>>()?;
        let mut axes = Vec::new();
        for (at, size) in shape.iter().enumerate() {
            if at != axis {
                let mut shared = layouts[0].axes[at].clone();
                for layout in &layouts[1..] {
                    shared = cx.tie(&shared, &layout.axes[at]);
                }
                axes.push(shared);
                continue;
            }
            if layouts.iter().all(|layout| layout.axes[at].iter().all(|piece| piece.space().is_none())) {
                // Positions and sizes, whose number is arbitrary.
                axes.push(fixed_axis(size));
                continue;
            }
            let Some(total) = size.as_const().and_then(|size| usize::try_from(size).ok()) else {
                for layout in &layouts {
                    cx.keep(&layout.axes[at], "Concat joins this axis to one of unknown size");
                }
                axes.push(fixed_axis(size));
                continue;
            };
            let lens: Option<Vec<usize>> = layouts.iter().map(|layout| axis_size(&layout.axes[at])).collect();
            if lens.is_none_or(|lens| lens.iter().sum::<usize>() != total) {
                return Err(RuleError::UnknownShape);
            }
            let joined = cx.new_space(total)?;
            let mut start = 0;
            for layout in &layouts {
                let len = axis_size(&layout.axes[at]).ok_or(RuleError::UnknownShape)?;
                match cx.single(&layout.axes[at]) {
                    Some(space) => (0..len).for_each(|i| cx.unite(space, i, joined, start + i)),
                    None => cx.keep_range(
                        joined,
                        start..start + len,
                        "the index comes from an input of Concat whose size can't change",
                    ),
                }
                start += len;
            }
            axes.push(cx.whole(joined));
        }
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if cx.is_float_output() {
            let slots: Vec<usize> = (0..self.inputs).collect();
            cx.moves(&slots);
        }
        Ok(())
    }

    fn preimage(&self, cx: &mut PreimageCx<'_>) -> Result<(), RuleError> {
        let wanted = cx.wanted(0)?;
        let axis = axis_index(self.axis, wanted.ndim())?;
        let mut first = 0;
        for slot in 0..cx.input_count() {
            let size = cx.input(slot)?.shape().get(axis).copied().unwrap_or(0);
            let indices: Vec<usize> = (first..(first + size).min(wanted.shape()[axis])).collect();
            cx.set_input(slot, wanted.select(ndarray::Axis(axis), &indices))?;
            first += size;
        }
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let dy = cx.dy()?;
        let axis = axis_index(self.axis, cx.output_shape(0)?.len())?;
        let mut start = 0;
        for slot in 0..self.inputs {
            let size = cx.shape(slot)?[axis];
            if cx.wants(slot) {
                let dx = cx.slice(&dy, axis, start, start + size, 1);
                cx.add_gradient(slot, dx);
            }
            start += size;
        }
        Ok(())
    }
}

fn joined(cx: &InferCx<'_>) -> Option<Known> {
    let mut ints: Vec<Dim> = Vec::new();
    let mut floats = Vec::new();
    for slot in 0..cx.input_count() {
        match cx.optional(slot)?.known.as_ref()? {
            Known::Ints(values) => ints.extend(values.iter().cloned()),
            Known::Floats(values) => floats.extend(values),
        }
    }
    match (ints.is_empty(), floats.is_empty()) {
        (_, true) => Some(Known::Ints(ints)),
        (true, false) => Some(Known::Floats(floats)),
        (false, false) => None,
    }
}
