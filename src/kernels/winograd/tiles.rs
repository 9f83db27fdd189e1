//! Transforms between images `[N, C, H, W]` and the matrices `[36, P, C]` of their tiles.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::{BLOCK, Lanes, POSITIONS, Rows, SPREAD, TILE, Vectors, both};

/// The division of a convolution's output into tiles.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Tiling {
    /// Height and width of the convolution's output.
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Tiling {
    /// Returns the number of rows of tiles in an image.
    pub(super) fn rows(&self) -> usize {
        self.height.div_ceil(TILE)
    }

    /// Returns the number of output rows above row `tile_row` of an image's tiles.
    pub(super) fn above(&self, tile_row: usize) -> usize {
        (TILE * tile_row).min(self.height)
    }

    /// Returns the number of tiles in a row.
    pub(super) fn columns(&self) -> usize {
        self.width.div_ceil(TILE)
    }
}

/// Images with zero padding around them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Images<'a> {
    pub(super) values: &'a [f32],
    pub(super) count: usize,
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    /// Rows of zeros at the top, columns of zeros on the left. The tiles determine the padding at the bottom and on the
    /// right.
    pub(super) top: usize,
    pub(super) left: usize,
}

impl Images<'_> {
    /// Reads row `y` of an image, counted with the padding, for the channels from `first` on, side by side. Elements of
    /// `row` beyond the image keep their zeros.
    #[inline(always)]
    fn read_row(&self, image: usize, first: usize, y: usize, row: &mut [Lanes]) {
        let Some(y) = y.checked_sub(self.top).filter(|y| *y < self.height) else {
            row.fill([0.0; BLOCK]);
            return;
        };
        let row = row.get_mut(self.left..).unwrap_or_default();
        for lane in 0..BLOCK.min(self.channels - first) {
            let start = ((image * self.channels + first + lane) * self.height + y) * self.width;
            for (to, value) in row.iter_mut().zip(&self.values[start..start + self.width]) {
                to[lane] = *value;
            }
        }
    }
}

/// The image transforms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Of the input: tiles of 6x6 that overlap by 2 positions.
    Input,
    /// Of the gradient with respect to the output: tiles of 4x4.
    OutputGradient,
}

/// Transforms some rows of tiles.
pub(super) struct Spread<'a, 'b, 'c> {
    pub(super) side: Side,
    pub(super) images: &'a Images<'a>,
    pub(super) tiling: Tiling,
    /// The rows of tiles, counted over all images.
    pub(super) tile_rows: Range<usize>,
    pub(super) matrices: &'b mut Rows<'c>,
}

impl WithSimd for Spread<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let vectors = Vectors(simd);
        match self.side {
            Side::Input => self.spread(
                vectors,
                #[inline(always)]
                |d| vectors.input(d),
            ),
            Side::OutputGradient => self.spread(
                vectors,
                #[inline(always)]
                |y| vectors.output_gradient(y),
            ),
        }
    }
}

impl Spread<'_, '_, '_> {
    #[inline(always)]
    fn spread<S: Simd, const N: usize>(
        self,
        vectors: Vectors<S>,
        transform: impl Fn([S::f32s; N]) -> [S::f32s; SPREAD] + Copy,
    ) {
        let Self { images, tiling, tile_rows, matrices, .. } = self;
        let width = TILE * tiling.columns() + N - TILE;
        let mut strip = vec![[0.0; BLOCK]; N * width];
        let mut tile = [[0.0; BLOCK]; POSITIONS];
        let above = tile_rows.start;
        for first in (0..images.channels).step_by(BLOCK) {
            let count = BLOCK.min(images.channels - first);
            strip.fill([0.0; BLOCK]);
            for (at, tile_row) in tile_rows.clone().enumerate() {
                let (image, top) = (tile_row / tiling.rows(), tile_row % tiling.rows() * TILE);
                // The first rows of a strip are the last ones of the strip above.
                let known = if top > 0 && tile_row > above { N - TILE } else { 0 };
                strip.copy_within((N - known) * width.., 0);
                for (row, strip) in strip.chunks_exact_mut(width).enumerate().skip(known) {
                    images.read_row(image, first, top + row, strip);
                }
                for column in 0..tiling.columns() {
                    let strip = &strip[column * TILE..];
                    for sub in 0..BLOCK / S::F32_LANES {
                        both(
                            transform,
                            #[inline(always)]
                            |row, column| vectors.load(&strip[row * width + column], sub),
                            #[inline(always)]
                            |row, column, value| vectors.store(&mut tile[row * SPREAD + column], sub, value),
                        );
                    }
                    // Writes whole cache lines at once: lines of different matrices may evict each other from the
                    // cache.
                    let start = (at * tiling.columns() + column) * images.channels + first;
                    for (matrix, lanes) in matrices.iter_mut().zip(&tile) {
                        if count == BLOCK {
                            matrix[start..start + BLOCK].copy_from_slice(lanes);
                        } else {
                            matrix[start..start + count].copy_from_slice(&lanes[..count]);
                        }
                    }
                }
            }
        }
    }
}

/// Computes the outputs of some rows of tiles from their matrices `[36, P, channels]`.
pub(super) struct Gather<'a, 'b> {
    pub(super) matrices: &'a [f32],
    pub(super) channels: usize,
    pub(super) tiling: Tiling,
    /// The rows of tiles, counted over all images.
    pub(super) tile_rows: Range<usize>,
    pub(super) bias: Option<&'a [f32]>,
    /// For every image that the rows of tiles touch and for every channel, the part that these rows compute.
    pub(super) outputs: &'a mut [&'b mut [f32]],
}

impl WithSimd for Gather<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let vectors = Vectors(simd);
        let Self { matrices, channels, tiling, tile_rows, bias, outputs } = self;
        let matrix = matrices.len() / POSITIONS;
        let mut places = [[[0.0; BLOCK]; TILE]; TILE];
        let above = tile_rows.start;
        for (at, tile_row) in tile_rows.enumerate() {
            let image = tile_row / tiling.rows() - above / tiling.rows();
            let below = tiling.height - tile_row % tiling.rows() * TILE;
            // The outputs of the first image begin with the first of these rows.
            let top = TILE * if image == 0 { at } else { tile_row % tiling.rows() };
            for first in (0..channels).step_by(BLOCK) {
                let count = BLOCK.min(channels - first);
                let outputs = &mut outputs[image * channels + first..][..count];
                let mut offset = [0.0; BLOCK];
                if let Some(bias) = bias {
                    offset[..count].copy_from_slice(&bias[first..first + count]);
                }
                for column in 0..tiling.columns() {
                    let start = (at * tiling.columns() + column) * channels + first;
                    for sub in 0..count.div_ceil(S::F32_LANES) {
                        let from = sub * S::F32_LANES;
                        let to = count.min(from + S::F32_LANES);
                        both(
                            #[inline(always)]
                            |m| vectors.output(m),
                            #[inline(always)]
                            |row, column| {
                                let start = (row * SPREAD + column) * matrix + start;
                                vectors.load_up_to(&matrices[start + from..start + to])
                            },
                            #[inline(always)]
                            |row, column, value| {
                                let value = vectors.add(value, vectors.load(&offset, sub));
                                vectors.store(&mut places[row][column], sub, value);
                            },
                        );
                    }
                    let left = column * TILE;
                    let across = TILE.min(tiling.width - left);
                    for (lane, output) in outputs.iter_mut().enumerate() {
                        for (row, places) in places.iter().enumerate().take(below) {
                            let start = (top + row) * tiling.width + left;
                            for (value, lanes) in output[start..start + across].iter_mut().zip(places) {
                                *value = lanes[lane];
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pulp::{Arch, Scalar};

    use super::*;
    use crate::kernels::winograd::filters::{self, Direction};

    fn counting(count: usize) -> Vec<f32> {
        (0..count).map(|at| ((at * 7919) % 101) as f32 * 0.02 - 1.0).collect()
    }

    /// Runs a transform that writes rows of matrices.
    fn matrices(rows: usize, columns: usize, run: impl FnOnce(&mut Rows<'_>)) -> Vec<f32> {
        let mut all = vec![f32::NAN; POSITIONS * rows * columns];
        let mut matrices: Vec<&mut [f32]> = all.chunks_exact_mut(rows * columns).collect();
        run(matrices.as_mut_slice().try_into().expect("36 matrices"));
        all
    }

    /// Convolves 2 images of 19 channels to 21 channels with the transforms, scalar or vectorised, and checks the
    /// result.
    fn convolved(is_scalar: bool) -> Vec<f32> {
        let (inputs, outputs, height, width) = (19, 21, 7, 10);
        let (x, w, bias) = (counting(2 * inputs * height * width), counting(outputs * inputs * 9), counting(outputs));
        let images = Images { values: &x, count: 2, channels: inputs, height, width, top: 1, left: 1 };
        let tiling = Tiling { height, width };
        let tiles = 2 * tiling.rows() * tiling.columns();
        let v = matrices(tiles, inputs, |matrices| {
            let tile_rows = 0..2 * tiling.rows();
            let spread = Spread { side: Side::Input, images: &images, tiling, tile_rows, matrices };
            if is_scalar { spread.with_simd(Scalar::new()) } else { Arch::new().dispatch(spread) }
        });
        let u = matrices(inputs, outputs, |matrices| {
            let rows = 0..inputs;
            let direction = Direction::Forward;
            let spread = filters::Spread { direction, weights: &w, outputs, inputs, rows, matrices };
            if is_scalar { spread.with_simd(Scalar::new()) } else { Arch::new().dispatch(spread) }
        });
        let mut m = vec![0.0f32; POSITIONS * tiles * outputs];
        for (at, sum) in m.iter_mut().enumerate() {
            let (place, tile, output) = (at / (tiles * outputs), at / outputs % tiles, at % outputs);
            let v = &v[(place * tiles + tile) * inputs..][..inputs];
            *sum = (0..inputs).map(|input| v[input] * u[(place * inputs + input) * outputs + output]).sum();
        }
        let mut y = vec![f32::NAN; 2 * outputs * height * width];
        {
            let mut planes: Vec<&mut [f32]> = y.chunks_exact_mut(height * width).collect();
            let (bias, tile_rows) = (Some(bias.as_slice()), 0..2 * tiling.rows());
            let gather =
                Gather { matrices: &m, channels: outputs, tiling, tile_rows, bias, outputs: planes.as_mut_slice() };
            if is_scalar { gather.with_simd(Scalar::new()) } else { Arch::new().dispatch(gather) }
        }
        for (at, y) in y.iter().enumerate() {
            let (image, output) = (at / (outputs * height * width), at / (height * width) % outputs);
            let (row, column) = (at / width % height, at % width);
            let mut sum = bias[output];
            for input in 0..inputs {
                for (place, w) in w[(output * inputs + input) * 9..][..9].iter().enumerate() {
                    let (row, column) = (row + place / 3, column + place % 3);
                    if (1..=height).contains(&row) && (1..=width).contains(&column) {
                        sum += w * x[((image * inputs + input) * height + row - 1) * width + column - 1];
                    }
                }
            }
            assert!((y - sum).abs() < 1e-4, "element {at}: {y} instead of {sum}");
        }
        y
    }

    #[test]
    fn scalar_and_vector_code_compute_the_same_convolution() {
        let (scalars, vectors) = (convolved(true), convolved(false));
        for (a, b) in scalars.iter().zip(&vectors) {
            assert!((a - b).abs() < 1e-5);
        }
    }
}
