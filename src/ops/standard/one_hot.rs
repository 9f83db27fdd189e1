//! # OneHot
//! Adds an axis along which one value marks each index and another value fills the other positions.
//! Spec: <https://onnx.ai/onnx/operators/onnx__OneHot.html>. Opsets 9 and later.
//!
//! Coupling: every input is kept.

use crate::graph::Node;
use crate::graph::fact::{Fact, KNOWN_LIMIT, Known};
use crate::onnx::DataType;
use crate::operator::{CoupleCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, axis_index, onnx};

fn types_onehot() -> &'static [OpType] {
    const { &[onnx("OneHot")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_onehot, |node| Ok(Box::new(OneHot::parse(node))))];

#[derive(Debug)]
struct OneHot {
    /// The position of the new axis.
    axis: i64,
}

impl OneHot {
    fn parse(node: &Node) -> Self {
        Self { axis: node.int("axis", -1) }
    }
}

impl Operator for OneHot {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let mut shape = cx.shape(0)?;
        let axis = axis_index(self.axis, shape.len() + 1)?;
        let depth = cx.ints(1).and_then(|depth| depth.first().cloned());
        let depth = depth.unwrap_or_else(|| cx.fresh());
        shape.insert(axis, depth);
        let dtype = cx.optional(2).map_or(DataType::Float, |values| values.dtype);
        // Exporters write repetition counts this way.
        let known = if axis + 1 == shape.len() { marked(cx) } else { None };
        cx.set(0, Fact::new(dtype, shape).with_known(known));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.keep_inputs("OneHot takes this value as indices");
        cx.set_fixed(0)
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // The input has lost nothing; a plan that removes some of it changes the indices, and verification fails.
        Ok(())
    }
}

/// Computes the elements of the result, integers, along the last axis, if all inputs are known.
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
