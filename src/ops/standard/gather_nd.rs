//! # GatherND
//! Reads slices at tuples of indices.
//! Spec: <https://onnx.ai/onnx/operators/onnx__GatherND.html>. Opsets 11 and later (`batch_dims` from 12).
//!
//! Coupling: axes that the index tuples refer to are kept; the axes of whole slices pass through.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known, static_shape, take_along};
use crate::onnx::attr_string;
use crate::operator::couple::layout::Layout;
use crate::operator::{CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};
use crate::ops::indexed::{one_hot, tuple_length};

fn types_gathernd() -> &'static [OpType] {
    const { &[onnx("GatherND")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_gathernd, |node| Ok(Box::new(GatherNd::parse(node))))];

#[derive(Debug)]
struct GatherNd {
    /// The number of leading axes that data and indices share.
    batch: usize,
}

impl GatherNd {
    fn parse(node: &Node) -> Self {
        Self { batch: usize::try_from(node.int("batch_dims", 0)).unwrap_or(0) }
    }
}

impl Operator for GatherNd {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (data, indices) = (cx.shape(0)?, cx.shape(1)?);
        let dtype = cx.input(0)?.dtype;
        let length = tuple_length(&indices)?;
        let known = if self.batch == 0 { known_rows(cx, &data, length) } else { None };
        let rest = data.get(self.batch + length..);
        let rest =
            rest.ok_or_else(|| RuleError::invalid("the index tuples have more entries than the data has axes"))?;
        let shape = [&indices[..indices.len() - 1], rest].concat();
        cx.set(0, Fact::new(dtype, shape).with_known(known));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let data = cx.separated(0)?;
        let indices = cx.fact(1).and_then(|fact| fact.shape.clone()).ok_or(RuleError::UnknownShape)?;
        let first = self.batch + tuple_length(&indices)?;
        let rest = data.axes.get(first..).ok_or(RuleError::UnknownShape)?;
        data.axes[..first].iter().for_each(|axis| cx.keep(axis, "GatherND reads this axis with indices"));
        let leading = Layout::fixed(&indices[..indices.len() - 1]).axes;
        cx.set(0, Layout { axes: [&leading[..], rest].concat() });
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.moves(&[0]);
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let dx = add_up_tuples(cx, &dy, &shape, self.batch)?;
        cx.add_gradient(0, dx);
        Ok(())
    }
}

/// Returns the elements that known indices read from known data, with `length` indices per tuple.
fn known_rows(cx: &InferCx<'_>, data: &[Dim], length: usize) -> Option<Known> {
    let (sizes, indices) = (static_shape(data)?, cx.ints(1)?);
    let (named, rest) = sizes.split_at_checked(length)?;
    let row: usize = rest.iter().product();
    let mut rows = Vec::new();
    for tuple in indices.chunks_exact(length.max(1)) {
        let mut at = 0;
        for (index, size) in tuple.iter().zip(named) {
            let index = index.as_const()?;
            let index = if index < 0 { index + i64::try_from(*size).ok()? } else { index };
            at = at * size + usize::try_from(index).ok().filter(|index| index < size)?;
        }
        rows.push(at);
    }
    take_along(cx.optional(0)?.known.as_ref()?, &[named.iter().product(), row], 0, &rows)
}

/// Adds up the gradients of the slices that a GatherND read from a value of this shape, at the tuples of input 1.
fn add_up_tuples(cx: &mut GradientCx<'_>, dy: &str, shape: &[i64], batch: usize) -> Result<String, RuleError> {
    let (indices, tuples) = (cx.input(1), cx.shape(1)?);
    if cx.opset() >= 16 && batch == 0 {
        let zero = cx.scalar(0.0);
        let zeros = cx.expand(&zero, shape);
        return Ok(cx.op_with("ScatterND", &[&zeros, &indices, dy], vec![attr_string("reduction", "add")]));
    }
    // Tuples as positions in the flattened indexed axes; for every batch a map `[positions, tuples]`.
    let (length, rank) = (tuples.last().map_or(1, |length| *length as usize), tuples.len());
    let indexed = &shape[batch..batch + length];
    let strides: Vec<i64> = (1..=length).map(|from| indexed[from..].iter().product()).collect();
    let (sizes, strides) = (cx.ints(indexed), cx.ints(&strides));
    // Negative indices count from the end.
    let positions = cx.op("Mod", &[&indices, &sizes]);
    let positions = cx.op("Mul", &[&positions, &strides]);
    let positions = cx.reduce_sum(&positions, &[rank - 1], false);
    let batches: i64 = shape[..batch].iter().product();
    let count: i64 = tuples[batch..rank - 1].iter().product();
    let (all, rest): (i64, i64) = (indexed.iter().product(), shape[batch + length..].iter().product());
    let positions = cx.reshape(&positions, &[batches, count]);
    let rows = one_hot(cx, &positions, all, 1);
    let dy = cx.reshape(dy, &[batches, count, rest]);
    let sums = cx.op("MatMul", &[&rows, &dy]);
    Ok(cx.reshape(&sums, shape))
}
