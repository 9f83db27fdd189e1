//! # Split
//! Divides a tensor along `axis`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Split.html>. All opsets (`split` is an input from 13, `num_outputs`
//! from 18).
//!
//! Coupling: every output is a span of the input.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::couple::space::axis_size;
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PatchCx, PreimageCx, ReferenceCx, Registration, RuleError,
    axis_index, onnx,
};

fn types_split() -> &'static [OpType] {
    const { &[onnx("Split")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_split, |node| Ok(Box::new(Split::parse(node))))];

#[derive(Debug)]
struct Split {
    axis: i64,
    /// The sizes of the outputs as an attribute; `None` if it is absent.
    sizes: Option<Vec<i64>>,
    has_sizes_input: bool,
    /// The number of equal parts if no sizes are given.
    count: i64,
    /// For every output, whether it is present.
    outputs: Vec<bool>,
    /// Whether the node's version takes the sizes as input 1, not as an attribute.
    takes_sizes_as_input: bool,
}

impl Split {
    fn parse(node: &Node) -> Self {
        Self {
            axis: node.int("axis", 0),
            sizes: node.proto.ints("split").map(<[i64]>::to_vec),
            has_sizes_input: node.input(1).is_some(),
            count: node.int("num_outputs", node.outputs.len() as i64).max(1),
            outputs: node.outputs.iter().map(Option::is_some).collect(),
            takes_sizes_as_input: node.version >= 13,
        }
    }

    /// Returns the sizes of the outputs along the axis of size `size`; `given` holds those of input 1, if known.
    fn sizes(&self, given: Option<&[Dim]>, size: &Dim) -> Option<Vec<Dim>> {
        if let Some(sizes) = &self.sizes {
            return Some(sizes.iter().copied().map(Dim::from).collect());
        }
        // A patched node has an input for the sizes even if the original has none.
        if given.is_some() || self.has_sizes_input {
            return given.map(<[Dim]>::to_vec);
        }
        let each = size.ceil_div(&Dim::from(self.count))?;
        let mut sizes = vec![each.clone(); usize::try_from(self.count).ok()?.min(4096)];
        if size.as_const().is_some() {
            // The last part is smaller if the size is no multiple.
            let others = &each * &Dim::from(self.count - 1);
            *sizes.last_mut()? = size - &others;
        }
        Some(sizes)
    }
}

/// Checks that the parts make up the whole axis; otherwise channels that do not exist would be coupled.
fn check_sizes(sizes: &[Dim], outputs: usize, whole: &Dim) -> Result<(), RuleError> {
    if sizes.len() < outputs {
        return Err(RuleError::invalid(format!("expected {outputs} sizes, one per output, found {}", sizes.len())));
    }
    let known: Vec<i64> = sizes.iter().filter_map(Dim::as_const).collect();
    if let Some(size) = known.iter().find(|size| **size < 0) {
        return Err(RuleError::invalid(format!("the size {size} of an output is negative")));
    }
    let sum = known.iter().fold(0i64, |sum, size| sum.saturating_add(*size));
    let is_wrong = |whole| sum > whole || (known.len() == sizes.len() && sum != whole);
    if whole.as_const().is_some_and(is_wrong) || sum > i64::from(u32::MAX) {
        return Err(RuleError::invalid(format!(
            "outputs of sizes {known:?} do not add up to the axis of size {whole}"
        )));
    }
    Ok(())
}

impl Operator for Split {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let axis = axis_index(self.axis, shape.len())?;
        let (dtype, known) = (cx.input(0)?.dtype, cx.input(0)?.known.clone().filter(|_| shape.len() == 1));
        let sizes = self.sizes(cx.ints(1), &shape[axis]);
        if let Some(sizes) = &sizes {
            check_sizes(sizes, self.outputs.len(), &shape[axis])?;
        }
        let mut start = 0;
        for slot in 0..self.outputs.len() {
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

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.separated(0)?;
        let axis = axis_index(self.axis, layout.rank())?;
        let len = axis_size(&layout.axes[axis]);
        let whole = cx.single(&layout.axes[axis]);
        let mut start = 0usize;
        for (slot, is_given) in self.outputs.iter().enumerate() {
            if !is_given {
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
                    let part = cx.new_space(count)?;
                    (0..count).for_each(|i| cx.unite(space, start + i, part, i));
                    if count == 1 {
                        cx.keep_range(part, 0..1, "an output of Split holds only this index");
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

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let axis = axis_index(self.axis, cx.rank(0))?;
        if !cx.input_shrinks(0, axis) {
            return Ok(());
        }
        let new: Option<Vec<i64>> = (0..self.outputs.len()).map(|slot| cx.new_output_size(slot, axis)).collect();
        let new = new.ok_or_else(|| RuleError::unsupported("the size of an output is not known"))?;
        if self.sizes.is_some() {
            cx.set_ints("split", &new);
            return Ok(());
        }
        if self.has_sizes_input {
            return cx.set_input_ints(1, &new.iter().copied().map(Some).collect::<Vec<_>>());
        }
        if new.iter().all(|size| *size == new[0]) {
            return Ok(());
        }
        if self.takes_sizes_as_input {
            cx.remove_attribute("num_outputs");
            cx.set_input_tensor(1, &new, &[new.len() as i64]);
        } else {
            cx.set_ints("split", &new);
        }
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.moves(&[0]);
        Ok(())
    }

    fn preimage(&self, cx: &mut PreimageCx<'_>) -> Result<(), RuleError> {
        let parts = (0..cx.output_count()).map(|slot| cx.wanted(slot)).collect::<Result<Vec<_>, _>>()?;
        let axis = axis_index(self.axis, cx.input(0)?.ndim())?;
        let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
        let whole = ndarray::concatenate(ndarray::Axis(axis), &views);
        cx.set_input(0, whole.map_err(|error| RuleError::unsupported(error.to_string()))?)
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let axis = axis_index(self.axis, shape.len())?;
        let mut parts = Vec::new();
        for slot in 0..self.outputs.len() {
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
        cx.add_gradient(0, dx);
        Ok(())
    }
}
