//! # ConstantOfShape
//! A tensor of a given shape, filled with one value.
//! Spec: <https://onnx.ai/onnx/operators/onnx__ConstantOfShape.html>. Opsets 9 and later.
//!
//! Coupling: static axes are free. They lose the same indices as the axes that the tensor meets, and the shape is
//! patched.

use crate::graph::Node;
use crate::graph::dim::{Dim, product};
use crate::graph::fact::{Fact, KNOWN_LIMIT, Known};
use crate::graph::tensor::elements;
use crate::onnx::{DataType, TensorProto};
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::{CoupleCx, InferCx, OpType, Operator, PatchCx, ReferenceCx, Registration, RuleError, onnx};

fn types_constantofshape() -> &'static [OpType] {
    const { &[onnx("ConstantOfShape")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_constantofshape, |node| Ok(Box::new(ConstantOfShape::parse(node))))];

#[derive(Debug)]
struct ConstantOfShape {
    dtype: DataType,
    /// The value, if it is an integer.
    value: Option<Dim>,
}

impl ConstantOfShape {
    fn parse(node: &Node) -> Self {
        let tensor = node.proto.tensor("value");
        let dtype = tensor.map_or(DataType::Float, TensorProto::element_type);
        let raw = |tensor: &TensorProto| elements(dtype, &tensor.raw_data)?.ints()?.first().cloned();
        let listed = |tensor: &TensorProto| {
            let narrow = || tensor.int32_data.first().map(|value| i64::from(*value));
            tensor.int64_data.first().copied().or_else(narrow).map(Dim::from)
        };
        Self { dtype, value: tensor.and_then(|tensor| raw(tensor).or_else(|| listed(tensor))) }
    }
}

impl Operator for ConstantOfShape {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = match cx.ints(0) {
            Some(sizes) => sizes.to_vec(),
            None => {
                let rank = cx.shape(0)?.first().and_then(Dim::as_const).ok_or(RuleError::UnknownShape)?;
                (0..rank.clamp(0, 64)).map(|_| cx.fresh()).collect()
            }
        };
        let count = product(&shape).as_const().and_then(|count| usize::try_from(count).ok());
        let known = match (&self.value, count) {
            (Some(value), Some(count)) if count <= KNOWN_LIMIT => Some(Known::Ints(vec![value.clone(); count])),
            _ => None,
        };
        cx.set(0, Fact::new(self.dtype, shape).with_known(known));
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let shape = cx.output_shape(0)?;
        let is_float = cx.output_fact(0).is_some_and(Fact::is_float);
        let is_free = is_float && shape.len() > 1;
        let axes = shape.iter().map(|size| if is_free { cx.repeated_axis(size) } else { fixed_axis(size) }).collect();
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        super::reshape::patch_target(cx, 0)
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // All elements are equal, so none has to be masked.
        Ok(())
    }
}
