//! # QLinearAdd, QLinearMul, QLinearWhere, QLinearSigmoid, QLinearLeakyRelu and QLinearSoftmax
//! Elementwise operators and a softmax of quantised values.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::operator::{Folding, InferCx, OpType, Operator, Registration, RuleError, microsoft};

fn types_qlinear_elementwise() -> &'static [OpType] {
    const {
        &[
            microsoft("QLinearAdd"),
            microsoft("QLinearMul"),
            microsoft("QLinearWhere"),
            microsoft("QLinearSigmoid"),
            microsoft("QLinearLeakyRelu"),
            microsoft("QLinearSoftmax"),
        ]
    }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_qlinear_elementwise, |node| Ok(Box::new(QLinear::parse(node))))];

#[derive(Debug)]
struct QLinear {
    /// The inputs that hold values; the others are their scales and zero points.
    slots: &'static [usize],
    /// The input that determines the element type of the output.
    typed: usize,
}

impl QLinear {
    fn parse(node: &Node) -> Self {
        let (slots, typed): (&[usize], usize) = match node.proto.op_type.as_str() {
            "QLinearAdd" | "QLinearMul" => (&[0, 3], 0),
            "QLinearWhere" => (&[0, 1, 4], 1),
            _ => (&[0], 0),
        };
        Self { slots, typed }
    }
}

impl Operator for QLinear {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shapes = self.slots.iter().map(|slot| cx.shape(*slot)).collect::<Result<Vec<_>, _>>()?;
        let (dtype, shape) = (cx.input(self.typed)?.dtype, cx.broadcast(&shapes)?);
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }
}
