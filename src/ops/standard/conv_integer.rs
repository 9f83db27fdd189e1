//! # ConvInteger and QLinearConv
//! Convolutions of quantised values.
//! Spec: <https://onnx.ai/onnx/operators/onnx__ConvInteger.html>, <https://onnx.ai/onnx/operators/onnx__QLinearConv.html>.
//! Opsets 10 and later; QLinearConv of ONNX Runtime's domain may have its channels last.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use super::conv::Spatial;
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::DataType;
use crate::operator::macs::elements;
use crate::operator::{Folding, InferCx, MacsCx, OpType, Operator, Registration, RuleError, microsoft, onnx};

fn types_conv_intege() -> &'static [OpType] {
    const { &[onnx("ConvInteger"), onnx("QLinearConv"), microsoft("QLinearConv")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_conv_intege, |node| Ok(Box::new(ConvInteger::parse(node))))];

#[derive(Debug)]
struct ConvInteger {
    spatial: Spatial,
    group: i64,
    /// The inputs that hold W and, if it determines the type of Y, the zero point of Y.
    slots: (usize, Option<usize>),
    is_channels_last: bool,
}

impl ConvInteger {
    fn parse(node: &Node) -> Self {
        let is_linear = node.proto.op_type == "QLinearConv";
        Self {
            spatial: Spatial::parse(node),
            group: node.int("group", 1),
            slots: if is_linear { (3, Some(7)) } else { (1, None) },
            is_channels_last: node.int("channels_last", 0) != 0,
        }
    }
}

impl Operator for ConvInteger {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (mut x, w) = (cx.shape(0)?, cx.shape(self.slots.0)?);
        if x.len() < 3 || w.len() != x.len() {
            return Err(RuleError::invalid(format!("X of rank {} and W of rank {} do not fit", x.len(), w.len())));
        }
        if self.is_channels_last {
            x[1..].rotate_right(1);
        }
        let channels = &w[1] * &Dim::from(self.group);
        if !cx.equal(&x[1], &channels) {
            return Err(RuleError::invalid(format!("expected {channels} input channels, found {}", x[1])));
        }
        let window = self.spatial.window(&w[2..], x.len() - 2)?;
        let mut shape = vec![x[0].clone(), w[0].clone()];
        shape.extend(window.outputs(cx, &x[2..]));
        if self.is_channels_last {
            shape[1..].rotate_left(1);
        }
        let dtype = match self.slots.1 {
            Some(zero_point) => cx.optional(zero_point).map_or(DataType::Uint8, |zero_point| zero_point.dtype),
            None => DataType::Int32,
        };
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }

    fn macs(&self, cx: &MacsCx<'_>) -> f64 {
        cx.output_elements(0) * cx.input(self.slots.0).map_or(0.0, |w| elements(&w[w.len().min(1)..]))
    }
}
