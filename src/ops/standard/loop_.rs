//! # Loop
//! Runs a body repeatedly, up to a number of iterations and while a condition is true, with loop-carried values.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Loop.html>. Opsets 11 and later.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use super::branch::merged;
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::onnx::{DataType, GraphProto};
use crate::operator::{Folding, InferCx, OpType, Operator, Registration, RuleError, onnx};

fn types_loop() -> &'static [OpType] {
    const { &[onnx("Loop")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_loop, |node| Ok(Box::new(Loop::parse(node)?)))];

#[derive(Debug)]
struct Loop {
    body: GraphProto,
}

impl Loop {
    fn parse(node: &Node) -> Result<Self, RuleError> {
        let body = node.proto.attr("body").and_then(|attribute| attribute.g.clone());
        Ok(Self { body: body.ok_or_else(|| RuleError::invalid("it has no body"))? })
    }
}

/// Infers the facts of the loop-carried values after an iteration from those before it.
pub(super) type Round<'a> = dyn FnMut(&mut InferCx<'_>, &[Option<Fact>]) -> Result<Vec<Option<Fact>>, RuleError> + 'a;

/// Infers the facts of the loop-carried values that are true in every iteration, from those before the first one.
/// `round` returns the facts after one iteration.
///
/// # Errors
/// The body can't be inferred.
pub(super) fn handed_on(
    cx: &mut InferCx<'_>,
    first: Vec<Option<Fact>>,
    round: &mut Round<'_>,
) -> Result<Vec<Option<Fact>>, RuleError> {
    let mut state: Vec<Option<Fact>> =
        first.into_iter().map(|fact| fact.map(|fact| Fact { known: None, ..fact })).collect();
    // Sizes that change in one iteration are unknown afterwards; sizes that depend on them become unknown in the next
    // one.
    for _ in 0..2 {
        let after = round(cx, &state)?;
        let mut next = Vec::new();
        for (at, before) in state.iter().enumerate() {
            let after = after.get(at).cloned().flatten().map(|fact| Fact { known: None, ..fact });
            next.push(merged(cx, before.clone(), after));
        }
        if next == state {
            return Ok(state);
        }
        state = next;
    }
    let last = round(cx, &state)?;
    Ok(state
        .into_iter()
        .zip(last)
        .map(|(before, after)| if same_shape(&before, &after) { before } else { None })
        .collect())
}

/// Whether two facts have the same rank, and the same static sizes.
fn same_shape(a: &Option<Fact>, b: &Option<Fact>) -> bool {
    match (a.as_ref().and_then(|fact| fact.shape.as_ref()), b.as_ref().and_then(|fact| fact.shape.as_ref())) {
        (Some(a), Some(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.as_const().is_none() || a.as_const() == b.as_const())
        }
        _ => false,
    }
}

impl Operator for Loop {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let first: Vec<Option<Fact>> = (2..cx.input_count()).map(|slot| cx.optional(slot).cloned()).collect();
        let count = first.len();
        let is_true = |fact: Option<&Fact>| {
            let known = fact.and_then(|fact| fact.known.as_ref()).and_then(crate::graph::fact::Known::ints);
            known.and_then(|known| known.first()?.as_const()) == Some(1)
        };
        let mut scanned = Vec::new();
        let mut goes_on = false;
        let mut round = |cx: &mut InferCx<'_>, state: &[Option<Fact>]| {
            let counter = Some(Fact::new(DataType::Int64, vec![]));
            let condition = Some(Fact::new(DataType::Bool, vec![]));
            let inputs = [counter, condition].into_iter().chain(state.iter().cloned()).collect();
            let mut outputs = cx.body(&self.body, inputs).map_err(not_refused)?;
            if outputs.len() < count + 1 {
                return Err(RuleError::unsupported("its body returns fewer values than the loop carries"));
            }
            scanned = outputs.split_off(count + 1);
            goes_on = is_true(outputs.remove(0).as_ref());
            Ok(outputs)
        };
        let state = handed_on(cx, first, &mut round)?;
        let starts = cx.optional(1).is_none() || is_true(cx.optional(1));
        let rounds = cx.ints(0).and_then(|rounds| rounds.first().cloned()).filter(|_| starts && goes_on);
        let rounds = rounds.unwrap_or_else(|| cx.fresh());
        for (slot, fact) in state.into_iter().enumerate() {
            if let Some(fact) = fact {
                cx.set(slot, fact);
            }
        }
        for (at, fact) in scanned.into_iter().enumerate() {
            if let Some(Fact { dtype, shape: Some(shape), .. }) = fact {
                cx.set_shape(count + at, dtype, [vec![rounds.clone()], shape].concat());
            }
        }
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Never
    }
}

/// Turns the cause into one that does not refuse the model: a body that contradicts itself at these sizes may never
/// run.
pub(super) fn not_refused(cause: RuleError) -> RuleError {
    RuleError::unsupported(cause.to_string())
}

/// Removes the size at `axis`.
pub(super) fn without_axis(mut shape: Vec<Dim>, axis: usize) -> Vec<Dim> {
    shape.remove(axis);
    shape
}
