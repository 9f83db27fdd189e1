//! Convolutions by kernels of 3 x 3 places with a quarter of the products.
//!
//! Winograd's minimal filtering `F(4 x 4, 3 x 3)` (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
//! 2015): a tile of 4 x 4 outputs is `Y = A^T [(G g G^T) * (B^T d B)] A` of a tile `d` of 6 x 6 inputs, `*` being the
//! product of elements. It takes 36 products where the sum takes 144. Over all input channels and tiles, each of the 36
//! places is a matrix product. The gradient by the weights is the same form read backwards,
//! `dg = G^T [(B^T d B) * (A dY A^T)] G`. Transforms take little arithmetic and, over whole tensors, much memory: they are
//! made of a few tiles at a time, which stay in the cache until their products are done ([`products`]).
//!
//! The five finite points are 0, ±3/4 and ±3/2: their powers and the coefficients of B are exact, and with 256 channels
//! the worst error is about a fifth of that with the usual points 0, ±1 and ±2, and six times that of the plain sum.
//!
//! Matrices lie as `[36, P, C]` with P tiles in the order of image, row, column. Channels are the lanes of vectors.

use std::sync::Mutex;

use pulp::Simd;

use super::rows_of;

mod filters;

mod node;

mod products;

mod tiles;

pub(super) use node::WinogradNode;

/// Outputs of a tile along an axis.
const TILE: usize = 4;

/// Inputs of a tile along an axis, and places of a transformed tile.
const SPREAD: usize = 6;

/// Matrices of a transformed tensor.
const PLACES: usize = SPREAD * SPREAD;

/// Channels that are computed side by side: a line of the cache, and a multiple of every vector.
const BLOCK: usize = 16;

/// One element of each of the channels of a block.
type Lanes = [f32; BLOCK];

/// The points a and b, beside 0, -a, -b and infinity.
const A: f32 = 0.75;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;

/// The products of a point's differences from the others: rows of G are divided by them.
const AT_ZERO: f32 = A2 * B2;
const AT_A: f32 = 2.0 * A2 * (A2 - B2);
const AT_B: f32 = 2.0 * B2 * (B2 - A2);

/// Arithmetic on vectors.
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

    /// `factor a`.
    #[inline(always)]
    fn scaled(self, factor: f32, a: S::f32s) -> S::f32s {
        self.0.mul_f32s(self.0.splat_f32s(factor), a)
    }

    /// `factor a + b`.
    #[inline(always)]
    fn scaled_plus(self, factor: f32, a: S::f32s, b: S::f32s) -> S::f32s {
        self.0.mul_add_e_f32s(self.0.splat_f32s(factor), a, b)
    }

    /// The vector of a block's channels from `sub` vectors on.
    #[inline(always)]
    fn load(self, lanes: &Lanes, sub: usize) -> S::f32s {
        S::as_simd_f32s(lanes).0[sub]
    }

    /// A vector, or what is left of one.
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

    /// A vector, or as much of it as there is room for.
    #[inline(always)]
    fn store_up_to(self, values: &mut [f32], value: S::f32s) {
        match S::as_mut_simd_f32s(values) {
            ([whole], []) => *whole = value,
            _ => self.0.partial_store_f32s(values, value),
        }
    }

    /// `B^T d`.
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

    /// `A^T m`.
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

    /// `A y`.
    #[inline(always)]
    fn output_gradient(self, y: [S::f32s; 4]) -> [S::f32s; 6] {
        let (even_a, odd_a) = (self.scaled_plus(A2, y[2], y[0]), self.scaled(A, self.scaled_plus(A2, y[3], y[1])));
        let (even_b, odd_b) = (self.scaled_plus(B2, y[2], y[0]), self.scaled(B, self.scaled_plus(B2, y[3], y[1])));
        [y[0], self.add(even_a, odd_a), self.sub(even_a, odd_a), self.add(even_b, odd_b), self.sub(even_b, odd_b), y[3]]
    }

    /// `G g`.
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

    /// `G^T u`.
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

/// Transforms a tile of N x N places along both axes to T x T places.
// Functions of the standard library that take closures are not compiled for the wide vectors of the caller; loops are.
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

/// The rows of 36 matrices that a task computes, one slice of each matrix.
type Rows<'a> = [&'a mut [f32]; PLACES];

/// Matrices `[36, rows, columns]`, for every task the rows of all of them.
fn in_parts(matrices: &mut [f32], [rows, columns]: [usize; 2], tasks: usize) -> Vec<Mutex<Vec<&mut [f32]>>> {
    let mut parts: Vec<Vec<&mut [f32]>> = (0..tasks).map(|_| Vec::with_capacity(PLACES)).collect();
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
    fn the_transforms_make_a_correlation() {
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
    fn the_backward_transforms_are_the_transposed_ones() {
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
