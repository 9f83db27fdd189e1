//! # Gemm
//! `Y = alpha * A' * B' + beta * C`, matrices only.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Gemm.html>. Opsets 7 and later.
//!
//! Coupling: the columns of A' are the rows of B'; C is broadcast to Y.

use crate::graph::Node;
use crate::graph::fact::Fact;
use crate::onnx::attr_ints;
use crate::operator::couple::layout::Layout;
use crate::operator::linear::{Linear, LinearBias, LinearCx};
use crate::operator::lower::{Activation, LowerCx};
use crate::operator::{
    CoupleCx, Folding, GradientCx, InferCx, MacsCx, OpType, Operator, Quantized, ReferenceCx, Registration, RuleError,
    microsoft, onnx,
};

fn types_gemm() -> &'static [OpType] {
    const { &[onnx("Gemm"), microsoft("FusedGemm")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_gemm, |node| Ok(Box::new(Gemm::parse(node)))).summing_products()];

#[derive(Debug)]
struct Gemm {
    trans_a: bool,
    trans_b: bool,
    alpha: f32,
    beta: f32,
    /// The activation that a FusedGemm applies to the sum, with its parameters; `None` if there is none.
    activation: Option<Activation>,
    /// Whether it is a FusedGemm.
    is_fused: bool,
}

impl Gemm {
    fn parse(node: &Node) -> Self {
        Self {
            trans_a: node.int("transA", 0) != 0,
            trans_b: node.int("transB", 0) != 0,
            alpha: node.float("alpha", 1.0),
            beta: node.float("beta", 1.0),
            activation: Activation::with_attributes(node),
            is_fused: node.proto.op_type == "FusedGemm",
        }
    }
}

/// Returns the positions of rows and columns of an operand of a Gemm.
fn rows_columns(transposed: bool) -> (usize, usize) {
    if transposed { (1, 0) } else { (0, 1) }
}

impl Operator for Gemm {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (a, b) = (cx.shape(0)?, cx.shape(1)?);
        if a.len() != 2 || b.len() != 2 {
            return Err(RuleError::invalid(format!("A and B must have rank 2, found {} and {}", a.len(), b.len())));
        }
        let ((m, k), (l, n)) = (rows_columns(self.trans_a), rows_columns(self.trans_b));
        if !cx.equal(&a[k], &b[l]) {
            let (k, l) = (&a[k], &b[l]);
            return Err(RuleError::invalid(format!("A' has {k} columns, but B' has {l} rows")));
        }
        let dtype = cx.input(0)?.dtype;
        let shape = vec![a[m].clone(), b[n].clone()];
        if let Some(c) = cx.optional(2).and_then(|c| c.shape.clone()) {
            cx.broadcast(&[shape.clone(), c])?;
        }
        cx.set(0, Fact::new(dtype, shape));
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Mixes
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let (a, b) = (cx.separated(0)?, cx.separated(1)?);
        let ((m, k), (l, n)) = (rows_columns(self.trans_a), rows_columns(self.trans_b));
        cx.tie(&a.axes[k], &b.axes[l]);
        for (slot, layout, inner, outer) in [(0, &a, k, m), (1, &b, l, n)] {
            if cx.is_weight(slot) && !cx.is_weight(1 - slot) {
                cx.consumes(&layout.axes[inner]);
                cx.produces(&layout.axes[outer]);
            }
        }
        let product = Layout { axes: vec![a.axes[m].clone(), b.axes[n].clone()] };
        let mut layouts = vec![product];
        if cx.has(2) {
            layouts.push(cx.separated(2)?);
        }
        let layout = cx.tie_broadcast(&layouts);
        cx.set(0, layout);
        Ok(())
    }

    fn macs(&self, cx: &MacsCx<'_>) -> f64 {
        let (_, k) = rows_columns(self.trans_a);
        let k = cx.input(0).and_then(|a| a.get(k)).map_or(0.0, |k| *k as f64);
        let bias = if cx.input(2).is_some() { 1.0 } else { 0.0 };
        cx.output_elements(0) * (k + bias)
    }

    fn lower(&self, cx: &mut LowerCx<'_>) -> Result<bool, RuleError> {
        if !self.is_fused {
            return Ok(false);
        }
        let (a, b) = (cx.float(0), cx.float(1));
        let attributes = cx.attributes_without_activation();
        let y = cx.add_biased("Gemm", [&a, &b], attributes);
        let y = cx.activated(&y, self.activation.as_ref())?;
        cx.emit(0, &y);
        Ok(true)
    }

    fn quantized(&self, _weight_rank: usize) -> Option<Quantized> {
        let is_plain = !self.is_fused && !self.trans_a && self.alpha == 1.0 && self.beta == 1.0;
        is_plain.then_some(Quantized { data: 0, weight: 1, channels: if self.trans_b { 0 } else { 1 }, bias: 2 })
    }

    fn linear(&self, cx: &LinearCx<'_>) -> Option<Linear> {
        if self.is_fused {
            return None;
        }
        let slots = cx.weight_of(0, 1)?;
        // C has the columns of Y, which are outputs only if B is the weight.
        if slots.1 == 0 && cx.has(2) {
            return None;
        }
        let (a, b, y) = (cx.shape(0)?, cx.shape(1)?, cx.output_shape()?);
        let a_letters = if self.trans_a { ['k', 'm'] } else { ['m', 'k'] };
        let b_letters = if self.trans_b { ['n', 'k'] } else { ['k', 'n'] };
        let (x, w) =
            if slots.0 == 0 { ((&a_letters, &a), (&b_letters, &b)) } else { ((&b_letters, &b), (&a_letters, &a)) };
        let mut linear = Linear::of_letters(slots, [x.0, w.0, &['m', 'n']], [x.1, w.1, &y])?;
        linear.scale = f64::from(self.alpha);
        linear.bias = (slots.1 == 1).then_some(LinearBias { slot: 2, scale: f64::from(self.beta) });
        Some(linear)
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if self.is_fused {
            return Err(RuleError::unsupported("the fused form must be lowered first"));
        }
        let replaced = [(0, cx.zeroed(0)), (1, cx.zeroed(1))];
        cx.emit(&replaced);
        let mut masks = Vec::new();
        for (slot, transposed, is_left) in [(0, self.trans_a, true), (1, self.trans_b, false)] {
            let Some(mut mask) = cx.mask(slot) else {
                continue;
            };
            if transposed {
                mask = cx.add("Transpose", &[&mask], vec![attr_ints("perm", &[1, 0])]);
            }
            masks.push(cx.reduce("ReduceMax", &mask, &[if is_left { 1 } else { 0 }]));
        }
        if let Some(first) = masks.first().cloned() {
            let mask = masks.iter().skip(1).fold(first, |all, mask| cx.add("Mul", &[&all, mask], vec![]));
            cx.set_mask(0, mask);
        }
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (trans_a, trans_b) = (self.trans_a, self.trans_b);
        if self.is_fused {
            return Err(RuleError::unsupported("the fused form must be lowered first"));
        }
        let (a, b, dy) = (cx.input(0), cx.input(1), cx.dy()?);
        let scaled = cx.scaled(&dy, f64::from(self.alpha));
        if cx.wants(0) {
            let da = if trans_a { cx.gemm(&b, &scaled, trans_b, true) } else { cx.gemm(&scaled, &b, false, !trans_b) };
            cx.add_gradient(0, da);
        }
        if cx.wants(1) {
            let db = if trans_b { cx.gemm(&scaled, &a, true, trans_a) } else { cx.gemm(&a, &scaled, !trans_a, false) };
            cx.add_gradient(1, db);
        }
        if cx.wants(2) {
            let dc = cx.scaled(&dy, f64::from(self.beta));
            cx.add_broadcast_gradient(2, &dc)?;
        }
        Ok(())
    }
}
