//! # Gemm
//! `Y = alpha * A' * B' + beta * C`, matrices only.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Gemm.html>. Opsets 7 and later.
//!
//! Coupling: the columns of A' are the rows of B'; C broadcasts to Y.

use crate::graph::Node;
use crate::graph::fact::Fact;
use crate::onnx::attr_ints;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::Layout;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::macs::MacsCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{Folding, NodeRules, OpType, Registration, RuleError, microsoft, onnx};

fn types_gemm() -> &'static [OpType] {
    const { &[onnx("Gemm"), microsoft("FusedGemm")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_gemm, &Gemm)];

struct Gemm;

/// The positions of rows and columns of an operand of a Gemm.
fn rows_columns(node: &Node, attribute: &str) -> (usize, usize) {
    if node.int(attribute, 0) != 0 { (1, 0) } else { (0, 1) }
}

impl NodeRules for Gemm {
    fn sums_products(&self) -> bool {
        true
    }

    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (a, b) = (cx.shape(0)?, cx.shape(1)?);
        if a.len() != 2 || b.len() != 2 {
            return Err(RuleError::invalid(format!(
                "A and B must be matrices, their ranks are {} and {}",
                a.len(),
                b.len()
            )));
        }
        let ((m, k), (l, n)) = (rows_columns(node, "transA"), rows_columns(node, "transB"));
        if let (Some(k), Some(l)) = (a[k].as_const(), b[l].as_const())
            && k != l
        {
            return Err(RuleError::invalid(format!("A' has {k} columns, B' has {l} rows")));
        }
        let dtype = cx.input(0)?.dtype;
        cx.set(0, Fact::new(dtype, vec![a[m].clone(), b[n].clone()]));
        Ok(())
    }

    fn folding(&self, _node: &Node) -> Folding {
        Folding::Mixes
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let (a, b) = (cx.separated(0)?, cx.separated(1)?);
        let ((m, k), (l, n)) = (rows_columns(node, "transA"), rows_columns(node, "transB"));
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

    fn macs(&self, node: &Node, cx: &MacsCx<'_>) -> f64 {
        let (_, k) = rows_columns(node, "transA");
        let k = cx.input(0).and_then(|a| a.get(k)).map_or(0.0, |k| *k as f64);
        let bias = if cx.input(2).is_some() { 1.0 } else { 0.0 };
        cx.output_elements(0) * (k + bias)
    }

    fn reference(&self, node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let replaced = [(0, cx.zeroed(0)), (1, cx.zeroed(1))];
        cx.emit(&replaced);
        let mut masks = Vec::new();
        for (slot, attribute, is_left) in [(0, "transA", true), (1, "transB", false)] {
            let Some(mut mask) = cx.mask(slot) else {
                continue;
            };
            if rows_columns(node, attribute) == (1, 0) {
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

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (trans_a, trans_b) = (node.int("transA", 0) != 0, node.int("transB", 0) != 0);
        let (alpha, beta) = (f64::from(node.float("alpha", 1.0)), f64::from(node.float("beta", 1.0)));
        let (a, b, mut dy) = (cx.input(0), cx.input(1), cx.dy()?);
        if let Some(activation) = node.proto.string("activation") {
            let parameters: Vec<f32> =
                ["activation_alpha", "activation_beta"].iter().filter_map(|name| node.proto.float(name)).collect();
            dy = cx.through_fused_activation(activation, &parameters, &dy, &cx.output(0))?;
        }
        let scaled = cx.scaled(&dy, alpha);
        if cx.wants(0) {
            let da = if trans_a { cx.gemm(&b, &scaled, trans_b, true) } else { cx.gemm(&scaled, &b, false, !trans_b) };
            cx.give(0, da);
        }
        if cx.wants(1) {
            let db = if trans_b { cx.gemm(&scaled, &a, true, trans_a) } else { cx.gemm(&a, &scaled, !trans_a, false) };
            cx.give(1, db);
        }
        if cx.wants(2) {
            let dc = cx.scaled(&dy, beta);
            cx.give_broadcast(2, &dc)?;
        }
        Ok(())
    }
}
