//! # BatchNormalization
//! `Y = scale * (X - mean) / sqrt(variance + epsilon) + B` with stored moments, as at inference.
//! Spec: <https://onnx.ai/onnx/operators/onnx__BatchNormalization.html>. Opsets 7 and later.
//!
//! Coupling: axis 1 of X and all parameters are one; the other axes pass through.

use crate::graph::Node;
use crate::operator::{CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_batchnormalization() -> &'static [OpType] {
    const { &[onnx("BatchNormalization")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_batchnormalization, |node| Ok(Box::new(BatchNormalization::parse(node))))];

#[derive(Debug)]
struct BatchNormalization {
    epsilon: f32,
    is_training: bool,
}

impl BatchNormalization {
    fn parse(node: &Node) -> Self {
        Self { epsilon: node.float("epsilon", 1e-5), is_training: node.int("training_mode", 0) != 0 }
    }
}

impl Operator for BatchNormalization {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        if shape.len() < 2 {
            return Err(RuleError::invalid(format!("X must have rank 2 or more, found {}", shape.len())));
        }
        for slot in 1..5 {
            cx.expect_vector(slot, Some(&shape[1]))?;
        }
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        if self.is_training {
            return Err(RuleError::unsupported("the node is in training mode; export the model for inference"));
        }
        let x = cx.separated(0)?;
        for slot in 1..5 {
            let parameter = cx.separated(slot)?;
            cx.tie(&x.axes[1], &parameter.axes[0]);
        }
        cx.set(0, x);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        // Every channel is normalised on its own with stored moments, so only the mask is passed on.
        cx.elementwise(&[0])
    }

    fn scales(&self, slot: usize) -> bool {
        slot == 1
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        if self.is_training {
            return Err(RuleError::unsupported("the node is in training mode; export the model for inference"));
        }
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let per_channel: Vec<i64> = (0..shape.len()).map(|axis| if axis == 1 { shape[1] } else { 1 }).collect();
        let others: Vec<usize> = (0..shape.len()).filter(|axis| *axis != 1).collect();
        let epsilon = cx.scalar(f64::from(self.epsilon));
        let variance = cx.op("Add", &[&cx.input(4), &epsilon]);
        let deviation = cx.op("Sqrt", &[&variance]);
        let deviation = cx.reshape(&deviation, &per_channel);
        if cx.wants(0) {
            let scale = cx.reshape(&cx.input(1), &per_channel);
            let derivative = cx.op("Div", &[&scale, &deviation]);
            let dx = cx.mul(&dy, &derivative);
            cx.add_gradient(0, dx);
        }
        if cx.wants(1) || cx.wants(4) {
            let mean = cx.reshape(&cx.input(3), &per_channel);
            let centred = cx.op("Sub", &[&cx.input(0), &mean]);
            let normalized = cx.op("Div", &[&centred, &deviation]);
            let product = cx.mul(&dy, &normalized);
            let dscale = cx.reduce_sum(&product, &others, false);
            // With respect to the variance: -scale / (2 (variance + epsilon)) times the same sum.
            let derivative = cx.op("Div", &[&cx.input(1), &variance]);
            let derivative = cx.scaled(&derivative, -0.5);
            let dvariance = cx.mul(&derivative, &dscale);
            cx.add_gradient(4, dvariance);
            cx.add_gradient(1, dscale);
        }
        if cx.wants(2) || cx.wants(3) {
            let db = cx.reduce_sum(&dy, &others, false);
            // With respect to the mean: -scale / deviation times the same sum.
            let derivative = cx.op("Sqrt", &[&variance]);
            let derivative = cx.op("Div", &[&cx.input(1), &derivative]);
            let dmean = cx.mul(&derivative, &db);
            let dmean = cx.op("Neg", &[&dmean]);
            cx.add_gradient(3, dmean);
            cx.add_gradient(2, db);
        }
        Ok(())
    }
}
