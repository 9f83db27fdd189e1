//! # Range
//! The numbers from `start` to `limit` in steps of `delta`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Range.html>. Opsets 11 and later.
//!
//! Coupling: none; the numbers are kept.

use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, KNOWN_LIMIT, Known};
use crate::operator::couple::grid::{Column, Grid, GridCx, Positions};
use crate::operator::{CoupleCx, InferCx, OpType, Operator, PatchCx, ReferenceCx, Registration, RuleError, onnx};

fn types_range() -> &'static [OpType] {
    const { &[onnx("Range")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_range, |_| Ok(Box::new(Range)))];

#[derive(Debug)]
struct Range;

impl Operator for Range {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let dtype = cx.input(0)?.dtype;
        let one = |slot: usize| cx.ints(slot).and_then(|values| values.first().cloned());
        if let (Some(start), Some(limit), Some(delta)) = (one(0), one(1), one(2)) {
            let numbers = (start.as_const(), limit.as_const(), delta.as_const());
            if let (Some(start), Some(limit), Some(delta)) = numbers
                && delta != 0
            {
                let distance = limit.saturating_sub(start).saturating_add(delta - delta.signum());
                let count = distance.saturating_div(delta).max(0);
                let number = |at: i64| Dim::from(start.saturating_add(at.saturating_mul(delta)));
                let known = (count <= KNOWN_LIMIT as i64).then(|| Known::Ints((0..count).map(number).collect()));
                cx.set(0, Fact::new(dtype, vec![Dim::from(count)]).with_known(known));
                return Ok(());
            }
            if delta.is(1) {
                cx.set(0, Fact::new(dtype, vec![&limit - &start]));
                return Ok(());
            }
        }
        if let (Some([start]), Some([limit]), Some([delta])) = (cx.floats(0), cx.floats(1), cx.floats(2)) {
            let count = ((limit - start) / delta).ceil().clamp(0.0, 1e15) as i64;
            cx.set(0, Fact::new(dtype, vec![Dim::from(count)]));
            return Ok(());
        }
        let size = cx.fresh();
        cx.set(0, Fact::new(dtype, vec![size]));
        Ok(())
    }

    fn grid(&self, cx: &GridCx<'_>) -> Option<Grid> {
        let number = |slot: usize| cx.ints(slot)?.first()?.as_const();
        let (start, step, count) = (number(0)?, number(2)?, cx.output_shape()?.first()?.clone());
        Some(vec![Column { axis: Some(0), positions: Positions::Run { start, step, count } }])
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.set_fixed(0)
    }

    fn patch(&self, cx: &mut PatchCx<'_>) -> Result<(), RuleError> {
        // The number of values is kept, even if a limit is computed from a size that shrinks.
        for slot in 0..3 {
            let number = cx.old_ints(slot).and_then(|numbers| numbers.first()?.as_const());
            cx.set_input_ints(slot, &[number])?;
        }
        Ok(())
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Ok(())
    }
}
