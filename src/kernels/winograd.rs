//! Convolutions with a 3x3 kernel in a quarter of the multiplications.
//!
//! This is Winograd's minimal filtering `F(4 x 4, 3 x 3)` (Lavin and Gray, "Fast Algorithms for Convolutional Neural
//! Networks", 2015). A tile of 4x4 outputs is `Y = A^T [(G g G^T) * (B^T d B)] A`, where `d` is a tile of 6x6 inputs
//! and `*` the elementwise product. It takes 36 multiplications instead of 144. Over all input channels and tiles, each
//! of the 36 positions is a matrix product. The gradient with respect to the weights is the transposed form,
//! `dg = G^T [(B^T d B) * (A dY A^T)] G`. The transforms take little arithmetic but, over whole tensors, much memory.
//! They are therefore computed for a few tiles at a time, which stay in the cache until their products are done
//! ([`products`]).
//!
//! The five finite points are 0, ±3/4 and ±3/2: their powers and the coefficients of B are exact. With 256 channels the
//! worst error is about a fifth of that with the usual points 0, ±1 and ±2, and six times that of the direct sum.
//!
//! Matrices have the layout `[36, P, C]` with P tiles in the order of image, row, column. The lanes of a vector hold
//! channels.

use std::sync::Mutex;

use pulp::Simd;

use super::rows_of;

mod filters;

mod node;

mod products;

mod tiles;

pub(super) use node::WinogradNode;

/// Number of outputs of a tile along an axis.
const TILE: usize = 4;

/// Number of inputs of a tile along an axis, and of positions of a transformed tile.
const SPREAD: usize = 6;

/// Number of positions of a transformed tile: a transformed tensor has one matrix for each.
const POSITIONS: usize = SPREAD * SPREAD;

/// Number of channels that are computed together: a cache line, and a multiple of every vector length.
const BLOCK: usize = 16;

/// One element of each channel of a block.
type Lanes = [f32; BLOCK];

/// The points a and b. The others are 0, -a, -b and infinity.
const A: f32 = 0.75;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;

/// The product of a point's differences from the other points. The rows of G are divided by it.
const AT_ZERO: f32 = A2 * B2;
const AT_A: f32 = 2.0 * A2 * (A2 - B2);
const AT_B: f32 = 2.0 * B2 * (B2 - A2);

/// Vector arithmetic.
#[derive(Clone, Copy)]
struct Vectors<S>(S);

impl<S: Simd> Vectors<S> {
    #[inline(always)]
    fn add(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.0.add_f32s(a, b)
    }

    #[inline(always)]
    fn sub(self, a: S::f32s, b: S::f32s) -> S::f32s {
        self.0.sub_f32s(a, b)
    }

    /// Computes `factor a`.
    #[inline(always)]
    fn scaled(self, factor: f32, a: S::f32s) -> S::f32s {
        self.0.mul_f32s(self.0.splat_f32s(factor), a)
    }

    /// Computes `factor a + b`.
    #[inline(always)]
    fn scaled_plus(self, factor: f32, a: S::f32s, b: S::f32s) -> S::f32s {
        self.0.mul_add_e_f32s(self.0.splat_f32s(factor), a, b)
    }

    /// Loads vector number `sub` of a block's channels.
    #[inline(always)]
    fn load(self, lanes: &Lanes, sub: usize) -> S::f32s {
        S::as_simd_f32s(lanes).0[sub]
    }

    /// Loads a vector, or a shorter remainder.
    #[inline(always)]
    fn load_up_to(self, values: &[f32]) -> S::f32s {
        match S::as_simd_f32s(values) {
            ([whole], []) => *whole,
            _ => self.0.partial_load_f32s(values),
        }
    }

    #[inline(always)]
    fn store(self, lanes: &mut Lanes, sub: usize, value: S::f32s) {
        S::as_mut_simd_f32s(lanes).0[sub] = value;
    }

    /// Stores a vector, or the first elements of it if `values` is shorter.
    #[inline(always)]
    fn store_up_to(self, values: &mut [f32], value: S::f32s) {
        match S::as_mut_simd_f32s(values) {
            ([whole], []) => *whole = value,
            _ => self.0.partial_store_f32s(values, value),
        }
    }

    /// Computes `B^T d`.
    #[inline(always)]
    fn input(self, d: [S::f32s; 6]) -> [S::f32s; 6] {
        let even_a = self.scaled_plus(-B2, d[2], d[4]);
        let odd_a = self.scaled(A, self.scaled_plus(-B2, d[1], d[3]));
        let even_b = self.scaled_plus(-A2, d[2], d[4]);
        let odd_b = self.scaled(B, self.scaled_plus(-A2, d[1], d[3]));
        [
            self.scaled_plus(AT_ZERO, d[0], self.scaled_plus(-(A2 + B2), d[2], d[4])),
            self.add(even_a, odd_a),
            self.sub(even_a, odd_a),
            self.add(even_b, odd_b),
            self.sub(even_b, odd_b),
            self.scaled_plus(AT_ZERO, d[1], self.scaled_plus(-(A2 + B2), d[3], d[5])),
        ]
    }

    /// Computes `A^T m`.
    #[inline(always)]
    fn output(self, m: [S::f32s; 6]) -> [S::f32s; 4] {
        let (even_a, odd_a) = (self.add(m[1], m[2]), self.scaled(A, self.sub(m[1], m[2])));
        let (even_b, odd_b) = (self.add(m[3], m[4]), self.scaled(B, self.sub(m[3], m[4])));
        [
            self.add(m[0], self.add(even_a, even_b)),
            self.add(odd_a, odd_b),
            self.scaled_plus(A2, even_a, self.scaled(B2, even_b)),
            self.scaled_plus(A2, odd_a, self.scaled_plus(B2, odd_b, m[5])),
        ]
    }

    /// Computes `A y`.
    #[inline(always)]
    fn output_gradient(self, y: [S::f32s; 4]) -> [S::f32s; 6] {
        let (even_a, odd_a) = (self.scaled_plus(A2, y[2], y[0]), self.scaled(A, self.scaled_plus(A2, y[3], y[1])));
        let (even_b, odd_b) = (self.scaled_plus(B2, y[2], y[0]), self.scaled(B, self.scaled_plus(B2, y[3], y[1])));
        [y[0], self.add(even_a, odd_a), self.sub(even_a, odd_a), self.add(even_b, odd_b), self.sub(even_b, odd_b), y[3]]
    }

    /// Computes `G g`.
    #[inline(always)]
    fn filter(self, g: [S::f32s; 3]) -> [S::f32s; 6] {
        let even_a = self.scaled(1.0 / AT_A, self.scaled_plus(A2, g[2], g[0]));
        let even_b = self.scaled(1.0 / AT_B, self.scaled_plus(B2, g[2], g[0]));
        [
            self.scaled(1.0 / AT_ZERO, g[0]),
            self.scaled_plus(A / AT_A, g[1], even_a),
            self.scaled_plus(-A / AT_A, g[1], even_a),
            self.scaled_plus(B / AT_B, g[1], even_b),
            self.scaled_plus(-B / AT_B, g[1], even_b),
            g[2],
        ]
    }

    /// Computes `G^T u`.
    #[inline(always)]
    fn filter_gradient(self, u: [S::f32s; 6]) -> [S::f32s; 3] {
        let (even_a, odd_a) = (self.scaled(1.0 / AT_A, self.add(u[1], u[2])), self.sub(u[1], u[2]));
        let (even_b, odd_b) = (self.scaled(1.0 / AT_B, self.add(u[3], u[4])), self.sub(u[3], u[4]));
        [
            self.scaled_plus(1.0 / AT_ZERO, u[0], self.add(even_a, even_b)),
            self.scaled_plus(A / AT_A, odd_a, self.scaled(B / AT_B, odd_b)),
            self.scaled_plus(A2, even_a, self.scaled_plus(B2, even_b, u[5])),
        ]
    }
}

/// Transforms a tile of NxN positions along both axes to TxT positions.
// Closures passed to standard library functions are not compiled for the caller's wide vectors. Loops are.
#[inline(always)]
fn both<V: Copy, const N: usize, const T: usize>(
    transform: impl Fn([V; N]) -> [V; T] + Copy,
    tile: impl Fn(usize, usize) -> V,
    mut store: impl FnMut(usize, usize, V),
) {
    let any = tile(0, 0);
    let mut half = [[any; N]; T];
    for column in 0..N {
        let mut places = [any; N];
        for (row, place) in places.iter_mut().enumerate() {
            *place = tile(row, column);
        }
        for (half, value) in half.iter_mut().zip(transform(places)) {
            half[column] = value;
        }
    }
    for (row, half) in half.into_iter().enumerate() {
        for (column, value) in transform(half).into_iter().enumerate() {
            store(row, column, value);
        }
    }
}

/// The rows of the 36 matrices that a task computes, one slice of each matrix.
type Rows<'a> = [&'a mut [f32]; POSITIONS];

/// Splits matrices `[36, rows, columns]` into parts: each task gets its rows of all of them.
fn in_parts(matrices: &mut [f32], [rows, columns]: [usize; 2], tasks: usize) -> Vec<Mutex<Vec<&mut [f32]>>> {
    let mut parts: Vec<Vec<&mut [f32]>> = (0..tasks).map(|_| Vec::with_capacity(POSITIONS)).collect();
    for matrix in matrices.chunks_exact_mut((rows * columns).max(1)) {
        let mut rest = matrix;
        for (at, own) in parts.iter_mut().enumerate() {
            let (part, after) = rest.split_at_mut(rows_of(at, tasks, rows).len() * columns);
            own.push(part);
            rest = after;
        }
    }
    parts.into_iter().map(Mutex::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALARS: Vectors<pulp::Scalar> = Vectors(pulp::Scalar);

    #[test]
    fn the_transforms_compute_a_correlation() {
        let d = [0.3, -1.2, 0.7, 2.0, -0.4, 1.1];
        let g = [0.5, -0.8, 1.3];
        let (v, u) = (SCALARS.input(d), SCALARS.filter(g));
        let y = SCALARS.output(std::array::from_fn(|at| v[at] * u[at]));
        for (at, y) in y.iter().enumerate() {
            let expected: f32 = (0..3).map(|k| g[k] * d[at + k]).sum();
            assert!((y - expected).abs() < 1e-5, "{at}: {y} instead of {expected}");
        }
    }

    #[test]
    fn the_backward_transforms_are_the_transposes() {
        let unit = |at: usize| move |i: usize| if i == at { 1.0f32 } else { 0.0 };
        for row in 0..6 {
            for column in 0..4 {
                let forward = SCALARS.output(std::array::from_fn(unit(row)))[column];
                assert_eq!(forward, SCALARS.output_gradient(std::array::from_fn(unit(column)))[row]);
            }
            for column in 0..3 {
                let forward = SCALARS.filter(std::array::from_fn(unit(column)))[row];
                let backward = SCALARS.filter_gradient(std::array::from_fn(unit(row)))[column];
                assert!((forward - backward).abs() < 1e-7, "{row}, {column}: {forward} and {backward}");
            }
        }
    }
}
