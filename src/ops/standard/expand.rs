//! # Expand
//! Repeats axes of size one, with numpy broadcasting against a shape.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Expand.html>. Opsets 8 and later.
//!
//! Coupling: an axis that keeps its size passes through. One that is repeated is free: it loses the same indices as
//! the axis that it meets.

use crate::graph::dim::{Dim, product};
use crate::graph::fact::{Fact, KNOWN_LIMIT, Known};
use crate::operator::couple::grid::{Column, Grid, GridCx};
use crate::operator::couple::layout::{Axis, Layout};
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, PatchCx, ReferenceCx, Registration, RuleError, onnx,
};

fn types_expand() -> &'static [OpType] {
    const { &[onnx("Expand")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_expand, |_| Ok(Box::new(Expand)))];

#[derive(Debug)]
struct Expand;

impl Operator for Expand {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let shape = cx.shape(0)?;
        let dtype = cx.input(0)?.dtype;
        let Some(target) = cx.ints(1).map(<[Dim]>::to_vec) else {
            let rank = cx.shape(1)?.first().and_then(Dim::as_const).ok_or(RuleError::UnknownShape)?;
            let rank = usize::try_from(rank.clamp(0, 64)).unwrap_or(0).max(shape.len());
            let mut sizes: Vec<Dim> = (0..rank).map(|_| cx.fresh()).collect();
            // A size other than one can't change.
            for (size, known) in sizes[rank - shape.len()..].iter_mut().zip(&shape) {
                if known.as_const().is_some_and(|known| known > 1) {
                    size.clone_from(known);
                }
            }
            cx.set(0, Fact::new(dtype, sizes));
            return Ok(());
        };
        let sizes = cx.broadcast(&[shape, target])?;
        let known = match &cx.input(0)?.known {
            Some(Known::Ints(values)) if values.len() == 1 => product(&sizes)
                .as_const()
                .and_then(|count| usize::try_from(count).ok())
                .filter(|count| *count <= KNOWN_LIMIT)
                .map(|count| Known::Ints(vec![values[0].clone(); count])),
            _ => None,
        };
        cx.set(0, Fact::new(dtype, sizes).with_known(known));
        Ok(())
    }

    fn grid(&self, cx: &GridCx<'_>) -> Option<Grid> {
        let column = cx.column(0)?;
        let added = cx.output_shape()?.len().checked_sub(cx.shape(0)?.len())?;
        Some(vec![Column { axis: column.axis.map(|axis| axis + added), ..column }])
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let layout = cx.separated(0)?;
        let input = cx.fact(0).and_then(|fact| fact.shape.clone()).ok_or(RuleError::UnknownShape)?;
        let shape = cx.output_shape(0)?;
        let offset = shape.len().saturating_sub(input.len());
        if cx.ints(1).is_none() {
            let text = "Expand computes its sizes at run time";
            layout.axes.iter().for_each(|axis| cx.keep(axis, text));
        }
        let mut axes: Vec<Axis> = Vec::new();
        for (at, size) in shape.iter().enumerate() {
            let own = at.checked_sub(offset).and_then(|at| Some((input.get(at)?, layout.axes.get(at)?)));
            axes.push(match own {
                Some((old, axis)) if !old.is(1) => axis.clone(),
                _ => cx.repeated_axis(size),
            });
        }
        cx.set(0, Layout { axes });
        Ok(())
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        let Some(old) = cx.old_ints(1) else {
            return Ok(());
        };
        let offset = cx.output_rank(0).saturating_sub(old.len());
        let sizes: Vec<Option<i64>> = old
            .iter()
            .enumerate()
            .map(|(at, size)| match size.as_const() {
                Some(size) if size > 1 => cx.new_output_size(0, at + offset),
                _ => None,
            })
            .collect();
        cx.set_input_ints(1, &sizes)
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        cx.moves(&[0]);
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let dy = cx.dy()?;
        cx.add_broadcast_gradient(0, &dy)
    }
}
