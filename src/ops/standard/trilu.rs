//! # Trilu
//! The triangle above or below a diagonal of matrices; the rest is zero.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Trilu.html>. Opsets 14 and later.
//!
//! Coupling: the last two axes are kept, because the order of their positions matters; all others pass through.

use crate::graph::Node;
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, microsoft, onnx,
};

fn types_trilu() -> &'static [OpType] {
    const { &[onnx("Trilu"), microsoft("Trilu")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_trilu, |node| Ok(Box::new(Trilu::parse(node))))];

#[derive(Debug)]
struct Trilu {
    input_count: usize,
}

impl Trilu {
    fn parse(node: &Node) -> Self {
        Self { input_count: node.inputs.len() }
    }
}

impl Operator for Trilu {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.separated(0)?;
        let rows = layout.rank().saturating_sub(2);
        layout.axes[rows..]
            .iter()
            .for_each(|axis| cx.keep(axis, "Trilu selects elements by their positions along this axis"));
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let mut inputs = vec![cx.dy()?];
        inputs.extend((1..self.input_count).map(|slot| cx.input(slot)));
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let dx = cx.same_op(&inputs);
        cx.add_gradient(0, dx);
        Ok(())
    }
}
