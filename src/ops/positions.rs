//! # Operators on positions
//! Trilu, CumSum and random numbers of a value's shape: every axis passes through, but the order or number of positions
//! matters.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Trilu.html>, <https://onnx.ai/onnx/operators/onnx__CumSum.html>.
//!
//! Coupling: the last two axes of a Trilu and the summed axis of a CumSum stay; all others pass through.

use crate::couple::CoupleCx;
use crate::dim::Dim;
use crate::fact::Fact;
use crate::graph::Node;
use crate::onnx::DataType;
use crate::operator::{InferCx, OpType, Operator, RuleError, axis_index, onnx};
use crate::verify::reference::ReferenceCx;

pub(super) static RULES: &[&dyn Operator] = &[&Positions];

struct Positions;

impl Operator for Positions {
    fn op_types(&self) -> &'static [OpType] {
        const { &[onnx("Trilu"), onnx("CumSum"), onnx("RandomNormalLike"), onnx("RandomUniformLike")] }
    }

    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let own = cx.input(0)?.dtype;
        let dtype = node.proto.int("dtype").and_then(|to| DataType::try_from(i32::try_from(to).ok()?).ok());
        cx.set(0, Fact::new(dtype.unwrap_or(own), shape));
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.separated(0)?;
        let rank = layout.rank();
        let stay: Vec<usize> = match node.proto.op_type.as_str() {
            "Trilu" => (rank.saturating_sub(2)..rank).collect(),
            "CumSum" => {
                let axis = cx.ints(1).and_then(|axis| axis.first()).and_then(Dim::as_const);
                vec![axis_index(axis.ok_or(RuleError::UnknownShape)?, rank)?]
            }
            _ => {
                return Err(RuleError::unsupported("random numbers can't be compared before and after a cut"));
            }
        };
        stay.into_iter().for_each(|axis| cx.keep(&layout.axes[axis], "counts positions"));
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }
}
