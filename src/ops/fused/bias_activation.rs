//! # Fused activations of ONNX Runtime
//! BiasGelu, FastGelu, Gelu and BiasAdd: an elementwise function of a sum.
//! Spec: ONNX Runtime's contrib operators, domain com.microsoft. BiasAdd has no CPU kernel.
//!
//! Coupling: the bias broadcasts to X (and to the skip connection of BiasAdd).

use crate::graph::Node;
use crate::operator::couple::CoupleCx;
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, microsoft};

fn types_biasactivation() -> &'static [OpType] {
    const { &[microsoft("BiasGelu"), microsoft("FastGelu"), microsoft("Gelu"), microsoft("BiasAdd")] }
}

pub(super) static RULES: &[Registration] = &[Registration::of_node(types_biasactivation, &BiasActivation)];

struct BiasActivation;

impl NodeRules for BiasActivation {
    fn infer(&self, _node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let slots: Vec<usize> = (0..node.inputs.len()).collect();
        let layout = cx.broadcast(&slots)?;
        cx.set(0, layout);
        Ok(())
    }

    fn is_decomposed(&self, node: &Node) -> bool {
        node.proto.op_type == "BiasAdd"
    }

    fn reference(&self, node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let slots: Vec<usize> = (0..node.inputs.len()).collect();
        if self.is_decomposed(node) {
            let mut sum = cx.zeroed(0);
            for slot in slots.iter().skip(1) {
                let term = cx.zeroed(*slot);
                sum = cx.add("Add", &[&sum, &term], vec![]);
            }
            cx.emit_as(0, &sum);
        }
        cx.elementwise(&slots)
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let dy = cx.dy()?;
        let dx = if node.proto.op_type == "BiasAdd" {
            dy
        } else {
            let mut x = cx.input(0);
            if !cx.input(1).is_empty() {
                x = cx.op("Add", &[&x, &cx.input(1)]);
            }
            let slope = cx.gelu_slope(&x, node.proto.op_type == "FastGelu");
            cx.mul(&dy, &slope)
        };
        for slot in 0..node.inputs.len() {
            if cx.wants(slot) {
                cx.give_broadcast(slot, &dx)?;
            }
        }
        Ok(())
    }
}
