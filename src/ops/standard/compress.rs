//! # Compress
//! Selects the entries along `axis`, or of all elements, for which a condition is true.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Compress.html>. Opsets 9 and later.
//!
//! Coupling: the axis is kept; all others pass through. Without an axis, everything is kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::attr_int;
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, axis_index, onnx,
};

fn types_compress() -> &'static [OpType] {
    const { &[onnx("Compress")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_compress, |node| Ok(Box::new(Compress::parse(node))))];

#[derive(Debug)]
struct Compress {
    /// The axis of the entries; `None`: the entries are all elements.
    axis: Option<i64>,
}

impl Compress {
    fn parse(node: &Node) -> Self {
        Self { axis: node.proto.int("axis") }
    }
}

impl Operator for Compress {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, mut shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let count = cx.ints(1).and_then(chosen).map(|chosen| Dim::from(chosen.len() as i64));
        let count = count.unwrap_or_else(|| cx.fresh());
        match self.axis {
            Some(axis) => {
                let axis = axis_index(axis, shape.len())?;
                shape[axis] = count;
            }
            None => shape = vec![count],
        }
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let Some(axis) = self.axis else {
            cx.keep_inputs("Compress selects elements of this value by a condition");
            return cx.set_fixed(0);
        };
        let mut y = cx.separated(0)?;
        let axis = axis_index(axis, y.rank())?;
        cx.keep(&y.axes[axis].clone(), "Compress selects entries of this axis by a condition");
        let condition = cx.separated(1)?;
        condition.axes.iter().for_each(|axis| cx.keep(axis, "the axis belongs to the condition of Compress"));
        y.axes[axis] = fixed_axis(&cx.output_shape(0)?[axis]);
        cx.set(0, Layout { axes: y.axes });
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if let (Some(mask), Some(axis)) = (cx.mask(0), self.axis) {
            let axis = axis_index(axis, cx.rank(0)?)? as i64;
            let mask = cx.reduce("ReduceMax", &mask, &[axis]);
            cx.set_mask(0, mask);
        }
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (mut dy, shape) = (cx.dy()?, cx.shape(0)?);
        let chosen = cx.known_ints(1).and_then(|condition| chosen(&condition));
        let chosen = chosen.ok_or_else(|| {
            RuleError::unsupported("no gradient is implemented for a condition that is computed at run time")
        })?;
        let (axis, size, rank) = match self.axis {
            Some(axis) => {
                let axis = axis_index(axis, shape.len())?;
                (axis, shape[axis], shape.len())
            }
            None => (0, shape.iter().product(), 1),
        };
        // Every element takes the gradient at its position among the selected ones, or the zero appended after them.
        let (before, mut after) = (vec![0; rank], vec![0; rank]);
        after[axis] = 1;
        dy = cx.pad(&dy, &before, &after);
        let position = |at: i64| chosen.iter().position(|index| *index == at).unwrap_or(chosen.len()) as i64;
        let indices: Vec<i64> = (0..size).map(position).collect();
        let indices = cx.ints(&indices);
        let dx = cx.op_with("Gather", &[&dy, &indices], vec![attr_int("axis", axis as i64)]);
        let dx = if rank == shape.len() { dx } else { cx.reshape(&dx, &shape) };
        cx.add_gradient(0, dx);
        Ok(())
    }
}

/// Returns the indices at which a condition is true; `None` if it is not known.
fn chosen(condition: &[Dim]) -> Option<Vec<i64>> {
    let values: Option<Vec<i64>> = condition.iter().map(Dim::as_const).collect();
    Some(values?.iter().enumerate().filter(|(_, value)| **value != 0).map(|(at, _)| at as i64).collect())
}
