//! # GatherND, GatherElements, ScatterND and ScatterElements
//! Read or write slices and elements at indices.
//! Spec: <https://onnx.ai/onnx/operators/onnx__GatherND.html>. All opsets.
//!
//! Coupling: axes that are indexed stay; the axes of whole slices that GatherND and ScatterND move pass through. A
//! ScatterND that writes along the diagonal of its first axes, as in a depthwise kernel, ties them to the updates.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known, static_shape, take_along};
use crate::onnx::{attr_int, attr_string};
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::Layout;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::patch::PatchCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, axis_index, onnx};

fn types_gathernd() -> &'static [OpType] {
    const { &[onnx("GatherND"), onnx("GatherElements"), onnx("ScatterND"), onnx("ScatterElements"), onnx("Scatter")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_gathernd, &GatherNd)];

struct GatherNd;

/// The number of axes that an index tuple names.
fn tuple(shape: &[Dim]) -> Result<usize, RuleError> {
    let size = shape.last().and_then(Dim::as_const).ok_or(RuleError::UnknownShape)?;
    usize::try_from(size).map_err(|_| RuleError::UnknownShape)
}

fn batch_dims(node: &Node) -> usize {
    usize::try_from(node.int("batch_dims", 0)).unwrap_or(0)
}

/// Whether `known` indices of shape `shape` are (0, 0, ...), (1, 1, ...), ... along all of the first axes of `data`.
fn is_diagonal(node: &Node, known: Option<&[Dim]>, shape: &[Dim], data: &[Dim]) -> bool {
    let (Some(known), [rows, tuple]) = (known, shape) else {
        return false;
    };
    let (Some(rows), Some(tuple)) = (rows.as_const(), tuple.as_const().and_then(|tuple| usize::try_from(tuple).ok()))
    else {
        return false;
    };
    node.proto.op_type == "ScatterND"
        && node.proto.string("reduction").is_none_or(|reduction| reduction == "none")
        && tuple > 0
        && data.get(..tuple).is_some_and(|sizes| sizes.iter().all(|size| size.is(rows)))
        && known.iter().enumerate().all(|(at, index)| index.is((at / tuple) as i64))
}

/// The elements that known indices take of known data, with `length` indices in a tuple.
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

impl NodeRules for GatherNd {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (data, indices) = (cx.shape(0)?, cx.shape(1)?);
        let dtype = cx.input(0)?.dtype;
        let known = match node.proto.op_type.as_str() {
            "GatherND" if batch_dims(node) == 0 => known_rows(cx, &data, tuple(&indices)?),
            _ => None,
        };
        let shape = match node.proto.op_type.as_str() {
            "GatherND" => {
                let first = batch_dims(node) + tuple(&indices)?;
                let rest =
                    data.get(first..).ok_or_else(|| RuleError::invalid("an index names more axes than there are"))?;
                [&indices[..indices.len() - 1], rest].concat()
            }
            "GatherElements" => indices,
            _ => data,
        };
        cx.set(0, Fact::new(dtype, shape).with_known(known));
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let op_type = node.proto.op_type.as_str();
        if !matches!(op_type, "GatherND" | "ScatterND") {
            cx.keep_inputs("is read or written element by element");
            return cx.set_fixed(0);
        }
        let data = cx.separated(0)?;
        let indices = cx.fact(1).and_then(|fact| fact.shape.clone()).ok_or(RuleError::UnknownShape)?;
        let first = batch_dims(node) + tuple(&indices)?;
        let rest = data.axes.get(first..).ok_or(RuleError::UnknownShape)?;
        let sizes = cx.fact(0).and_then(|fact| fact.shape.clone()).ok_or(RuleError::UnknownShape)?;
        if is_diagonal(node, cx.ints(1), &indices, &sizes) {
            let updates = cx.separated(2)?;
            let mut axes = Vec::new();
            for axis in &data.axes[..first] {
                axes.push(cx.tie(axis, &updates.axes[0]));
            }
            for (axis, update) in rest.iter().zip(&updates.axes[1..]) {
                axes.push(cx.tie(axis, update));
            }
            cx.set(0, Layout { axes });
            return Ok(());
        }
        data.axes[..first].iter().for_each(|axis| cx.keep(axis, "is indexed"));
        if op_type == "GatherND" {
            let leading = Layout::fixed(&indices[..indices.len() - 1]).axes;
            cx.set(0, Layout { axes: [&leading[..], rest].concat() });
            return Ok(());
        }
        let updates = cx.separated(2)?;
        for (axis, update) in rest.iter().rev().zip(updates.axes.iter().rev()) {
            cx.tie(axis, update);
        }
        let others = updates.rank().saturating_sub(rest.len());
        updates.axes[..others].iter().for_each(|axis| cx.keep(axis, "is written at indices"));
        cx.set(0, data);
        Ok(())
    }

    fn patch(&self, node: &Node, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let shape = |slot: usize| cx.fact(slot).and_then(|fact| fact.shape.clone());
        let (Some(data), Some(indices)) = (shape(0), shape(1)) else {
            return Ok(());
        };
        if is_diagonal(node, cx.old_ints(1).as_deref(), &indices, &data)
            && cx.input_shrinks(2, 0)
            && let Some(rows) = cx.new_size(2, 0)
        {
            let tuple = tuple(&indices)?;
            let places: Vec<i64> = (0..rows).flat_map(|row| std::iter::repeat_n(row, tuple)).collect();
            cx.set_input_tensor(1, &places, &[rows, tuple as i64]);
        }
        Ok(())
    }

    fn reference(&self, node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if node.proto.op_type.starts_with("Gather") {
            cx.moves(&[0]);
            return Ok(());
        }
        let shape = |slot: usize| cx.fact(slot).and_then(|fact| fact.shape.clone()).unwrap_or_default();
        let (data, indices) = (shape(0), shape(1));
        if is_diagonal(node, cx.known_ints(1).as_deref(), &indices, &data) {
            return diagonal_mask(cx, tuple(&indices)?, data.len());
        }
        // A mask is overwritten even where the values are added up.
        let (data, updates) = (cx.full_mask(0), cx.full_mask(2));
        let mut attributes = node.proto.attribute.clone();
        attributes.retain(|attribute| attribute.name != "reduction");
        let mask = cx.add(&node.proto.op_type, &[&data, &cx.input(1), &updates], attributes);
        cx.set_mask(0, mask);
        Ok(())
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let indices = cx.input(1);
        let op_type = node.proto.op_type.as_str();
        if op_type.starts_with("Gather") {
            let dx = match op_type {
                "GatherND" => add_up_tuples(cx, &dy, &shape, batch_dims(node))?,
                _ => add_up_elements(cx, &dy, &shape, axis_index(node.int("axis", 0), shape.len())?)?,
            };
            cx.give(0, dx);
            return Ok(());
        }
        let reduction = node.proto.string("reduction").unwrap_or("none").to_owned();
        if !matches!(reduction.as_str(), "none" | "add") {
            return Err(RuleError::unsupported(format!("reduction {reduction:?} has no gradient")));
        }
        if cx.wants(2) {
            let axis = vec![attr_int("axis", node.int("axis", 0))];
            let dupdates = match op_type {
                "ScatterND" => cx.op("GatherND", &[&dy, &indices]),
                "ScatterElements" => cx.op_with("GatherElements", &[&dy, &indices], axis),
                _ => elements_at(cx, &dy, &shape, axis_index(node.int("axis", 0), shape.len())?)?,
            };
            cx.give(2, dupdates);
        }
        if cx.wants(0) {
            let ddata = if reduction == "add" {
                dy
            } else {
                // What was overwritten has no part in the loss.
                let updates = cx.shape(2)?;
                let zero = cx.scalar(0.0);
                let zeros = cx.expand(&zero, &updates);
                cx.same_op(&[&dy, &indices, &zeros])
            };
            cx.give(0, ddata);
        }
        Ok(())
    }
}

/// Ones where an index names a place among `depth` along a new axis, zeros elsewhere.
fn one_hot(cx: &mut GradientCx<'_>, indices: &str, depth: i64, axis: usize) -> String {
    let depth = cx.ints(&[depth]);
    let values = cx.floats(&[0.0, 1.0], &[2]);
    cx.op_with("OneHot", &[indices, &depth, &values], vec![attr_int("axis", axis as i64)])
}

/// Adds up what a GatherND took of a value of this shape, at the tuples of input 1.
fn add_up_tuples(cx: &mut GradientCx<'_>, dy: &str, shape: &[i64], batch: usize) -> Result<String, RuleError> {
    let (indices, tuples) = (cx.input(1), cx.shape(1)?);
    if cx.opset() >= 16 && batch == 0 {
        let zero = cx.scalar(0.0);
        let zeros = cx.expand(&zero, shape);
        return Ok(cx.op_with("ScatterND", &[&zeros, &indices, dy], vec![attr_string("reduction", "add")]));
    }
    // Tuples as places in the indexed axes taken as one; for every batch a map `[places, tuples]`.
    let (length, rank) = (tuples.last().map_or(1, |length| *length as usize), tuples.len());
    let indexed = &shape[batch..batch + length];
    let strides: Vec<i64> = (1..=length).map(|from| indexed[from..].iter().product()).collect();
    let (sizes, strides) = (cx.ints(indexed), cx.ints(&strides));
    // Indices may count from the end.
    let places = cx.op("Mod", &[&indices, &sizes]);
    let places = cx.op("Mul", &[&places, &strides]);
    let places = cx.reduce_sum(&places, &[rank - 1], false);
    let batches: i64 = shape[..batch].iter().product();
    let count: i64 = tuples[batch..rank - 1].iter().product();
    let (all, rest): (i64, i64) = (indexed.iter().product(), shape[batch + length..].iter().product());
    let places = cx.reshape(&places, &[batches, count]);
    let rows = one_hot(cx, &places, all, 1);
    let dy = cx.reshape(dy, &[batches, count, rest]);
    let sums = cx.op("MatMul", &[&rows, &dy]);
    Ok(cx.reshape(&sums, shape))
}

/// Adds up what a GatherElements took of a value of this shape, at the indices of input 1.
fn add_up_elements(cx: &mut GradientCx<'_>, dy: &str, shape: &[i64], axis: usize) -> Result<String, RuleError> {
    let (indices, taken) = (cx.input(1), cx.shape(1)?);
    if cx.opset() >= 16 {
        let zero = cx.scalar(0.0);
        let zeros = cx.expand(&zero, shape);
        let attributes = vec![attr_string("reduction", "add"), attr_int("axis", axis as i64)];
        return Ok(cx.op_with("ScatterElements", &[&zeros, &indices, dy], attributes));
    }
    let marks = one_hot(cx, &indices, shape[axis], axis);
    let apart = [&taken[..axis], &[1], &taken[axis..]].concat();
    let dy = cx.reshape(dy, &apart);
    let product = cx.mul(&marks, &dy);
    let sums = cx.reduce_sum(&product, &[axis + 1], false);
    // Along the other axes, the indices may end before the data does.
    let after = (0..shape.len()).map(|at| if at == axis { 0 } else { shape[at] - taken[at] }).collect::<Vec<i64>>();
    Ok(cx.pad(&sums, &vec![0; shape.len()], &after))
}

/// The elements of a value of this shape at the indices of input 1, as GatherElements takes them from opset 11 on.
fn elements_at(cx: &mut GradientCx<'_>, value: &str, shape: &[i64], axis: usize) -> Result<String, RuleError> {
    let (indices, taken) = (cx.input(1), cx.shape(1)?);
    let marks = one_hot(cx, &indices, shape[axis], axis);
    let mut value = value.to_owned();
    for at in (0..shape.len()).filter(|at| *at != axis && taken[*at] != shape[*at]) {
        value = cx.slice(&value, at, 0, taken[at], 1);
    }
    let apart = [&taken[..axis], &[shape[axis], 1], &taken[axis + 1..]].concat();
    let value = cx.reshape(&value, &apart);
    let product = cx.mul(&marks, &value);
    Ok(cx.reduce_sum(&product, &[axis], false))
}

/// The mask of a value of rank `rank` of which the updates fill the diagonal of the first `tuple` axes: what the
/// updates lose of their first axis is gone from each of them, zeros off the diagonal included.
fn diagonal_mask(cx: &mut ReferenceCx<'_>, tuple: usize, rank: usize) -> Result<(), RuleError> {
    if cx.mask(2).is_none() {
        return Ok(());
    }
    let updates = cx.full_mask(2);
    let others: Vec<i64> = (1..=rank - tuple).map(|axis| axis as i64).collect();
    let rows = if others.is_empty() { updates.clone() } else { cx.reduce("ReduceMax", &updates, &others) };
    let mut mask = cx.reduce("ReduceMax", &updates, &[0]);
    for axis in 0..tuple {
        let mut target = vec![1; rank];
        target[axis] = -1;
        let target = cx.ints(&target, &[rank as i64]);
        let along = cx.add("Reshape", &[&rows, &target], vec![]);
        mask = cx.add("Mul", &[&mask, &along], vec![]);
    }
    cx.set_mask(0, mask);
    Ok(())
}
