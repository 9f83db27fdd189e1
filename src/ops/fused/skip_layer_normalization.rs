//! # SkipLayerNormalization and SkipSimplifiedLayerNormalization
//! `S = input + skip + bias`, `Y = gamma * (S - mean) / sqrt(variance + epsilon) + beta`, or
//! `Y = gamma * S / sqrt(mean(S^2) + epsilon)` for the simplified form, over the last axis.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft.
//!
//! Coupling: all inputs broadcast to Y and S. The norm acts on the kept channels.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::onnx::DataType;
use crate::operator::couple::CoupleCx;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, microsoft};

fn types_skiplayernormalization() -> &'static [OpType] {
    const { &[microsoft("SkipLayerNormalization"), microsoft("SkipSimplifiedLayerNormalization")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::of_node(types_skiplayernormalization, &SkipLayerNormalization)];

struct SkipLayerNormalization;

/// The slots of gamma, beta and bias; the simplified form has no beta.
fn parameters(node: &Node) -> (usize, Option<usize>, usize) {
    if node.proto.op_type == "SkipLayerNormalization" { (2, Some(3), 4) } else { (2, None, 3) }
}

impl NodeRules for SkipLayerNormalization {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let Some(channels) = shape.last() else {
            return Err(RuleError::invalid("a scalar has no channels to normalise"));
        };
        let (gamma, beta, bias) = parameters(node);
        for slot in [Some(gamma), beta, Some(bias)].into_iter().flatten() {
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

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if node.output(1).is_some() || node.output(2).is_some() {
            return Err(RuleError::unsupported("its mean or deviation is read"));
        }
        let slots: Vec<usize> = (0..node.inputs.len()).collect();
        let layout = cx.broadcast(&slots)?;
        cx.set(3, layout.clone());
        cx.set(0, layout);
        Ok(())
    }

    fn reference(&self, node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let slots: Vec<usize> = (0..node.inputs.len()).collect();
        let Some(mask) = cx.common_mask(&slots) else {
            return Ok(());
        };
        let (gamma, beta, bias) = parameters(node);
        let mut sum = cx.zeroed_float(0);
        for slot in [1, bias] {
            if node.input(slot).is_some() {
                let other = cx.zeroed_float(slot);
                sum = cx.add("Add", &[&sum, &other], vec![]);
            }
        }
        let last = cx.rank(0)? as i64 - 1;
        let mut y = cx.norm_of(&sum, Some(&mask), &[last], node.float("epsilon", 1e-12), beta.is_some());
        for (slot, op_type) in [(Some(gamma), "Mul"), (beta, "Add")] {
            if let Some(slot) = slot.filter(|slot| node.input(*slot).is_some()) {
                let parameter = cx.zeroed_float(slot);
                y = cx.add(op_type, &[&y, &parameter], vec![]);
            }
        }
        let full = cx.mask_of(&sum, Some(&mask));
        cx.emit_floats(&[(0, y), (3, sum)]);
        cx.set_mask(0, full.clone());
        cx.set_mask(3, full);
        Ok(())
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        if cx.dy_of(1).is_some() || cx.dy_of(2).is_some() {
            return Err(RuleError::unsupported("its mean and deviation have no gradient"));
        }
        let shape = cx.shape(0)?;
        let axes = [shape.len() - 1];
        let (gamma, beta, bias) = parameters(node);
        let terms = [0, 1, bias];
        let mut by_sum = cx.dy_of(3);
        if let Some(dy) = cx.dy_of(0) {
            let mut sum = cx.input(0);
            for slot in &terms[1..] {
                if !cx.input(*slot).is_empty() {
                    sum = cx.op("Add", &[&sum, &cx.input(*slot)]);
                }
            }
            let epsilon = f64::from(node.float("epsilon", 1e-12));
            let norm = cx.normalized(&sum, &shape, &axes, epsilon, beta.is_some(), None);
            if cx.wants(gamma) {
                let product = cx.mul(&dy, &norm.y);
                cx.give_broadcast(gamma, &product)?;
            }
            if let Some(beta) = beta.filter(|beta| cx.wants(*beta)) {
                cx.give_broadcast(beta, &dy)?;
            }
            let g = cx.mul(&dy, &cx.input(gamma));
            let through = cx.through_norm(&norm, &g, &axes);
            by_sum = Some(match by_sum {
                Some(direct) => cx.op("Add", &[&direct, &through]),
                None => through,
            });
        }
        let by_sum = by_sum.ok_or_else(|| RuleError::unsupported("the loss depends on a secondary output"))?;
        for slot in terms.into_iter().filter(|slot| cx.wants(*slot)).collect::<Vec<_>>() {
            cx.give_broadcast(slot, &by_sum)?;
        }
        Ok(())
    }
}
