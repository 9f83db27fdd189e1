//! # Squeeze
//! Removes axes of size one.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Squeeze.html>. All opsets (`axes` is an input from 13).
//!
//! Coupling: every axis passes through to its new position.

pub(in crate::ops::standard) mod axes;

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::operator::couple::grid::{Grid, GridCx};
use crate::operator::couple::layout::Layout;
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PreimageCx, ReferenceCx, Registration, RuleError, onnx,
};
use axes::{Axes, ascending};

fn types_squeeze() -> &'static [OpType] {
    const { &[onnx("Squeeze")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::new(types_squeeze, |node| Ok(Box::new(Squeeze::parse(node))))];

#[derive(Debug)]
struct Squeeze {
    /// The axes to remove; if the node states none, all of size one.
    axes: Axes,
}

impl Squeeze {
    fn parse(node: &Node) -> Self {
        Self { axes: Axes::parse(node) }
    }
}

impl Operator for Squeeze {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let axes = self.axes.to_infer(cx)?.map(|axes| ascending(&axes, shape.len())).transpose()?;
        let goes = |at: usize, size: &Dim| axes.as_ref().map_or(size.is(1), |axes| axes.contains(&at));
        if let Some(size) =
            shape.iter().enumerate().find(|(at, size)| goes(*at, size) && size.as_const().is_some_and(|s| s != 1))
        {
            return Err(RuleError::invalid(format!(
                "axis {} has size {}: only axes of size 1 can be removed",
                size.0, size.1
            )));
        }
        let rest = shape.iter().enumerate().filter(|(at, size)| !goes(*at, size)).map(|(_, size)| size.clone());
        let input = cx.input(0)?;
        let fact = Fact::new(input.dtype, rest.collect()).with_known(input.known.clone());
        cx.set(0, fact);
        Ok(())
    }

    fn grid(&self, cx: &GridCx<'_>) -> Option<Grid> {
        cx.reshaped()
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        let shape = cx.fact(0).and_then(|fact| fact.shape.clone()).ok_or(RuleError::UnknownShape)?;
        let axes = self.axes.named(cx.ints(1)).map(|axes| ascending(&axes, layout.rank())).transpose()?;
        let goes = |at: usize| match &axes {
            Some(axes) => axes.contains(&at),
            None => shape.get(at).is_some_and(|size| size.is(1)),
        };
        let rest = layout.axes.iter().enumerate().filter(|(at, _)| !goes(*at)).map(|(_, axis)| axis.clone());
        cx.set(0, Layout { axes: rest.collect() });
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
