//! # Identity, Cast, CastLike and Dropout
//! The same elements, for Cast in another type. Dropout does nothing at inference.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Cast.html>. All opsets.
//!
//! Coupling: every axis passes through.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known};
use crate::onnx::DataType;
use crate::operator::couple::CoupleCx;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{Folding, NodeRules, OpType, Registration, RuleError, onnx};

fn types_identity() -> &'static [OpType] {
    const { &[onnx("Identity"), onnx("Cast"), onnx("CastLike"), onnx("Dropout")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_identity, &Identity)];

struct Identity;

impl NodeRules for Identity {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let input = cx.input(0)?.clone();
        let dtype = match node.proto.op_type.as_str() {
            "Cast" => i32::try_from(node.int("to", 0)).ok().and_then(|to| DataType::try_from(to).ok()),
            "CastLike" => cx.optional(1).map(|like| like.dtype),
            _ => Some(input.dtype),
        };
        let dtype = dtype.ok_or_else(|| RuleError::invalid("casts to a type that is not known"))?;
        let known = input.known.clone().and_then(|known| cast(known, dtype));
        let fact = Fact { dtype, shape: input.shape.clone(), known: None };
        if node.proto.op_type == "Dropout" {
            cx.set(1, Fact { dtype: DataType::Bool, ..fact.clone() });
        }
        cx.set(0, fact.with_known(known));
        Ok(())
    }

    fn folding(&self, node: &Node) -> Folding {
        let may_train = node.proto.op_type == "Dropout" && node.input(2).is_some();
        if may_train { Folding::Never } else { Folding::Passes }
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if node.proto.op_type == "Dropout" && cx.ints(2).and_then(|training| training.first()).is_some_and(|t| !t.is(0))
        {
            return Err(RuleError::unsupported("it is in training mode"));
        }
        let layout = cx.layout(0)?;
        cx.set(1, layout.clone());
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }

    fn gradient(&self, _node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        // The mask of a Dropout is its second output; at inference it lets everything pass.
        let dy = cx.dy()?;
        cx.give(0, dy);
        Ok(())
    }
}

/// Known elements in another type.
fn cast(known: Known, dtype: DataType) -> Option<Known> {
    let to_float = crate::graph::fact::is_float(dtype);
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
            // ONNX truncates towards zero; what does not fit is undefined.
            Some(Known::Ints(values.iter().map(|value| Dim::from(*value as i64)).collect()))
        }
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values_survive_casts_where_they_can() {
        let half = || Known::Floats(vec![0.5, -1.5, 0.0]);
        let ints = |values: &[i64]| Some(Known::Ints(values.iter().copied().map(Dim::from).collect()));
        assert_eq!(cast(half(), DataType::Int64), ints(&[0, -1, 0]));
        assert_eq!(cast(half(), DataType::Bool), ints(&[1, 1, 0]));
        let size = Known::Ints(vec![Dim::symbol("N")]);
        assert_eq!(cast(size.clone(), DataType::Int32), Some(size.clone()));
        assert_eq!(cast(size, DataType::Float), None);
    }
}
