//! # Operators that make indices
//! ArgMax, ArgMin, NonZero, OneHot, TopK and EyeLike: their results count places, so that nothing they read may shrink.
//! Spec: <https://onnx.ai/onnx/operators/onnx__ArgMax.html>. All opsets.
//!
//! Coupling: every input stays.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, KNOWN_LIMIT, Known};
use crate::onnx::DataType;
use crate::operator::couple::CoupleCx;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, axis_index, onnx};

fn types_indices() -> &'static [OpType] {
    const { &[onnx("ArgMax"), onnx("ArgMin"), onnx("NonZero"), onnx("OneHot"), onnx("TopK"), onnx("EyeLike")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_indices, &Indices)];

struct Indices;

impl NodeRules for Indices {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let mut shape = cx.shape(0)?;
        let dtype = cx.input(0)?.dtype;
        match node.proto.op_type.as_str() {
            "NonZero" => {
                let count = cx.fresh();
                cx.set_shape(0, DataType::Int64, vec![Dim::from(shape.len() as i64), count]);
            }
            "OneHot" => {
                let axis = axis_index(node.int("axis", -1), shape.len() + 1)?;
                let depth = cx.ints(1).and_then(|depth| depth.first().cloned());
                let depth = depth.unwrap_or_else(|| cx.fresh());
                shape.insert(axis, depth);
                let dtype = cx.optional(2).map_or(DataType::Float, |values| values.dtype);
                // Exporters write counts of repetitions this way.
                let known = if axis + 1 == shape.len() { marked(cx) } else { None };
                cx.set(0, Fact::new(dtype, shape).with_known(known));
            }
            "TopK" => {
                let axis = axis_index(node.int("axis", -1), shape.len())?;
                let k = cx.ints_of("k", 1).ok().flatten().and_then(|k| k.first().cloned());
                shape[axis] = k.unwrap_or_else(|| cx.fresh());
                cx.set_shape(0, dtype, shape.clone());
                cx.set_shape(1, DataType::Int64, shape);
            }
            "EyeLike" => {
                let named = node.proto.int("dtype").and_then(|to| DataType::try_from(i32::try_from(to).ok()?).ok());
                cx.set_shape(0, named.unwrap_or(dtype), shape);
            }
            _ => {
                let axis = axis_index(node.int("axis", 0), shape.len())?;
                if node.int("keepdims", 1) != 0 {
                    shape[axis] = Dim::from(1);
                } else {
                    shape.remove(axis);
                }
                cx.set(0, Fact::new(DataType::Int64, shape));
            }
        }
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.keep_inputs("is counted by indices");
        (0..node.outputs.len()).try_for_each(|slot| cx.set_fixed(slot))
    }

    fn reference(&self, _node: &Node, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // What is counted has lost nothing; a plan that removes some of it gives other indices and fails.
        Ok(())
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        if node.proto.op_type != "TopK" {
            return Err(RuleError::unsupported("what counts indices has no gradient"));
        }
        let (dy, shape, indices) = (cx.dy()?, cx.shape(0)?, cx.output(1));
        if indices.is_empty() {
            return Err(RuleError::unsupported("it does not say which elements it chose: give it its second output"));
        }
        let axis = axis_index(node.int("axis", -1), shape.len())? as i64;
        let zero = cx.scalar(0.0);
        let zeros = cx.expand(&zero, &shape);
        let scatter = if cx.opset() < 11 { "Scatter" } else { "ScatterElements" };
        let dx = cx.op_with(scatter, &[&zeros, &indices, &dy], vec![crate::onnx::attr_int("axis", axis)]);
        cx.give(0, dx);
        Ok(())
    }
}

/// The elements of a OneHot of integers along the last axis, where all that it reads is known.
fn marked(cx: &InferCx<'_>) -> Option<Known> {
    let (indices, depth, values) = (cx.ints(0)?, cx.ints(1)?.first()?.as_const()?, cx.ints(2)?);
    let [off, on] = values else { return None };
    let count = usize::try_from(depth).ok()?.checked_mul(indices.len())?;
    if count > KNOWN_LIMIT {
        return None;
    }
    let mut elements = Vec::new();
    for index in indices {
        let index = index.as_const()?;
        let index = if index < 0 { index + depth } else { index };
        elements.extend((0..depth).map(|at| if at == index { on.clone() } else { off.clone() }));
    }
    Some(Known::Ints(elements))
}
