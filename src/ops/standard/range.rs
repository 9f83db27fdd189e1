//! # Range
//! The numbers from `start` to `limit` in steps of `delta`.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Range.html>. Opsets 11 and later.
//!
//! Coupling: none; positions stay.

use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, KNOWN_LIMIT, Known};
use crate::operator::{CoupleCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, onnx};

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

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.set_fixed(0)
    }

    fn reference(&self, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Ok(())
    }
}
