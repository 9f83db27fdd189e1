//! # QLinearAveragePool, QLinearGlobalAveragePool and NhwcMaxPool
//! Pooling of quantised values, with channels first or last.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::{Folding, InferCx, OpType, Operator, Registration, RuleError, microsoft};
use crate::ops::standard::conv::Spatial;

fn types_qlinear_pool() -> &'static [OpType] {
    const { &[microsoft("QLinearAveragePool"), microsoft("QLinearGlobalAveragePool"), microsoft("NhwcMaxPool")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_qlinear_pool, |node| Ok(Box::new(QLinearPool::parse(node))))];

#[derive(Debug)]
struct QLinearPool {
    spatial: Spatial,
    is_global: bool,
    is_channels_last: bool,
}

impl QLinearPool {
    fn parse(node: &Node) -> Self {
        let op_type = node.proto.op_type.as_str();
        Self {
            spatial: Spatial::parse(node),
            is_global: op_type == "QLinearGlobalAveragePool",
            is_channels_last: op_type == "NhwcMaxPool" || node.int("channels_last", 0) != 0,
        }
    }
}

impl Operator for QLinearPool {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, mut shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        if shape.len() < 3 {
            return Err(RuleError::invalid(format!("X must have rank 3 or more, found {}", shape.len())));
        }
        let first = if self.is_channels_last { 1 } else { 2 };
        let count = shape.len() - 2;
        let window = if self.is_global { None } else { Some(self.spatial.window(&[], count)?) };
        for axis in 0..count {
            let size = match &window {
                None => Some(Dim::from(1)),
                Some(window) => window.output(axis, &shape[first + axis]),
            };
            shape[first + axis] = size.unwrap_or_else(|| cx.fresh());
        }
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }
}
