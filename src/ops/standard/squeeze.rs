//! # Squeeze and Unsqueeze
//! Remove or insert axes of size one.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Squeeze.html>. All opsets (`axes` is an input from 13).
//!
//! Coupling: every axis passes through to its new place.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Axis, Layout};
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, axis_index, onnx};

fn types_squeeze() -> &'static [OpType] {
    const { &[onnx("Squeeze")] }
}

fn types_unsqueeze() -> &'static [OpType] {
    const { &[onnx("Unsqueeze")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::of_node(types_squeeze, &Squeeze), Registration::of_node(types_unsqueeze, &Unsqueeze)];

/// The axes that the attribute or input 1 names, in ascending order.
fn axes_of(known: Option<Vec<Dim>>, rank: usize) -> Result<Option<Vec<usize>>, RuleError> {
    let Some(known) = known else { return Ok(None) };
    let mut axes = Vec::new();
    for axis in known {
        axes.push(axis_index(axis.as_const().ok_or(RuleError::UnknownShape)?, rank)?);
    }
    axes.sort_unstable();
    if axes.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(RuleError::invalid(format!("axes {axes:?} name an axis twice")));
    }
    Ok(Some(axes))
}

fn named(node: &Node, input: Option<&[Dim]>) -> Option<Vec<Dim>> {
    let attribute = node.proto.ints("axes").map(|axes| axes.iter().copied().map(Dim::from).collect());
    attribute.or_else(|| input.map(<[Dim]>::to_vec))
}

struct Squeeze;

impl NodeRules for Squeeze {
    fn infer(&self, _node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let axes = axes_of(cx.ints_of("axes", 1)?, shape.len())?;
        let goes = |at: usize, size: &Dim| axes.as_ref().map_or(size.is(1), |axes| axes.contains(&at));
        if let Some(size) =
            shape.iter().enumerate().find(|(at, size)| goes(*at, size) && size.as_const().is_some_and(|s| s != 1))
        {
            return Err(RuleError::invalid(format!("axis {} of size {} can't be removed", size.0, size.1)));
        }
        let rest = shape.iter().enumerate().filter(|(at, size)| !goes(*at, size)).map(|(_, size)| size.clone());
        let input = cx.input(0)?;
        let fact = Fact::new(input.dtype, rest.collect()).with_known(input.known.clone());
        cx.set(0, fact);
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        let shape = cx.fact(0).and_then(|fact| fact.shape.clone()).ok_or(RuleError::UnknownShape)?;
        let axes = axes_of(named(node, cx.ints(1)), layout.rank())?;
        let goes = |at: usize| match &axes {
            Some(axes) => axes.contains(&at),
            None => shape.get(at).is_some_and(|size| size.is(1)),
        };
        let rest = layout.axes.iter().enumerate().filter(|(at, _)| !goes(*at)).map(|(_, axis)| axis.clone());
        cx.set(0, Layout { axes: rest.collect() });
        Ok(())
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.moves(&[0]);
        Ok(())
    }

    fn gradient(&self, _node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let dx = cx.reshape(&dy, &shape);
        cx.give(0, dx);
        Ok(())
    }
}

struct Unsqueeze;

/// Inserts `new` at the named places of the output.
fn insert<T: Clone>(old: &[T], axes: &[usize], rank: usize, new: &T) -> Vec<T> {
    let mut rest = old.iter();
    (0..rank).filter_map(|at| if axes.contains(&at) { Some(new.clone()) } else { rest.next().cloned() }).collect()
}

impl NodeRules for Unsqueeze {
    fn infer(&self, _node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let named = cx.ints_of("axes", 1)?.ok_or(RuleError::UnknownShape)?;
        let rank = shape.len() + named.len();
        let axes = axes_of(Some(named), rank)?.unwrap_or_default();
        let input = cx.input(0)?;
        let fact = Fact::new(input.dtype, insert(&shape, &axes, rank, &Dim::from(1))).with_known(input.known.clone());
        cx.set(0, fact);
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.layout(0)?;
        let named = named(node, cx.ints(1)).ok_or(RuleError::UnknownShape)?;
        let rank = layout.rank() + named.len();
        let axes = axes_of(Some(named), rank)?.unwrap_or_default();
        cx.set(0, Layout { axes: insert(&layout.axes, &axes, rank, &Axis::new()) });
        Ok(())
    }

    fn reference(&self, _node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.moves(&[0]);
        Ok(())
    }

    fn gradient(&self, _node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, shape) = (cx.dy()?, cx.shape(0)?);
        let dx = cx.reshape(&dy, &shape);
        cx.give(0, dx);
        Ok(())
    }
}
