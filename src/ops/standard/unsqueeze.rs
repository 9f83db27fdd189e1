//! # Unsqueeze
//! Inserts axes of size one.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Unsqueeze.html>. All opsets (`axes` is an input from 13).
//!
//! Coupling: every axis passes through to its new position.

use super::squeeze::axes::{Axes, ascending};
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::operator::couple::grid::{Grid, GridCx};
use crate::operator::couple::layout::{Axis, Layout};
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PreimageCx, ReferenceCx, Registration, RuleError, onnx,
};

fn types_unsqueeze() -> &'static [OpType] {
    const { &[onnx("Unsqueeze")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_unsqueeze, |node| Ok(Box::new(Unsqueeze::parse(node))))];

#[derive(Debug)]
struct Unsqueeze {
    /// The positions of the new axes in the output.
    axes: Axes,
}

impl Unsqueeze {
    fn parse(node: &Node) -> Self {
        Self { axes: Axes::parse(node) }
    }
}

/// Inserts `new` at the stated positions of the output.
fn insert<T: Clone>(old: &[T], named: &[Dim], new: &T) -> Result<Vec<T>, RuleError> {
    let rank = old.len() + named.len();
    let axes = ascending(named, rank)?;
    let mut rest = old.iter();
    Ok((0..rank).filter_map(|at| if axes.contains(&at) { Some(new.clone()) } else { rest.next().cloned() }).collect())
}

impl Operator for Unsqueeze {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let named = self.axes.to_infer(cx)?.ok_or(RuleError::UnknownShape)?;
        let input = cx.input(0)?;
        let fact = Fact::new(input.dtype, insert(&shape, &named, &Dim::from(1))?).with_known(input.known.clone());
        cx.set(0, fact);
        Ok(())
    }

    fn grid(&self, cx: &GridCx<'_>) -> Option<Grid> {
        cx.reshaped()
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        let named = self.axes.named(cx.ints(1)).ok_or(RuleError::UnknownShape)?;
        cx.set(0, Layout { axes: insert(&layout.axes, &named, &Axis::new())? });
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.moves(&[0]);
        Ok(())
    }

    fn preimage(&self, cx: &mut PreimageCx<'_>) -> Result<(), RuleError> {
        cx.same_elements()
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let dx = cx.reshape(&dy, &shape);
        cx.add_gradient(0, dx);
        Ok(())
    }
}
