//! # Scan
//! Runs a body on every slice of sequences, with loop-carried values.
//! Spec: <https://onnx.ai/onnx/operators/onnx__Scan.html>. Opsets 9 and later.
//!
//! Coupling: a barrier: only shapes are known, and all channels that it touches are kept.

use super::loop_::{handed_on, not_refused, without_axis};
use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::graph::fact::Fact;
use crate::onnx::GraphProto;
use crate::operator::{Folding, InferCx, OpType, Operator, Registration, RuleError, axis_index, onnx};

fn types_scan() -> &'static [OpType] {
    const { &[onnx("Scan")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_scan, |node| Ok(Box::new(Scan::parse(node)?)))];

#[derive(Debug)]
struct Scan {
    body: GraphProto,
    /// How many of the inputs, at the end, are sequences.
    sequences: usize,
    input_axes: Vec<i64>,
    output_axes: Vec<i64>,
}

impl Scan {
    fn parse(node: &Node) -> Result<Self, RuleError> {
        let body = node.proto.attr("body").and_then(|attribute| attribute.g.clone());
        let sequences = usize::try_from(node.int("num_scan_inputs", 0)).unwrap_or(0);
        if sequences == 0 || sequences > node.inputs.len() {
            return Err(RuleError::invalid(format!(
                "num_scan_inputs must be at least 1 and at most the number of inputs, found {sequences} for {} inputs",
                node.inputs.len()
            )));
        }
        let axes = |name: &str| node.proto.ints(name).unwrap_or_default().to_vec();
        Ok(Self {
            body: body.ok_or_else(|| RuleError::invalid("it has no body"))?,
            sequences,
            input_axes: axes("scan_input_axes"),
            output_axes: axes("scan_output_axes"),
        })
    }
}

impl Operator for Scan {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let handed = cx.input_count() - self.sequences;
        let mut slices = Vec::new();
        let mut length: Option<Dim> = None;
        for at in 0..self.sequences {
            let fact = cx.input(handed + at)?;
            let (dtype, shape) = (fact.dtype, fact.shape.clone().ok_or(RuleError::UnknownShape)?);
            let axis = axis_index(self.input_axes.get(at).copied().unwrap_or(0), shape.len())?;
            match &length {
                Some(length) if !cx.equal(length, &shape[axis]) => {
                    return Err(RuleError::invalid(format!(
                        "sequences must have one length, found {length} and {}",
                        shape[axis]
                    )));
                }
                Some(length) if length.as_const().is_some() => {}
                _ => length = Some(shape[axis].clone()),
            }
            slices.push(Some(Fact::new(dtype, without_axis(shape, axis))));
        }
        let length = length.ok_or(RuleError::UnknownShape)?;
        let first = (0..handed).map(|slot| cx.optional(slot).cloned()).collect();
        let mut scanned = Vec::new();
        let mut round = |cx: &mut InferCx<'_>, state: &[Option<Fact>]| {
            let inputs = state.iter().cloned().chain(slices.clone()).collect();
            let mut outputs = cx.body(&self.body, inputs).map_err(not_refused)?;
            if outputs.len() < handed {
                return Err(RuleError::unsupported("its body returns fewer values than the loop carries"));
            }
            scanned = outputs.split_off(handed);
            Ok(outputs)
        };
        let state = handed_on(cx, first, &mut round)?;
        for (slot, fact) in state.into_iter().enumerate() {
            if let Some(fact) = fact {
                cx.set(slot, fact);
            }
        }
        for (at, fact) in scanned.into_iter().enumerate() {
            if let Some(Fact { dtype, shape: Some(mut shape), .. }) = fact {
                let axis = axis_index(self.output_axes.get(at).copied().unwrap_or(0), shape.len() + 1)?;
                shape.insert(axis, length.clone());
                cx.set_shape(handed + at, dtype, shape);
            }
        }
        Ok(())
    }

    fn folding(&self) -> Folding {
        Folding::Never
    }
}
