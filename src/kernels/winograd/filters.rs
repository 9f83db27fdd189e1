//! Transforms between weights `[O, C, 3, 3]` and their matrices.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::{BLOCK, Lanes, POSITIONS, Rows, SPREAD, Vectors, both};

/// Number of positions of a filter along an axis, and in total.
const SIDE: usize = 3;
const FILTER: usize = SIDE * SIDE;

/// The direction in which the weights are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernels) enum Direction {
    /// Matrices `[36, C, O]` for the convolution.
    Forward,
    /// Matrices `[36, O, C]` for the gradient with respect to the input: the convolution with the flipped kernel.
    Flipped,
}

/// Transforms weights to some rows of their matrices.
pub(super) struct Spread<'a, 'b, 'c> {
    pub(super) direction: Direction,
    /// `[outputs, inputs, 3, 3]`.
    pub(super) weights: &'a [f32],
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) rows: Range<usize>,
    pub(super) matrices: &'b mut Rows<'c>,
}

impl WithSimd for Spread<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let vectors = Vectors(simd);
        let Self { direction, weights, outputs, inputs, rows, matrices } = self;
        let (columns, row_step, column_step) = match direction {
            Direction::Forward => (outputs, FILTER, inputs * FILTER),
            Direction::Flipped => (inputs, inputs * FILTER, FILTER),
        };
        let mut places: [Lanes; FILTER] = [[0.0; BLOCK]; FILTER];
        for (at, row) in rows.enumerate() {
            for first in (0..columns).step_by(BLOCK) {
                let count = BLOCK.min(columns - first);
                for lane in 0..count {
                    let start = row * row_step + (first + lane) * column_step;
                    let weights = &weights[start..start + FILTER];
                    for (place, lanes) in places.iter_mut().enumerate() {
                        let place = if direction == Direction::Flipped { FILTER - 1 - place } else { place };
                        lanes[lane] = weights[place];
                    }
                }
                let start = at * columns + first;
                for sub in 0..BLOCK / S::F32_LANES {
                    let from = sub * S::F32_LANES;
                    let to = count.min(from + S::F32_LANES);
                    both(
                        #[inline(always)]
                        |g| vectors.filter(g),
                        #[inline(always)]
                        |row, column| vectors.load(&places[row * SIDE + column], sub),
                        #[inline(always)]
                        |row, column, value| {
                            let matrix = &mut matrices[row * SPREAD + column];
                            if let Some(lanes) = matrix.get_mut(start + from..start + to) {
                                vectors.store_up_to(lanes, value);
                            }
                        },
                    );
                }
            }
        }
    }
}

/// Transforms matrices to the gradients with respect to the weights of some outputs.
pub(super) struct Gather<'a> {
    /// `[36, outputs, inputs]`.
    pub(super) matrices: &'a [f32],
    pub(super) inputs: usize,
    pub(super) outputs: Range<usize>,
    pub(super) gradients: &'a mut [f32],
}

impl WithSimd for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let vectors = Vectors(simd);
        let Self { matrices, inputs, outputs, gradients } = self;
        let matrix = matrices.len() / POSITIONS;
        let mut places: [Lanes; FILTER] = [[0.0; BLOCK]; FILTER];
        for (row, gradients) in outputs.zip(gradients.chunks_exact_mut(inputs * FILTER)) {
            for first in (0..inputs).step_by(BLOCK) {
                let count = BLOCK.min(inputs - first);
                let start = row * inputs + first;
                for sub in 0..BLOCK / S::F32_LANES {
                    let from = sub * S::F32_LANES;
                    let to = count.min(from + S::F32_LANES);
                    if from >= to {
                        break;
                    }
                    both(
                        #[inline(always)]
                        |u| vectors.filter_gradient(u),
                        #[inline(always)]
                        |row, column| {
                            let start = (row * SPREAD + column) * matrix + start;
                            vectors.load_up_to(&matrices[start + from..start + to])
                        },
                        #[inline(always)]
                        |row, column, value| vectors.store(&mut places[row * SIDE + column], sub, value),
                    );
                }
                let gradients = &mut gradients[first * FILTER..(first + count) * FILTER];
                for (lane, gradients) in gradients.chunks_exact_mut(FILTER).enumerate() {
                    for (gradient, lanes) in gradients.iter_mut().zip(&places) {
                        *gradient = lanes[lane];
                    }
                }
            }
        }
    }
}
