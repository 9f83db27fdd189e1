//! # Fourier transforms
//! DFT and STFT transform along one axis; the last axis holds real and imaginary parts.
//! Spec: <https://onnx.ai/onnx/operators/onnx__DFT.html>, <https://onnx.ai/onnx/operators/onnx__STFT.html>. Opsets 17 and
//! later (the axis of DFT is an input from 20).
//!
//! Coupling: the transformed axis and the last one stay; the others of a DFT pass through. All of an STFT stays.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::couple::CoupleCx;
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::gradient::GradientCx;
use crate::operator::infer::InferCx;
use crate::operator::reference::ReferenceCx;
use crate::operator::{NodeRules, OpType, Registration, RuleError, axis_index, onnx};

fn types_dft() -> &'static [OpType] {
    const { &[onnx("DFT")] }
}

fn types_stft() -> &'static [OpType] {
    const { &[onnx("STFT")] }
}

pub(super) static RULES: &[Registration] =
    &[Registration::of_node(types_dft, &Dft), Registration::of_node(types_stft, &Stft)];

struct Dft;

/// The transformed axis; `given` are the integers of the input that names it.
fn axis(node: &Node, rank: usize, given: Option<&[Dim]>) -> Result<usize, RuleError> {
    if node.version < 20 {
        return axis_index(node.int("axis", 1), rank);
    }
    match (node.input(2), given.and_then(<[Dim]>::first).and_then(Dim::as_const)) {
        (None, _) => axis_index(-2, rank),
        (Some(_), Some(axis)) => axis_index(axis, rank),
        (Some(_), None) => Err(RuleError::UnknownShape),
    }
}

impl NodeRules for Dft {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, mut shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let axis = axis(node, shape.len(), cx.ints(2))?;
        let Some(last) = shape.len().checked_sub(1).filter(|last| *last != axis) else {
            return Err(RuleError::invalid("the axis of real and imaginary parts can't be transformed"));
        };
        let onesided = node.int("onesided", 0) != 0;
        if node.input(1).is_some() {
            let length = cx.ints(1).and_then(|length| length.first().cloned());
            shape[axis] = length.unwrap_or_else(|| cx.fresh());
        }
        shape[last] = Dim::from(if onesided && node.int("inverse", 0) != 0 { 1 } else { 2 });
        if onesided {
            shape[axis] = if node.int("inverse", 0) != 0 {
                // The inverse of half a spectrum is as long as is asked for.
                if node.input(1).is_some() { shape[axis].clone() } else { cx.fresh() }
            } else {
                let half = shape[axis].floor_div(&Dim::from(2));
                half.map(|half| &half + &Dim::from(1)).unwrap_or_else(|| cx.fresh())
            };
        }
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let mut y = cx.separated(0)?;
        let shape = cx.output_shape(0)?;
        for at in [axis(node, y.rank(), cx.ints(2))?, y.rank() - 1] {
            cx.keep(&y.axes[at].clone(), "is transformed");
            y.axes[at] = fixed_axis(&shape[at]);
        }
        cx.set(0, Layout { axes: y.axes });
        Ok(())
    }

    fn reference(&self, node: &Node, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if let Some(mask) = cx.mask(0) {
            let rank = cx.rank(0)?;
            let at = axis(node, rank, cx.known_ints(2).as_deref())? as i64;
            let mask = cx.reduce("ReduceMax", &mask, &[at, rank as i64 - 1]);
            cx.set_mask(0, mask);
        }
        Ok(())
    }

    fn gradient(&self, node: &Node, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, from, to) = (cx.dy()?, cx.shape(0)?, cx.output_shape(0)?);
        let rank = from.len();
        let axis = axis(node, rank, cx.known_ints(2).as_deref())?;
        let (inverse, onesided) = (node.int("inverse", 0) != 0, node.int("onesided", 0) != 0);
        if inverse && onesided {
            return Err(RuleError::unsupported("the inverse of half a spectrum has no gradient"));
        }
        // The length of the transform: half a spectrum does not tell it.
        let named = cx.known_ints(1).and_then(|length| length.first().and_then(Dim::as_const));
        let length = if cx.input(1).is_empty() { from[axis] } else { named.ok_or(RuleError::UnknownShape)? };
        let last = rank - 1;
        // Linear in the real and imaginary parts of the axis: one matrix [outputs * 2, inputs * parts].
        let matrix = transform(from[axis], from[last], to[axis], length, inverse);
        let matrix = cx.floats(&matrix, &[to[axis] * 2, from[axis] * from[last]]);
        let mut perm: Vec<usize> = (0..last).filter(|at| *at != axis).collect();
        perm.extend([axis, last]);
        let rows: i64 = perm[..last - 1].iter().map(|at| from[*at]).product();
        let g = cx.transpose(&dy, &perm);
        let g = cx.reshape(&g, &[rows, to[axis] * 2]);
        let dx = cx.op("MatMul", &[&g, &matrix]);
        let moved: Vec<i64> = perm.iter().map(|at| from[*at]).collect();
        let dx = cx.reshape(&dx, &moved);
        let mut back = vec![0; rank];
        perm.iter().enumerate().for_each(|(at, axis)| back[*axis] = at);
        let dx = cx.transpose(&dx, &back);
        cx.give(0, dx);
        Ok(())
    }
}

/// What a transform of `length` elements makes of the real (and imaginary, where `parts` is 2) parts of `inputs`
/// elements, row-major: rows are the real and imaginary parts of `outputs` frequencies.
fn transform(inputs: i64, parts: i64, outputs: i64, length: i64, inverse: bool) -> Vec<f32> {
    let (sign, scale) = if inverse { (1.0, 1.0 / length.max(1) as f64) } else { (-1.0, 1.0) };
    let mut matrix = Vec::new();
    for frequency in 0..outputs {
        for is_imaginary in [false, true] {
            for at in 0..inputs {
                let turns = (frequency * at).rem_euclid(length.max(1)) as f64 / length.max(1) as f64;
                // (x + i y) (cos + i sin); elements beyond the length are cut off.
                let (sine, cosine) = (sign * std::f64::consts::TAU * turns).sin_cos();
                let pair = if is_imaginary { [sine, cosine] } else { [cosine, -sine] };
                let scale = if at < length { scale } else { 0.0 };
                matrix.extend(pair[..parts.clamp(0, 2) as usize].iter().map(|value| (value * scale) as f32));
            }
        }
    }
    matrix
}

struct Stft;

impl NodeRules for Stft {
    fn infer(&self, node: &Node, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, signal) = (cx.input(0)?.dtype, cx.shape(0)?);
        let [batch, length, _] = signal.as_slice() else {
            return Err(RuleError::invalid(format!("the signal must have rank 3, found {}", signal.len())));
        };
        let step = cx.ints(1).and_then(|step| step.first().cloned());
        let window = cx.optional(2).and_then(|window| window.shape.as_ref()?.first().cloned());
        let frame = cx.ints(3).and_then(|length| length.first().cloned()).or(window);
        let one = Dim::from(1);
        let frames = step.and_then(|step| (length - frame.as_ref()?).floor_div(&step)).map(|steps| &steps + &one);
        let bins = match (node.int("onesided", 1) != 0, frame) {
            (true, Some(frame)) => frame.floor_div(&Dim::from(2)).map(|half| &half + &one),
            (_, frame) => frame,
        };
        let frames = frames.unwrap_or_else(|| cx.fresh());
        let bins = bins.unwrap_or_else(|| cx.fresh());
        cx.set_shape(0, dtype, vec![batch.clone(), frames, bins, Dim::from(2)]);
        Ok(())
    }

    fn couple(&self, _node: &Node, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        cx.keep_inputs("is transformed");
        cx.set_fixed(0)
    }

    fn reference(&self, _node: &Node, _cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        Ok(())
    }
}
