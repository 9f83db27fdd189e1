//! # Cast and CastLike
//! Casts the elements to another type: that of an attribute, or that of a second input.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Cast.html>, <https://onnx.ai/onnx/operators/onnx__CastLike.html>. All opsets.
//!
//! Coupling: every axis passes through.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known, is_float};
use crate::onnx::DataType;
use crate::operator::couple::grid::{Grid, GridCx};
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PreimageCx, ReferenceCx, Registration, RuleError, onnx,
};

fn types_cast() -> &'static [OpType] {
    const { &[onnx("Cast"), onnx("CastLike")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_cast, |node| Ok(Box::new(Cast::parse(node))))];

/// The type to which elements are cast.
#[derive(Debug)]
enum Cast {
    /// The type of an attribute; `None` if this version does not know it.
    To(Option<DataType>),
    /// The type of input 1.
    Like,
}

impl Cast {
    fn parse(node: &Node) -> Self {
        if node.proto.op_type == "CastLike" {
            return Self::Like;
        }
        Self::To(i32::try_from(node.int("to", 0)).ok().and_then(|to| DataType::try_from(to).ok()))
    }
}

impl Operator for Cast {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let input = cx.input(0)?.clone();
        let dtype = match self {
            Self::To(to) => *to,
            Self::Like => cx.optional(1).map(|like| like.dtype),
        };
        let dtype =
            dtype.ok_or_else(|| RuleError::invalid("the attribute to is no element type that this version knows"))?;
        let known = input.known.and_then(|known| cast(known, dtype));
        cx.set(0, Fact { dtype, shape: input.shape, known: None }.with_known(known));
        Ok(())
    }

    fn grid(&self, cx: &GridCx<'_>) -> Option<Grid> {
        cx.reshaped()
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        // CastLike takes only the element type from this input.
        cx.ignore(1);
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }

    fn preimage(&self, cx: &mut PreimageCx<'_>) -> Result<(), RuleError> {
        cx.same_elements()
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let dy = cx.dy()?;
        cx.add_gradient(0, dy);
        Ok(())
    }
}

/// Casts known elements to another type.
fn cast(known: Known, dtype: DataType) -> Option<Known> {
    let to_float = is_float(dtype);
    match known {
        Known::Ints(values) if to_float => values
            .iter()
            .map(|value| value.as_const().map(|value| value as f64))
            .collect::<Option<_>>()
            .map(Known::Floats),
        Known::Ints(values) if dtype == DataType::Bool => values
            .iter()
            .map(|value| value.as_const().map(|value| Dim::from(i64::from(value != 0))))
            .collect::<Option<_>>()
            .map(Known::Ints),
        Known::Floats(values) if dtype == DataType::Bool => {
            Some(Known::Ints(values.iter().map(|value| Dim::from(i64::from(*value != 0.0))).collect()))
        }
        Known::Floats(values) if !to_float => {
            // ONNX truncates towards zero; values out of range are undefined.
            Some(Known::Ints(values.iter().map(|value| Dim::from(*value as i64)).collect()))
        }
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values_are_cast_unless_the_result_is_undetermined() {
        let half = || Known::Floats(vec![0.5, -1.5, 0.0]);
        let ints = |values: &[i64]| Some(Known::Ints(values.iter().copied().map(Dim::from).collect()));
        assert_eq!(cast(half(), DataType::Int64), ints(&[0, -1, 0]));
        assert_eq!(cast(half(), DataType::Bool), ints(&[1, 1, 0]));
        let size = Known::Ints(vec![Dim::symbol("N")]);
        assert_eq!(cast(size.clone(), DataType::Int32), Some(size.clone()));
        assert_eq!(cast(size, DataType::Float), None);
    }
}
