//! # DeformConv
//! A convolution whose sampling positions are shifted by offsets that the network computes.
//! Spec: <https://onnx.ai/onnx/operators/onnx__DeformConv.html>. Opsets 19 and later.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use super::conv::Spatial;
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::macs::elements;
use crate::operator::{Folding, InferCx, MacsCx, OpType, Operator, Registration, RuleError, onnx};

fn types_deform_conv() -> &'static [OpType] {
    const { &[onnx("DeformConv")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_deform_conv, |node| Ok(Box::new(DeformConv::parse(node))))];

#[derive(Debug)]
struct DeformConv {
    spatial: Spatial,
    group: i64,
}

impl DeformConv {
    fn parse(node: &Node) -> Self {
        Self { spatial: Spatial::parse(node), group: node.int("group", 1) }
    }
}

impl Operator for DeformConv {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (x, w) = (cx.shape(0)?, cx.shape(1)?);
        if x.len() < 3 || w.len() != x.len() {
            return Err(RuleError::invalid(format!("X of rank {} and W of rank {} do not fit", x.len(), w.len())));
        }
        let channels = &w[1] * &Dim::from(self.group);
        if !cx.equal(&x[1], &channels) {
            return Err(RuleError::invalid(format!("expected {channels} input channels, found {}", x[1])));
        }
        let window = self.spatial.window(&w[2..], x.len() - 2)?;
        let mut shape = vec![x[0].clone(), w[0].clone()];
        shape.extend(window.outputs(cx, &x[2..]));
        let dtype = cx.input(0)?.dtype;
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }

    fn macs(&self, cx: &MacsCx<'_>) -> f64 {
        cx.output_elements(0) * cx.input(1).map_or(0.0, |w| elements(&w[w.len().min(1)..]))
    }
}
