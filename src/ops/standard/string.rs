//! # RegexFullMatch, StringConcat, StringNormalizer and StringSplit
//! Operators on strings.
//! Spec: <https://onnx.ai/onnx/operators/onnx__StringConcat.html>,
//! <https://onnx.ai/onnx/operators/onnx__StringSplit.html>, <https://onnx.ai/onnx/operators/onnx__RegexFullMatch.html>,
//! <https://onnx.ai/onnx/operators/onnx__StringNormalizer.html>. Opsets 10 (StringNormalizer) and 20 and later.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::onnx::DataType;
use crate::operator::{InferCx, OpType, Operator, Registration, RuleError, onnx};

fn types_string() -> &'static [OpType] {
    const { &[onnx("RegexFullMatch"), onnx("StringConcat"), onnx("StringNormalizer"), onnx("StringSplit")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_string, |node| Ok(Box::new(Text::parse(node))))];

#[derive(Debug)]
struct Text {
    form: Form,
}

impl Text {
    fn parse(node: &Node) -> Self {
        let form = match node.proto.op_type.as_str() {
            "RegexFullMatch" => Form::Matches,
            "StringConcat" => Form::Joins,
            "StringSplit" => Form::Splits,
            _ => Form::Normalizes,
        };
        Self { form }
    }
}

/// The operation on strings.
#[derive(Clone, Copy, Debug)]
enum Form {
    Matches,
    Joins,
    Normalizes,
    Splits,
}

impl Operator for Text {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        match self.form {
            Form::Matches => cx.set_shape(0, DataType::Bool, shape),
            Form::Joins => {
                let other = cx.shape(1)?;
                let shape = cx.broadcast(&[shape, other])?;
                cx.set_shape(0, DataType::String, shape);
            }
            Form::Normalizes => {
                // Stop words are dropped.
                let mut shape = shape;
                if let Some(size) = shape.last_mut() {
                    *size = cx.fresh();
                }
                cx.set_shape(0, DataType::String, shape);
            }
            Form::Splits => {
                cx.set_shape(1, DataType::Int64, shape.clone());
                let parts = [shape, vec![cx.fresh()]].concat();
                cx.set_shape(0, DataType::String, parts);
            }
        }
        Ok(())
    }
}
