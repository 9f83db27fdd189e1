//! # GatherND, GatherElements, ScatterND and ScatterElements
//! Read or write slices and elements at indices.
//! Spec: <https://onnx.ai/onnx/operators/onnx__GatherND.html>. All opsets.
//!
//! Coupling: axes that are indexed stay; the axes of whole slices that GatherND and ScatterND move pass through. A
//! ScatterND that writes along the diagonal of its first axes, as in a depthwise kernel, ties them to the updates.

use crate::couple::CoupleCx;
use crate::couple::layout::Layout;
use crate::dim::Dim;
use crate::fact::Fact;
use crate::gradient::GradientCx;
use crate::graph::Node;
use crate::operator::{InferCx, OpType, Operator, RuleError, onnx};
use crate::rewrite::PatchCx;
use crate::verify::reference::ReferenceCx;

pub(super) static RULES: &[&dyn Operator] = &[&GatherNd];

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

impl Operator for GatherNd {
    fn op_types(&self) -> &'static [OpType] {
        const { &[onnx("GatherND"), onnx("GatherElements"), onnx("ScatterND"), onnx("ScatterElements"), onnx("Scatter")] }
    }

    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (data, indices) = (cx.shape(0)?, cx.shape(1)?);
        let dtype = cx.input(0)?.dtype;
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
        cx.set(0, Fact::new(dtype, shape));
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
            if cx.opset() < 16 {
                return Err(RuleError::unsupported("adding up at indices needs opset 16"));
            }
            let zero = cx.scalar(0.0);
            let zeros = cx.expand(&zero, &shape);
            let mut attributes = vec![crate::onnx::attr_string("reduction", "add")];
            let scatter = if op_type == "GatherND" {
                if batch_dims(node) != 0 {
                    return Err(RuleError::unsupported("batch_dims has no gradient"));
                }
                "ScatterND"
            } else {
                attributes.push(crate::onnx::attr_int("axis", node.int("axis", 0)));
                "ScatterElements"
            };
            let dx = cx.op_with(scatter, &[&zeros, &indices, &dy], attributes);
            cx.give(0, dx);
            return Ok(());
        }
        let reduction = node.proto.string("reduction").unwrap_or("none").to_owned();
        if !matches!(reduction.as_str(), "none" | "add") {
            return Err(RuleError::unsupported(format!("reduction {reduction:?} has no gradient")));
        }
        if op_type == "Scatter" {
            return Err(RuleError::unsupported("reading at indices needs opset 11"));
        }
        let axis = vec![crate::onnx::attr_int("axis", node.int("axis", 0))];
        let (gather, axis) = if op_type == "ScatterND" { ("GatherND", vec![]) } else { ("GatherElements", axis) };
        if cx.wants(2) {
            let dupdates = cx.op_with(gather, &[&dy, &indices], axis);
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
