//! # Transpose
//! Permutes the axes of a tensor.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Transpose.html>. All opsets.
//!
//! Coupling: every axis passes through to its new position.

use crate::graph::Node;
use crate::graph::fact::{Fact, permute, static_shape};
use crate::onnx::attr_ints;
use crate::operator::couple::layout::Layout;
use crate::operator::part::{Part, PartCx};
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PreimageCx, ReferenceCx, Registration, RuleError, axis_index, onnx,
};

fn types_transpose() -> &'static [OpType] {
    const { &[onnx("Transpose")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_transpose, |node| Ok(Box::new(Transpose::parse(node))))];

#[derive(Debug)]
struct Transpose {
    /// The axis of the input at each position of the output; `None`: the axes are reversed.
    perm: Option<Vec<i64>>,
}

impl Transpose {
    fn parse(node: &Node) -> Self {
        Self { perm: node.proto.ints("perm").map(<[i64]>::to_vec) }
    }

    /// Returns the axis of an input of rank `rank` at each position of the output.
    fn permutation(&self, rank: usize) -> Result<Vec<usize>, RuleError> {
        let Some(perm) = &self.perm else {
            return Ok((0..rank).rev().collect());
        };
        let perm = perm.iter().map(|axis| axis_index(*axis, rank)).collect::<Result<Vec<_>, _>>()?;
        let mut seen = perm.clone();
        seen.sort_unstable();
        if seen != (0..rank).collect::<Vec<_>>() {
            return Err(RuleError::invalid(format!("perm {perm:?} is not a permutation of {rank} axes")));
        }
        Ok(perm)
    }
}

impl Operator for Transpose {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let perm = self.permutation(shape.len())?;
        let input = cx.input(0)?;
        let known = input.known.as_ref().zip(static_shape(&shape));
        let known = known.and_then(|(known, sizes)| permute(known, &sizes, &perm));
        let fact = Fact::new(input.dtype, perm.iter().map(|axis| shape[*axis].clone()).collect()).with_known(known);
        cx.set(0, fact);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        let perm = self.permutation(layout.rank())?;
        cx.set(0, Layout { axes: perm.iter().map(|axis| layout.axes[*axis].clone()).collect() });
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        let perm = self.permutation(cx.rank(0)?)?;
        if let Some(mask) = cx.mask(0) {
            let perm: Vec<i64> = perm.iter().map(|axis| *axis as i64).collect();
            let mask = cx.add("Transpose", &[&mask], vec![attr_ints("perm", &perm)]);
            cx.set_mask(0, mask);
        }
        Ok(())
    }

    fn part(&self, cx: &PartCx<'_>) -> Option<Part> {
        self.permutation(cx.shape(0)?.len()).ok().map(Part::Transpose)
    }

    fn preimage(&self, cx: &mut PreimageCx<'_>) -> Result<(), RuleError> {
        let wanted = cx.wanted(0)?;
        let mut inverse = vec![0; wanted.ndim()];
        for (new, old) in self.permutation(wanted.ndim())?.into_iter().enumerate() {
            inverse[old] = new;
        }
        cx.set_input(0, wanted.permuted_axes(inverse))
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, rank) = (cx.dy()?, cx.shape(0)?.len());
        let perm = self.permutation(rank)?;
        let mut inverse = vec![0; rank];
        for (new, old) in perm.iter().enumerate() {
            inverse[*old] = new;
        }
        let dx = cx.transpose(&dy, &inverse);
        cx.add_gradient(0, dx);
        Ok(())
    }
}
