//! # MaxUnpool
//! Puts values back to the positions from which a MaxPool took them.
//! Spec: <https://onnx.ai/onnx/operators/onnx__MaxUnpool.html>. Opsets 9 and later.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::{InferCx, OpType, Operator, Registration, RuleError, onnx};

fn types_max_unpool() -> &'static [OpType] {
    const { &[onnx("MaxUnpool")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_max_unpool, |node| Ok(Box::new(MaxUnpool::parse(node))))];

#[derive(Debug)]
struct MaxUnpool {
    kernel: Vec<i64>,
    strides: Option<Vec<i64>>,
    pads: Option<Vec<i64>>,
}

impl MaxUnpool {
    fn parse(node: &Node) -> Self {
        let list = |name: &str| node.proto.ints(name).map(<[i64]>::to_vec);
        Self { kernel: list("kernel_shape").unwrap_or_default(), strides: list("strides"), pads: list("pads") }
    }
}

impl Operator for MaxUnpool {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, mut shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        if let Some(given) = cx.ints(2).map(<[Dim]>::to_vec) {
            cx.set_shape(0, dtype, given);
            return Ok(());
        }
        if cx.optional(2).is_some() || shape.len() != self.kernel.len() + 2 {
            shape.iter_mut().skip(2).for_each(|size| *size = cx.fresh());
        } else {
            // (size - 1) * stride + kernel - pads
            let count = self.kernel.len();
            let entry = |list: &Option<Vec<i64>>, at: usize, default: i64| {
                list.as_ref().and_then(|list| list.get(at).copied()).unwrap_or(default)
            };
            for (at, size) in shape.iter_mut().skip(2).enumerate() {
                let pads = entry(&self.pads, at, 0).saturating_add(entry(&self.pads, at + count, 0));
                let stride = Dim::from(entry(&self.strides, at, 1));
                let rest = Dim::from(self.kernel[at].saturating_sub(pads));
                *size = &(&(&*size - &Dim::from(1)) * &stride) + &rest;
            }
        }
        cx.set_shape(0, dtype, shape);
        Ok(())
    }
}
