//! Weighted least squares by one layer, or by several that add up, in double precision.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::solvers::Solve;
use faer::{Accum, Mat, MatRef, Par, Side};

/// Sums of one system `X D = R`: columns of X, what is left of the targets, and weights of the rows.
///
/// D is what is added to the weights, so that the ridge pulls towards the weights that stand there and rounding of large
/// weights does not matter.
#[derive(Debug)]
pub(super) struct System {
    columns: usize,
    outputs: usize,
    /// `X^T X`, of which the lower half counts.
    products: Mat<f64>,
    /// `X^T R`.
    residuals: Mat<f64>,
    column_sums: Vec<f64>,
    residual_sums: Vec<f64>,
    /// The sum of all squares of R.
    squares: f64,
    /// The sum of the weights of all rows.
    weight: f64,
    rows: usize,
    /// All rows, while a fit in their number is smaller than one in that of the columns.
    kept: Option<Kept>,
}

/// Rows as they were given, with the weight of each.
#[derive(Debug, Default)]
struct Kept {
    x: Vec<f32>,
    r: Vec<f32>,
    weights: Vec<f64>,
}

/// What comes of a fit.
#[derive(Clone, Debug)]
pub(super) struct Solution {
    /// What is added to the weights, `[columns, outputs]`, row-major.
    pub(super) change: Vec<f64>,
    /// What is added to the bias.
    pub(super) bias: Option<Vec<f64>>,
    /// The sum of the squares of what was left before.
    pub(super) before: f64,
    /// The same afterwards.
    pub(super) after: f64,
}

impl System {
    /// `rows` are to be expected in all.
    pub(super) fn new(columns: usize, outputs: usize, rows: usize) -> Self {
        let is_short = rows < columns;
        let size = if is_short { 0 } else { columns };
        Self {
            columns,
            outputs,
            products: Mat::zeros(size, size),
            residuals: Mat::zeros(columns, outputs),
            column_sums: vec![0.0; columns],
            residual_sums: vec![0.0; outputs],
            squares: 0.0,
            weight: 0.0,
            rows: 0,
            kept: is_short.then(Default::default),
        }
    }

    /// Adds rows of the same weight: `x` is `[rows, columns]`, `r` is `[rows, outputs]`, both row-major.
    pub(super) fn add(&mut self, x: &[f32], r: &[f32], weight: f64, par: Par) {
        let rows = x.len() / self.columns.max(1);
        let (x_mat, r_mat) =
            (MatRef::from_row_major_slice(x, rows, self.columns), MatRef::from_row_major_slice(r, rows, self.outputs));
        let factor = weight as f32;
        if self.kept.is_none() {
            let mut products = Mat::<f32>::zeros(self.columns, self.columns);
            triangular::matmul(
                products.as_mut(),
                BlockStructure::TriangularLower,
                Accum::Replace,
                x_mat.transpose(),
                BlockStructure::Rectangular,
                x_mat,
                BlockStructure::Rectangular,
                factor,
                par,
            );
            for column in 0..self.columns {
                let (into, from) = (self.products.col_mut(column), products.col(column));
                into.iter_mut().zip(from.iter()).skip(column).for_each(|(into, from)| *into += f64::from(*from));
            }
        }
        let mut residuals = Mat::<f32>::zeros(self.columns, self.outputs);
        matmul(residuals.as_mut(), Accum::Replace, x_mat.transpose(), r_mat, factor, par);
        for column in 0..self.outputs {
            let (into, from) = (self.residuals.col_mut(column), residuals.col(column));
            into.iter_mut().zip(from.iter()).for_each(|(into, from)| *into += f64::from(*from));
        }
        let sum = |sums: &mut [f64], values: &[f32]| {
            for row in values.chunks_exact(sums.len().max(1)) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * f64::from(*value));
            }
        };
        sum(&mut self.column_sums, x);
        sum(&mut self.residual_sums, r);
        self.squares += weight * r.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
        self.weight += weight * rows as f64;
        self.rows += rows;
        if let Some(kept) = &mut self.kept {
            kept.x.extend_from_slice(x);
            kept.r.extend_from_slice(r);
            kept.weights.extend(std::iter::repeat_n(weight, rows));
        }
    }

    /// `X^T X` of values less their means, of which the lower half counts.
    pub(super) fn centred(&self) -> Mat<f64> {
        let mut matrix = self.products.clone();
        for column in 0..matrix.ncols() {
            let mean = self.column_sums[column] / self.weight;
            for row in column..self.columns {
                matrix[(row, column)] -= self.column_sums[row] * mean;
            }
        }
        matrix
    }

    /// Solves `(X^T X + ridge mean(diag) I) D = X^T R`, of values less their means where there is a bias to take up the
    /// means. `None` where there are no rows, or the matrix can't be factorised.
    pub(super) fn solve(&self, ridge: f64, has_bias: bool, par: Par) -> Option<Solution> {
        if self.rows == 0 || self.weight <= 0.0 || self.columns == 0 {
            return None;
        }
        let (change, before, after) = match &self.kept {
            None => self.solve_by_columns(ridge, has_bias, par)?,
            Some(kept) => self.solve_by_rows(kept, ridge, has_bias, par)?,
        };
        let bias = has_bias.then(|| {
            let of = |output: usize| {
                let moved: f64 = (0..self.columns).map(|at| self.column_sums[at] * change[(at, output)]).sum();
                (self.residual_sums[output] - moved) / self.weight
            };
            (0..self.outputs).map(of).collect()
        });
        let values = (0..self.columns).flat_map(|row| (0..self.outputs).map(move |column| (row, column)));
        let change = values.map(|(row, column)| change[(row, column)]).collect();
        Some(Solution { change, bias, before: self.squares.max(before), after: after.max(0.0) })
    }

    fn solve_by_columns(&self, ridge: f64, has_bias: bool, par: Par) -> Option<(Mat<f64>, f64, f64)> {
        let mut matrix = if has_bias { self.centred() } else { self.products.clone() };
        let mut right = self.residuals.clone();
        let mut before = self.squares;
        if has_bias {
            for column in 0..self.outputs {
                let mean = self.residual_sums[column] / self.weight;
                for row in 0..self.columns {
                    right[(row, column)] -= self.column_sums[row] * mean;
                }
                before -= self.residual_sums[column] * mean;
            }
        }
        let change = regularised(&matrix, self.columns, ridge, &right)?;
        // |R - X D|^2 = |R|^2 - 2 <D, X^T R> + <D, X^T X D>.
        for column in 0..self.columns {
            for row in 0..column {
                matrix[(row, column)] = matrix[(column, row)];
            }
        }
        let mut image = Mat::<f64>::zeros(self.columns, self.outputs);
        matmul(image.as_mut(), Accum::Replace, &matrix, &change, 1.0, par);
        let after = before - 2.0 * inner(&change, &right) + inner(&change, &image);
        Some((change, before, after))
    }

    /// `D = X^T (X X^T + ridge I)^-1 R`, which is the same.
    fn solve_by_rows(&self, kept: &Kept, ridge: f64, has_bias: bool, par: Par) -> Option<(Mat<f64>, f64, f64)> {
        let mean = |sums: &[f64], at: usize| if has_bias { sums[at] / self.weight } else { 0.0 };
        let x = Mat::from_fn(self.rows, self.columns, |row, column| {
            let value = f64::from(kept.x[row * self.columns + column]) - mean(&self.column_sums, column);
            kept.weights[row].sqrt() * value
        });
        let r = Mat::from_fn(self.rows, self.outputs, |row, column| {
            let value = f64::from(kept.r[row * self.outputs + column]) - mean(&self.residual_sums, column);
            kept.weights[row].sqrt() * value
        });
        let mut matrix = Mat::<f64>::zeros(self.rows, self.rows);
        matmul(matrix.as_mut(), Accum::Replace, &x, x.transpose(), 1.0, par);
        let weights = regularised(&matrix, self.columns, ridge, &r)?;
        let mut change = Mat::<f64>::zeros(self.columns, self.outputs);
        matmul(change.as_mut(), Accum::Replace, x.transpose(), &weights, 1.0, par);
        let mut left = r.clone();
        matmul(left.as_mut(), Accum::Add, &x, &change, -1.0, par);
        Some((change, inner(&r, &r), inner(&left, &left)))
    }
}

/// The factor L of `(matrix + ridge d I) = L L^T`, d being the mean of the diagonal, zero above it. `None` where the matrix
/// can't be factorised.
pub(super) fn factor(mut matrix: Mat<f64>, ridge: f64) -> Option<Mat<f64>> {
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

/// The sum of the products of all elements.
fn inner(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    let of = |column: usize| a.col(column).iter().zip(b.col(column).iter()).map(|(a, b)| a * b).sum::<f64>();
    (0..a.ncols()).map(of).sum()
}

/// Solves `(matrix + ridge d I) Z = right`, d being the trace over the number of columns; with larger ridges where that
/// can't be factorised.
fn regularised(matrix: &Mat<f64>, columns: usize, ridge: f64, right: &Mat<f64>) -> Option<Mat<f64>> {
    let size = matrix.nrows();
    let diagonal: f64 = (0..size).map(|at| matrix[(at, at)]).sum::<f64>() / columns as f64;
    if !diagonal.is_finite() || diagonal <= 0.0 {
        return None;
    }
    [1.0, 10.0, 100.0, 1000.0].into_iter().find_map(|factor| {
        let mut regular = matrix.clone();
        (0..size).for_each(|at| regular[(at, at)] += ridge * factor * diagonal);
        Some(regular.llt(Side::Lower).ok()?.solve(right))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Rows of which the targets are a known map of the columns, and how far a solution is from it.
    fn distance(rows: usize, columns: usize, expected_rows: usize, has_bias: bool) -> (f64, f64) {
        let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(7);
        let mut draw = |count: usize| -> Vec<f32> { (0..count).map(|_| random.random_range(-1.0..1.0)).collect() };
        let (outputs, map) = (3, draw(columns * 3));
        let x = draw(rows * columns);
        let target = |row: &[f32], output: usize| -> f32 {
            let sum: f32 = row.iter().enumerate().map(|(at, value)| value * map[at * 3 + output]).sum();
            sum + if has_bias { 2.0 + output as f32 } else { 0.0 }
        };
        let r: Vec<f32> =
            x.chunks(columns).flat_map(|row| (0..outputs).map(|at| target(row, at)).collect::<Vec<_>>()).collect();
        let mut system = System::new(columns, outputs, expected_rows);
        for (x, r) in x.chunks(columns * rows / 2).zip(r.chunks(outputs * rows / 2)) {
            system.add(x, r, 0.5, Par::Seq);
        }
        let solution = system.solve(1e-9, has_bias, Par::Seq).unwrap();
        let far = solution.change.iter().zip(&map).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max);
        if let Some(bias) = &solution.bias {
            assert!(bias.iter().enumerate().all(|(at, bias)| (bias - 2.0 - at as f64).abs() < 1e-4));
        }
        (far, solution.after / solution.before)
    }

    #[test]
    fn a_linear_map_is_found_with_and_without_a_bias() {
        for has_bias in [false, true] {
            let (far, left) = distance(200, 10, 200, has_bias);
            assert!(far < 1e-4 && left < 1e-9, "{far} {left}");
        }
    }

    #[test]
    fn both_forms_give_the_same() {
        // Fewer rows are promised than come, so that the form by rows solves what the other could.
        let (far, left) = distance(200, 10, 5, true);
        assert!(far < 1e-4 && left < 1e-9, "{far} {left}");
    }

    #[test]
    fn fewer_rows_than_columns_are_met_exactly() {
        let (_, left) = distance(8, 40, 8, false);
        assert!(left < 1e-9, "{left}");
    }
}
