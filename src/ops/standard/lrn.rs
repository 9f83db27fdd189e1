//! # LRN
//! `Y = X / (bias + alpha / size * sum of X^2 over neighbouring channels)^beta`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__LRN.html>. All opsets.
//!
//! Coupling: axis 1 is kept, because a cut would change the neighbours of each channel; the other axes pass through.

use crate::graph::Node;
use crate::operator::{CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

fn types_lrn() -> &'static [OpType] {
    const { &[onnx("LRN")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_lrn, |node| Ok(Box::new(Lrn::parse(node))))];

#[derive(Debug)]
struct Lrn {
    /// The number of neighbouring channels.
    size: i64,
    alpha: f32,
    beta: f32,
    bias: f32,
}

impl Lrn {
    fn parse(node: &Node) -> Self {
        Self {
            size: node.int("size", 1).max(1),
            alpha: node.float("alpha", 1e-4),
            beta: node.float("beta", 0.75),
            bias: node.float("bias", 1.0),
        }
    }
}

impl Operator for Lrn {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        if shape.len() < 2 {
            return Err(RuleError::invalid(format!("X must have rank 2 or more, found {}", shape.len())));
        }
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let x = cx.separated(0)?;
        cx.keep(x.axes.get(1).ok_or(RuleError::UnknownShape)?, "LRN normalises every channel with its neighbours");
        cx.set(0, x);
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.elementwise(&[0])
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        // y = x s^-beta with s = bias + c * (sum of x^2 over the window), c = alpha / size.
        let (dy, x, shape) = (cx.dy()?, cx.input(0), cx.shape(0)?);
        let (size, beta, bias) = (self.size, f64::from(self.beta), f64::from(self.bias));
        let share = f64::from(self.alpha) / size as f64;
        let channels = shape[1];
        let (back, ahead) = ((size - 1) / 2, size / 2);
        let is_near = |at: i64| (-back..=ahead).contains(&(at % channels - at / channels));
        let window: Vec<f32> = (0..channels * channels).map(|at| if is_near(at) { 1.0 } else { 0.0 }).collect();
        let window = cx.floats(&window, &[channels, channels]);
        let reversed = cx.matrix_transpose(&window, 2);
        let square = cx.mul(&x, &x);
        let sum = cx.along_axis(&square, 1, shape.len(), &window);
        let (sum, bias) = (cx.scaled(&sum, share), cx.scalar(bias));
        let s = cx.op("Add", &[&sum, &bias]);
        let exponent = cx.scalar(-beta);
        let power = cx.op("Pow", &[&s, &exponent]);
        let direct = cx.mul(&dy, &power);
        // With respect to s: -beta dy x s^-beta / s, and from there to every x of the window.
        let by_s = cx.mul(&direct, &x);
        let by_s = cx.op("Div", &[&by_s, &s]);
        let spread = cx.along_axis(&by_s, 1, shape.len(), &reversed);
        let spread = cx.mul(&spread, &x);
        let spread = cx.scaled(&spread, -2.0 * beta * share);
        let dx = cx.op("Add", &[&direct, &spread]);
        cx.add_gradient(0, dx);
        Ok(())
    }
}
