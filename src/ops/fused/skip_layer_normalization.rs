//! # SkipLayerNormalization and SkipSimplifiedLayerNormalization
//! `S = input + skip + bias`, `Y = gamma * (S - mean) / sqrt(variance + epsilon) + beta`, or
//! `Y = gamma * S / sqrt(mean(S^2) + epsilon)` for the simplified form, over the last axis.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft.
//!
//! Coupling: all inputs are broadcast to Y and S. The norm acts on the kept channels.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::DataType;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::Axis;
use crate::operator::infer::InferCx;
use crate::operator::lower::LowerCx;
use crate::operator::{OpType, Operator, Registration, RuleError, microsoft};

fn types_centred() -> &'static [OpType] {
    const { &[microsoft("SkipLayerNormalization")] }
}

fn types_simplified() -> &'static [OpType] {
    const { &[microsoft("SkipSimplifiedLayerNormalization")] }
}

pub(super) static RULES: &[Registration] = &[
    Registration::new(types_centred, |node| SkipLayerNormalization::parse(node, Some(3), 4)),
    Registration::new(types_simplified, |node| SkipLayerNormalization::parse(node, None, 3)),
];

const SKIP: usize = 1;
const GAMMA: usize = 2;

#[derive(Debug)]
struct SkipLayerNormalization {
    epsilon: f32,
    /// The input that is added to the result; `None` for the simplified form, which does not subtract the mean either.
    beta: Option<usize>,
    /// The input that is added before the norm.
    bias: usize,
    inputs: usize,
    /// Whether the mean or the deviation output is used.
    has_moments: bool,
}

impl SkipLayerNormalization {
    fn parse(node: &Node, beta: Option<usize>, bias: usize) -> Result<Box<dyn Operator>, RuleError> {
        Ok(Box::new(Self {
            epsilon: node.float("epsilon", 1e-12),
            beta,
            bias,
            inputs: node.inputs.len(),
            has_moments: node.uses_output(1) || node.uses_output(2),
        }))
    }
}

impl Operator for SkipLayerNormalization {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let Some(channels) = shape.last() else {
            return Err(RuleError::invalid("a scalar has no channels to normalise"));
        };
        for slot in [Some(GAMMA), self.beta, Some(self.bias)].into_iter().flatten() {
            cx.expect_vector(slot, Some(channels))?;
        }
        let mut statistics = shape.clone();
        statistics.pop();
        statistics.push(Dim::from(1));
        cx.set_shape(1, DataType::Float, statistics.clone());
        cx.set_shape(2, DataType::Float, statistics);
        cx.set_shape(3, dtype, shape.clone());
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if self.has_moments {
            return Err(RuleError::unsupported("its mean or deviation output is used"));
        }
        let slots: Vec<usize> = (0..self.inputs).collect();
        let layout = cx.broadcast(&slots)?;
        let mut moments = layout.clone();
        moments.axes.pop();
        moments.axes.push(Axis::new());
        cx.set(1, moments.clone());
        cx.set(2, moments);
        cx.set(3, layout.clone());
        cx.set(0, layout);
        Ok(())
    }

    fn lower(&self, cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        if self.has_moments {
            return Err(RuleError::unsupported("its mean or deviation output is used"));
        }
        let rank = cx.rank(0)?;
        let sum = cx.sum_of(&[0, SKIP, self.bias]);
        let gamma = cx.float(GAMMA);
        let y = match self.beta {
            Some(slot) => {
                let beta = cx.has(slot).then(|| cx.float(slot));
                cx.layer_norm(&sum, rank, self.epsilon, &gamma, beta.as_deref())
            }
            None => cx.root_mean_square_norm(&sum, rank, self.epsilon, &gamma),
        };
        cx.emit(0, &y);
        cx.emit(3, &sum);
        Ok(true)
    }
}
