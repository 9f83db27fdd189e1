//! # ConstantOfShape
//! A tensor of a given shape filled with one value.
//! Spec: <https://onnx.ai/onnx/operators/onnx__ConstantOfShape.html>. Opsets 9 and later.
//!
//! Coupling: static axes are free; they follow whatever the tensor meets, and the shape is patched.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, KNOWN_LIMIT, Known};
use crate::onnx::DataType;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::infer::InferCx;
use crate::operator::patch::PatchCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, onnx};

fn types_constantofshape() -> &'static [OpType] {
    const { &[onnx("ConstantOfShape")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_constantofshape, &ConstantOfShape)];

struct ConstantOfShape;

impl NodeRules for ConstantOfShape {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let tensor = node.proto.tensor("value");
        let dtype = tensor.map_or(DataType::Float, |tensor| tensor.element_type());
        let shape = match cx.ints(0) {
            Some(sizes) => sizes.to_vec(),
            None => {
                let rank = cx.shape(0)?.first().and_then(Dim::as_const).ok_or(RuleError::UnknownShape)?;
                (0..rank.clamp(0, 64)).map(|_| cx.fresh()).collect()
            }
        };
        let count = crate::graph::dim::product(&shape).as_const().and_then(|count| usize::try_from(count).ok());
        let value = tensor
            .and_then(|tensor| crate::graph::tensor::elements(dtype, &tensor.raw_data))
            .and_then(|known| known.ints().and_then(|values| values.first().cloned()));
        let value = value.or_else(|| {
            let tensor = tensor?;
            tensor
                .int64_data
                .first()
                .copied()
                .or_else(|| tensor.int32_data.first().map(|v| i64::from(*v)))
                .map(Dim::from)
        });
        let known = match (value, count) {
            (Some(value), Some(count)) if count <= KNOWN_LIMIT => Some(Known::Ints(vec![value; count])),
            _ => None,
        };
        cx.set(0, Fact::new(dtype, shape).with_known(known));
        Ok(())
    }

    fn couple(&self, _node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let shape = cx.output_shape(0)?;
        let is_float = cx.output_fact(0).is_some_and(Fact::is_float);
        let is_free = is_float && shape.len() > 1;
        let axes = shape.iter().map(|size| if is_free { cx.repeated_axis(size) } else { fixed_axis(size) }).collect();
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn patch(&self, _node: &Node, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        super::reshape::patch_target(cx, 0)
    }

    fn reference(&self, _node: &Node, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // Every element is the same, so none has to be masked.
        Ok(())
    }
}
