//! # DFT
//! The discrete Fourier transform along one axis; the last axis holds real and imaginary parts.
//! Spec: <https://onnx.ai/onnx/operators/onnx__DFT.html>. Opsets 17 and later (the axis is an input from 20).
//!
//! Coupling: the transformed axis and the last one are kept; the others pass through.

use crate::graph::Node;
use crate::graph::dim::Dim;
use crate::operator::couple::layout::{Layout, fixed_axis};
use crate::operator::{
    CoupleCx, GradientCx, InferCx, OpType, Operator, ReferenceCx, Registration, RuleError, axis_index, onnx,
};

fn types_dft() -> &'static [OpType] {
    const { &[onnx("DFT")] }
}

pub(super) static RULES: &[Registration] = &[Registration::new(types_dft, |node| Ok(Box::new(Dft::parse(node))))];

#[derive(Debug)]
struct Dft {
    axis: TransformedAxis,
    /// Whether an input states the length of the transform.
    has_length: bool,
    is_inverse: bool,
    is_onesided: bool,
}

/// Which axis is transformed.
#[derive(Debug)]
enum TransformedAxis {
    Attribute(i64),
    Input,
    /// Not stated: the last axis before that of real and imaginary parts.
    Default,
}

impl Dft {
    fn parse(node: &Node) -> Self {
        let axis = match (node.version < 20, node.input(2)) {
            (true, _) => TransformedAxis::Attribute(node.int("axis", 1)),
            (false, Some(_)) => TransformedAxis::Input,
            (false, None) => TransformedAxis::Default,
        };
        Self {
            axis,
            has_length: node.input(1).is_some(),
            is_inverse: node.int("inverse", 0) != 0,
            is_onesided: node.int("onesided", 0) != 0,
        }
    }

    /// Returns the transformed axis; `given` holds the integers of the input that states it.
    fn axis(&self, rank: usize, given: Option<&[Dim]>) -> Result<usize, RuleError> {
        let axis = match self.axis {
            TransformedAxis::Attribute(axis) => axis,
            TransformedAxis::Input => {
                given.and_then(<[Dim]>::first).and_then(Dim::as_const).ok_or(RuleError::UnknownShape)?
            }
            TransformedAxis::Default => -2,
        };
        axis_index(axis, rank)
    }
}

impl Operator for Dft {
    fn infer(&self, cx: &mut InferCx<'_>) -> Result<(), RuleError> {
        let (dtype, mut shape) = (cx.input(0)?.dtype, cx.shape(0)?);
        let axis = self.axis(shape.len(), cx.ints(2))?;
        let Some(last) = shape.len().checked_sub(1).filter(|last| *last != axis) else {
            return Err(RuleError::invalid("the axis of real and imaginary parts can't be transformed"));
        };
        if self.has_length {
            let length = cx.ints(1).and_then(|length| length.first().cloned());
            shape[axis] = length.unwrap_or_else(|| cx.fresh());
        }
        shape[last] = Dim::from(if self.is_onesided && self.is_inverse { 1 } else { 2 });
        if self.is_onesided {
            shape[axis] = if self.is_inverse {
                // The output of an inverse one-sided transform has the requested length.
                if self.has_length { shape[axis].clone() } else { cx.fresh() }
            } else {
                let half = shape[axis].floor_div(&Dim::from(2));
                half.map(|half| &half + &Dim::from(1)).unwrap_or_else(|| cx.fresh())
            };
        }
        cx.set_shape(0, dtype, shape);
        Ok(())
    }

    fn couple(&self, cx: &mut CoupleCx<'_>) -> Result<(), RuleError> {
        let mut y = cx.separated(0)?;
        let shape = cx.output_shape(0)?;
        for at in [self.axis(y.rank(), cx.ints(2))?, y.rank() - 1] {
            cx.keep(&y.axes[at].clone(), "DFT mixes the elements along this axis");
            y.axes[at] = fixed_axis(&shape[at]);
        }
        cx.set(0, Layout { axes: y.axes });
        Ok(())
    }

    fn reference(&self, cx: &mut ReferenceCx<'_>) -> Result<(), RuleError> {
        if let Some(mask) = cx.mask(0) {
            let rank = cx.rank(0)?;
            let at = self.axis(rank, cx.known_ints(2).as_deref())? as i64;
            let mask = cx.reduce("ReduceMax", &mask, &[at, rank as i64 - 1]);
            cx.set_mask(0, mask);
        }
        Ok(())
    }

    fn gradient(&self, cx: &mut GradientCx<'_>) -> Result<(), RuleError> {
        let (dy, from, to) = (cx.dy()?, cx.shape(0)?, cx.output_shape(0)?);
        let rank = from.len();
        let axis = self.axis(rank, cx.known_ints(2).as_deref())?;
        if self.is_inverse && self.is_onesided {
            return Err(RuleError::unsupported("no gradient is implemented for the inverse of a one-sided spectrum"));
        }
        // The length of the transform: it does not follow from a one-sided spectrum.
        let named = cx.known_ints(1).and_then(|length| length.first().and_then(Dim::as_const));
        let length = if self.has_length { named.ok_or(RuleError::UnknownShape)? } else { from[axis] };
        let last = rank - 1;
        // Linear in the real and imaginary parts along the axis: one matrix [outputs * 2, inputs * parts].
        let matrix = transform(from[axis], from[last], to[axis], length, self.is_inverse);
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
        cx.add_gradient(0, dx);
        Ok(())
    }
}

/// Computes the matrix of a transform of `length` elements, row-major. Columns are the real (and imaginary, if `parts`
/// is 2) parts of `inputs` elements; rows are the real and imaginary parts of `outputs` frequencies.
fn transform(inputs: i64, parts: i64, outputs: i64, length: i64, inverse: bool) -> Vec<f32> {
    let (sign, scale) = if inverse { (1.0, 1.0 / length.max(1) as f64) } else { (-1.0, 1.0) };
    let mut matrix = Vec::new();
    for frequency in 0..outputs {
        for is_imaginary in [false, true] {
            for at in 0..inputs {
                let turns = (frequency * at).rem_euclid(length.max(1)) as f64 / length.max(1) as f64;
                // (x + i y) (cos + i sin); elements beyond the length are ignored.
                let (sine, cosine) = (sign * std::f64::consts::TAU * turns).sin_cos();
                let pair = if is_imaginary { [sine, cosine] } else { [cosine, -sine] };
                let scale = if at < length { scale } else { 0.0 };
                matrix.extend(pair[..parts.clamp(0, 2) as usize].iter().map(|value| (value * scale) as f32));
            }
        }
    }
    matrix
}
