//! # TfIdfVectorizer
//! Counts of n-grams in a text, or weights computed from them.
//! Spec: <https://onnx.ai/onnx/operators/onnx__TfIdfVectorizer.html>. Opsets 9 and later.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::DataType;
use crate::operator::{InferCx, OpType, Operator, Registration, RuleError, onnx};

fn types_tf_idf_vectorize() -> &'static [OpType] {
    const { &[onnx("TfIdfVectorizer")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_tf_idf_vectorize, |node| Ok(Box::new(TfIdfVectorizer::parse(node))))];

#[derive(Debug)]
struct TfIdfVectorizer {
    /// The number of n-grams that are counted.
    size: i64,
}

impl TfIdfVectorizer {
    fn parse(node: &Node) -> Self {
        let indices = node.proto.ints("ngram_indexes").unwrap_or_default();
        Self { size: indices.iter().copied().max().map_or(0, |last| last.saturating_add(1)) }
    }
}

impl Operator for TfIdfVectorizer {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let mut shape = cx.shape(0)?;
        shape.pop();
        shape.push(Dim::from(self.size));
        cx.set_shape(0, DataType::Float, shape);
        Ok(())
    }
}
