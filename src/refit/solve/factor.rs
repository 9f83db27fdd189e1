//! Cholesky factorisation in one triangle of a symmetric matrix; the other triangle keeps a copy.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{Accum, Mat, Par, Side};

/// Number of columns that are factorised at a time.
const BLOCK: usize = 128;

/// The diagonal of a symmetric matrix. A factorisation overwrites the lower half and the diagonal; the upper half keeps a
/// copy of the lower one.
#[derive(Debug)]
pub(super) struct Symmetric {
    diagonal: Vec<f64>,
}

impl Symmetric {
    /// Copies the lower half of a matrix to the upper one.
    pub(super) fn new(matrix: &mut Mat<f64>) -> Self {
        let size = matrix.nrows();
        for first in (0..size).step_by(BLOCK) {
            // In blocks, so that rows and columns of both halves remain in the cache.
            let last = (first + BLOCK).min(size);
            for column in first..last {
                for row in column + 1..last {
                    matrix[(column, row)] = matrix[(row, column)];
                }
            }
            for second in (last..size).step_by(BLOCK) {
                for row in second..(second + BLOCK).min(size) {
                    for column in first..last {
                        matrix[(column, row)] = matrix[(row, column)];
                    }
                }
            }
        }
        Self { diagonal: (0..size).map(|at| matrix[(at, at)]).collect() }
    }

    /// Returns the sum of the diagonal.
    pub(super) fn trace(&self) -> f64 {
        self.diagonal.iter().sum()
    }

    /// Restores the lower half, with `ridge` added to the diagonal.
    fn restore(&self, matrix: &mut Mat<f64>, ridge: f64) {
        let size = matrix.nrows();
        for column in 0..size {
            for row in column + 1..size {
                matrix[(row, column)] = matrix[(column, row)];
            }
            matrix[(column, column)] = self.diagonal[column] + ridge;
        }
    }
}

/// Solves `(matrix + ridge I) Z = right`, with larger ridges if the matrix can't be factorised. Returns Z and the ridge.
/// Afterwards, the lower half of the matrix and its diagonal are restored.
pub(super) fn factorise(
    matrix: &mut Mat<f64>,
    symmetric: &Symmetric,
    ridge: f64,
    right: &Mat<f64>,
    par: Par,
) -> Option<(Mat<f64>, f64)> {
    if !ridge.is_finite() || symmetric.trace() <= 0.0 {
        return None;
    }
    // A ridge of zero also grows until the matrix can be factorised.
    let least = symmetric.trace() / matrix.nrows() as f64 * 1e-12;
    let found = [1.0, 10.0, 100.0, 1000.0].into_iter().find_map(|factor| {
        let ridge = if factor == 1.0 { ridge } else { ridge.max(least) * factor };
        symmetric.restore(matrix, ridge);
        cholesky(matrix, par)?;
        let mut z = right.clone();
        solve_lower_triangular_in_place(matrix.as_ref(), z.as_mut(), par);
        solve_upper_triangular_in_place(matrix.transpose(), z.as_mut(), par);
        Some((z, ridge))
    });
    symmetric.restore(matrix, 0.0);
    found
}

/// Returns the factor L of `(matrix + ridge d I) = L L^T`, where d is the mean of the diagonal, with zeros above the
/// diagonal. `None`: the matrix can't be factorised.
pub(in crate::refit) fn factor(mut matrix: Mat<f64>, ridge: f64) -> Option<Mat<f64>> {
    let size = matrix.nrows();
    let diagonal: f64 = (0..size).map(|at| matrix[(at, at)]).sum::<f64>() / size.max(1) as f64;
    if !diagonal.is_finite() || diagonal <= 0.0 {
        return None;
    }
    (0..size).for_each(|at| matrix[(at, at)] += ridge * diagonal);
    let factored = matrix.llt(Side::Lower).ok()?;
    let lower = factored.L();
    Some(Mat::from_fn(size, size, |row, column| if row < column { 0.0 } else { lower[(row, column)] }))
}

/// Factorises the lower half of a matrix in place. `None`: it is not positive definite.
fn cholesky(matrix: &mut Mat<f64>, par: Par) -> Option<()> {
    let size = matrix.nrows();
    for first in (0..size).step_by(BLOCK) {
        let last = (first + BLOCK).min(size);
        let block = matrix.get(first..last, first..last).to_owned();
        let block = block.llt(Side::Lower).ok()?;
        let lower = block.L();
        for column in first..last {
            for row in column..last {
                matrix[(row, column)] = lower[(row - first, column - first)];
            }
        }
        if last == size {
            break;
        }
        // The block below becomes A L^-T, and its square is subtracted from the rest.
        let (_, _, mut below, rest) =
            matrix.as_mut().get_mut(first.., first..).split_at_mut(last - first, last - first);
        solve_lower_triangular_in_place(lower, below.as_mut().transpose_mut(), par);
        triangular::matmul(
            rest,
            BlockStructure::TriangularLower,
            Accum::Add,
            below.as_ref(),
            BlockStructure::Rectangular,
            below.as_ref().transpose(),
            BlockStructure::Rectangular,
            -1.0,
            par,
        );
    }
    Some(())
}

/// Multiplies a symmetric matrix, of which only the lower half is used, by another matrix.
pub(super) fn product(matrix: &Mat<f64>, by: &Mat<f64>, out: &mut Mat<f64>, par: Par) {
    // First the lower half with the diagonal. Then the upper half: the lower one transposed, without the diagonal.
    triangular::matmul(
        out.as_mut(),
        BlockStructure::Rectangular,
        Accum::Replace,
        matrix.as_ref(),
        BlockStructure::TriangularLower,
        by.as_ref(),
        BlockStructure::Rectangular,
        1.0,
        par,
    );
    triangular::matmul(
        out.as_mut(),
        BlockStructure::Rectangular,
        Accum::Add,
        matrix.transpose(),
        BlockStructure::StrictTriangularUpper,
        by.as_ref(),
        BlockStructure::Rectangular,
        1.0,
        par,
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use faer::linalg::matmul::matmul;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Matrices larger than a block are solved and restored.
    #[test]
    fn a_matrix_is_solved_in_place_and_restored() {
        let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(1);
        for size in [1, 5, BLOCK, 2 * BLOCK + 17] {
            let half = Mat::<f64>::from_fn(size, size, |_, _| random.random_range(-1.0..1.0));
            let mut whole = Mat::<f64>::zeros(size, size);
            matmul(whole.as_mut(), Accum::Replace, &half, half.transpose(), 1.0, Par::Seq);
            (0..size).for_each(|at| whole[(at, at)] += 0.1);
            let expected = Mat::<f64>::from_fn(size, 3, |_, _| random.random_range(-1.0..1.0));
            let mut right = Mat::zeros(size, 3);
            product(&whole, &expected, &mut right, Par::Seq);
            let mut direct = Mat::zeros(size, 3);
            matmul(direct.as_mut(), Accum::Replace, &whole, &expected, 1.0, Par::Seq);
            // Only the lower half is used.
            let mut lower =
                Mat::from_fn(size, size, |row, column| if row >= column { whole[(row, column)] } else { 7.0 });
            let symmetric = Symmetric::new(&mut lower);
            let (found, _) = factorise(&mut lower, &symmetric, 0.0, &right, Par::Seq).unwrap();
            for column in 0..3 {
                for row in 0..size {
                    assert!((found[(row, column)] - expected[(row, column)]).abs() < 1e-6, "{size}");
                    assert!((right[(row, column)] - direct[(row, column)]).abs() < 1e-9, "{size}");
                }
            }
            assert!((0..size).all(|row| (0..=row).all(|column| lower[(row, column)] == whole[(row, column)])));
        }
    }

    #[test]
    fn a_singular_matrix_gets_a_larger_ridge() {
        let mut matrix = Mat::from_fn(4, 4, |_, _| 1.0);
        let symmetric = Symmetric::new(&mut matrix);
        let right = Mat::from_fn(4, 1, |_, _| 1.0);
        let (z, ridge) = factorise(&mut matrix, &symmetric, 0.0, &right, Par::Seq).unwrap();
        assert!(ridge > 0.0 && (z[(0, 0)] - 0.25).abs() < 1e-3, "{ridge} {z:?}");
        assert!(factorise(&mut matrix, &symmetric, f64::NAN, &right, Par::Seq).is_none());
    }
}
