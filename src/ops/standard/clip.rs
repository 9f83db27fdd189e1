//! # Clip
//! Limits elements to `[min, max]`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Clip.html>. Opsets 6 and later (limits are inputs from 11).
//!
//! Coupling: every axis passes through; the limits are scalars.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::operator::{CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_clip() -> &'static [OpType] {
    const { &[onnx("Clip")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_clip, |node| Ok(Box::new(Clip::parse(node))))];

#[derive(Debug)]
struct Clip {
    /// The limits as attributes, before opset 11.
    min: Option<f32>,
    max: Option<f32>,
}

impl Clip {
    fn parse(node: &Node) -> Self {
        Self { min: node.proto.float("min"), max: node.proto.float("max") }
    }
}

impl Operator for Clip {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let input = cx.input(0)?;
        let limit = |slot: usize| match cx.optional(slot) {
            None => Some(None),
            Some(_) => cx.ints(slot).and_then(|limit| limit.first().cloned()).map(Some),
        };
        let known = match (&input.known, limit(1), limit(2)) {
            (Some(Known::Ints(values)), Some(min), Some(max)) => {
                Some(Known::Ints(values.iter().map(|value| limited(value, min.as_ref(), max.as_ref())).collect()))
            }
            _ => None,
        };
        let fact = Fact { dtype: input.dtype, shape: input.shape.clone(), known: None }.with_known(known);
        cx.set(0, fact);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let dy = cx.dy()?;
        let (x, zero) = (cx.input(0), cx.scalar(0.0));
        let mut dx = dy;
        for (slot, limit, op_type) in [(1, self.min, "Less"), (2, self.max, "Greater")] {
            let limit = match limit {
                Some(limit) => cx.scalar(f64::from(limit)),
                None if !cx.input(slot).is_empty() => cx.input(slot),
                None => continue,
            };
            let outside = cx.op(op_type, &[&x, &limit]);
            dx = cx.op("Where", &[&outside, &zero, &dx]);
        }
        cx.add_gradient(0, dx);
        Ok(())
    }
}

/// Clips a size or index, with the upper limit last, as specified.
fn limited(value: &Dim, min: Option<&Dim>, max: Option<&Dim>) -> Dim {
    let raised = min.map_or_else(|| value.clone(), |min| Dim::max(value, min));
    max.map_or_else(|| raised.clone(), |max| Dim::min(&raised, max))
}
