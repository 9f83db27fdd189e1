//! Weighted least squares for one layer, or for several that add up, in double precision and bounded memory.
//!
//! If there are more rows than columns, and `X^T X` fits into the memory limit, that matrix is the only one of its size.
//! Products are added to its lower half in panels of columns. It is factorised there, and the upper half keeps a copy.
//! Otherwise the rows are kept, up to [`System::rows_held`], and a matrix of that size is factorised:
//! `X^T (X X^T + ridge I)^-1` equals `(X^T X + ridge I)^-1 X^T`.

mod factor;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use super::shared::of_all;
use crate::collective::Collective;
use crate::error::Error;

pub(super) use factor::factor;
use factor::{Symmetric, factorise};

/// Number of columns whose products are computed at a time.
const PANEL: usize = 256;

/// Sums of one system `X D = R`: columns of X, residuals R of the targets, and weights of the rows.
///
/// D is the change of the weights. The ridge therefore pulls towards the current weights, and the rounding of large weights
/// does not matter.
#[derive(Debug)]
pub(super) struct System {
    columns: usize,
    outputs: usize,
    /// By use of the weights, the sums of its rows.
    uses: Vec<Use>,
    /// `X^T R`.
    residuals: Mat<f64>,
    /// The sum of all squares of R.
    squares: f64,
    form: Form,
}

/// Sums of the rows of one use.
#[derive(Debug)]
struct Use {
    columns: Vec<f64>,
    residuals: Vec<f64>,
    /// The sum of the weights of all rows.
    weight: f64,
    /// Whether the use has a bias, so that the means of its rows are subtracted.
    is_centred: bool,
}

/// What is stored of the rows.
#[derive(Debug)]
enum Form {
    /// `X^T X`. Only the lower half is used.
    Columns(Mat<f64>),
    /// The rows themselves, times the square roots of their weights.
    Rows(Rows),
}

#[derive(Debug, Default)]
struct Rows {
    x: Vec<f32>,
    r: Vec<f32>,
    /// By row, the square root of its weight, and its use.
    of: Vec<(f64, usize)>,
}

/// The solution of a system.
#[derive(Debug)]
pub(super) struct Solution {
    /// The change of the weights, of shape `[columns, outputs]`.
    pub(super) change: Mat<f64>,
    /// The squared error before the change.
    pub(super) before: f64,
    /// The squared error after the change.
    pub(super) after: f64,
}

impl System {
    /// Returns the number of rows that fit into this many bytes if `X^T X` does not. `None`: it does.
    pub(super) fn rows_held(columns: usize, outputs: usize, memory: u64) -> Option<usize> {
        let columns = columns as f64;
        let memory = memory as f64;
        if 8.0 * columns * columns <= memory {
            return None;
        }
        // Each row needs its elements and one row of the matrix: 8 rows^2 + 4 (columns + outputs) rows = memory.
        let linear = 4.0 * (columns + outputs as f64);
        Some((((linear * linear + 32.0 * memory).sqrt() - linear) / 16.0).max(1.0) as usize)
    }

    /// Creates a system. `rows` is the expected number of rows; `centred` states for each use whether it has a bias.
    pub(super) fn new(columns: usize, outputs: usize, rows: usize, centred: &[bool], memory: u64) -> Self {
        let holds_rows = rows < columns || Self::rows_held(columns, outputs, memory).is_some();
        let of = |is_centred: &bool| Use {
            columns: vec![0.0; columns],
            residuals: vec![0.0; outputs],
            weight: 0.0,
            is_centred: *is_centred,
        };
        Self {
            columns,
            outputs,
            uses: centred.iter().map(of).collect(),
            residuals: Mat::zeros(columns, outputs),
            squares: 0.0,
            form: if holds_rows { Form::Rows(Rows::default()) } else { Form::Columns(Mat::zeros(columns, columns)) },
        }
    }

    /// Adds rows of the same weight to a use: `x` is `[rows, columns]`, `r` is `[rows, outputs]`, both row-major.
    pub(super) fn add(&mut self, number: usize, x: &[f32], r: &[f32], weight: f64, par: Par) {
        let rows = x.len() / self.columns.max(1);
        let (x_mat, r_mat) =
            (MatRef::from_row_major_slice(x, rows, self.columns), MatRef::from_row_major_slice(r, rows, self.outputs));
        match &mut self.form {
            Form::Columns(products) => {
                let columns = self.columns;
                let mut panel = Mat::<f32>::zeros(columns, PANEL.min(columns));
                for first in (0..columns).step_by(PANEL) {
                    let count = PANEL.min(columns - first);
                    let mut panel = panel.get_mut(first.., ..count);
                    let (left, right) = (x_mat.get(.., first..), x_mat.get(.., first..first + count));
                    matmul(panel.as_mut(), Accum::Replace, left.transpose(), right, weight as f32, par);
                    for column in 0..count {
                        let into = products.col_mut(first + column).get_mut(first + column..);
                        let from = panel.as_ref().col(column).get(column..);
                        into.iter_mut().zip(from.iter()).for_each(|(into, from)| *into += f64::from(*from));
                    }
                }
                let mut residuals = Mat::<f32>::zeros(columns, self.outputs);
                matmul(residuals.as_mut(), Accum::Replace, x_mat.transpose(), r_mat, weight as f32, par);
                add_to(&mut self.residuals, &residuals);
            }
            Form::Rows(held) => {
                let root = weight.sqrt();
                held.x.extend(x.iter().map(|x| x * root as f32));
                held.r.extend(r.iter().map(|r| r * root as f32));
                held.of.extend(std::iter::repeat_n((root, number), rows));
            }
        }
        let sum = |sums: &mut [f64], values: &[f32]| {
            for row in values.chunks_exact(sums.len().max(1)) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * f64::from(*value));
            }
        };
        if let Some(of) = self.uses.get_mut(number) {
            sum(&mut of.columns, x);
            sum(&mut of.residuals, r);
            of.weight += weight * rows as f64;
        }
        self.squares += weight * r.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    }

    /// Combines the rows of all ranks: sums in the order of the ranks, rows concatenated.
    ///
    /// # Errors
    /// A rank has stopped.
    pub(super) fn share(&mut self, ranks: &dyn Collective) -> Result<(), Error> {
        match &mut self.form {
            Form::Columns(products) => {
                for first in (0..self.columns).step_by(PANEL) {
                    let panel = first..(first + PANEL).min(self.columns);
                    let mut sums: Vec<f64> = Vec::new();
                    panel.clone().for_each(|at| sums.extend(products.col(at).get(at..).iter()));
                    ranks.sum_f64(&mut sums)?;
                    let mut rest = sums.into_iter();
                    panel.for_each(|at| {
                        let into = products.col_mut(at).get_mut(at..);
                        into.iter_mut().zip(&mut rest).for_each(|(into, sum)| *into = sum);
                    });
                }
            }
            Form::Rows(rows) => {
                let floats = |values: &[f32]| -> Result<Vec<f32>, Error> {
                    let all = of_all(ranks, bytemuck::cast_slice(values).to_vec())?.concat();
                    Ok(bytemuck::pod_collect_to_vec(&all))
                };
                (rows.x, rows.r) = (floats(&rows.x)?, floats(&rows.r)?);
                let own: Vec<[u64; 2]> =
                    rows.of.iter().map(|(root, number)| [root.to_bits(), *number as u64]).collect();
                let all = of_all(ranks, bytemuck::cast_slice(&own).to_vec())?.concat();
                let all = bytemuck::pod_collect_to_vec::<u8, [u64; 2]>(&all);
                rows.of = all.into_iter().map(|[root, number]| (f64::from_bits(root), number as usize)).collect();
            }
        }
        let mut sums = vec![self.squares];
        (0..self.outputs).for_each(|output| sums.extend(self.residuals.col(output).iter()));
        for of in &self.uses {
            sums.extend(of.columns.iter().chain(&of.residuals).chain([&of.weight]));
        }
        ranks.sum_f64(&mut sums)?;
        let mut rest = sums.into_iter();
        let mut fill = |into: &mut f64| *into = rest.next().unwrap_or_default();
        fill(&mut self.squares);
        (0..self.outputs).for_each(|output| self.residuals.col_mut(output).iter_mut().for_each(&mut fill));
        for of in &mut self.uses {
            of.columns.iter_mut().chain(&mut of.residuals).chain([&mut of.weight]).for_each(&mut fill);
        }
        Ok(())
    }

    /// Returns the change of the bias of a use after a change of the weights. `None`: the use has no bias.
    fn bias(&self, number: usize, change: &Mat<f64>) -> Option<Vec<f64>> {
        let of = self.uses.get(number).filter(|of| of.is_centred && of.weight > 0.0)?;
        let at = |output: usize| {
            let moved: f64 = of.columns.iter().zip(change.col(output).iter()).map(|(x, d)| x * d).sum();
            (of.residuals[output] - moved) / of.weight
        };
        Some((0..self.outputs).map(at).collect())
    }

    /// Subtracts the means of the uses that have a bias. No rows can be added afterwards.
    pub(super) fn centred(mut self, par: Par) -> Centred {
        let centred: Vec<usize> =
            (0..self.uses.len()).filter(|at| self.uses[*at].is_centred && self.uses[*at].weight > 0.0).collect();
        let mut before = self.squares;
        match &mut self.form {
            Form::Columns(products) => {
                for of in centred.iter().map(|at| &self.uses[*at]) {
                    for column in 0..self.columns {
                        let mean = of.columns[column] / of.weight;
                        let into = products.col_mut(column).get_mut(column..);
                        into.iter_mut().zip(&of.columns[column..]).for_each(|(into, sum)| *into -= sum * mean);
                    }
                    for output in 0..self.outputs {
                        let mean = of.residuals[output] / of.weight;
                        let into = self.residuals.col_mut(output);
                        into.iter_mut().zip(&of.columns).for_each(|(into, sum)| *into -= sum * mean);
                        before -= of.residuals[output] * mean;
                    }
                }
            }
            Form::Rows(held) => {
                let take = |values: &mut [f32], sums: &dyn Fn(&Use) -> &[f64], count: usize| {
                    for (row, (root, number)) in values.chunks_exact_mut(count.max(1)).zip(&held.of) {
                        if centred.contains(number) {
                            let of = &self.uses[*number];
                            let factor = root / of.weight;
                            row.iter_mut().zip(sums(of)).for_each(|(value, sum)| *value -= (factor * sum) as f32);
                        }
                    }
                };
                take(&mut held.x, &|of| &of.columns, self.columns);
                take(&mut held.r, &|of| &of.residuals, self.outputs);
                let x = MatRef::from_row_major_slice(&held.x, held.of.len(), self.columns);
                let r = MatRef::from_row_major_slice(&held.r, held.of.len(), self.outputs);
                let mut residuals = Mat::<f32>::zeros(self.columns, self.outputs);
                matmul(residuals.as_mut(), Accum::Replace, x.transpose(), r, 1.0, par);
                add_to(&mut self.residuals, &residuals);
                before = held.r.iter().map(|value| f64::from(*value).powi(2)).sum();
            }
        }
        Centred { system: self, before: before.max(0.0) }
    }
}

/// Adds a matrix in single precision to one in double.
fn add_to(into: &mut Mat<f64>, from: &Mat<f32>) {
    for column in 0..from.ncols() {
        let into = into.col_mut(column);
        into.iter_mut().zip(from.col(column).iter()).for_each(|(into, from)| *into += f64::from(*from));
    }
}

/// A system with all its rows.
#[derive(Debug)]
pub(super) struct Centred {
    system: System,
    /// The squared error before the fit.
    pub(super) before: f64,
}

impl Centred {
    /// Returns the products of the columns, of which only the lower half is used; an empty matrix if the rows are stored.
    pub(super) fn into_products(self) -> Mat<f64> {
        match self.system.form {
            Form::Columns(products) => products,
            Form::Rows(_) => Mat::new(),
        }
    }

    /// As [`System::bias`].
    pub(super) fn bias(&self, number: usize, change: &Mat<f64>) -> Option<Vec<f64>> {
        self.system.bias(number, change)
    }

    /// Solves `(X^T X + ridge mean(diag) I) D = X^T R`. `None`: there are no rows, or the matrix can't be factorised, not
    /// even with larger ridges.
    pub(super) fn solve(&mut self, ridge: f64, par: Par) -> Option<Solution> {
        if self.system.columns == 0 || self.system.outputs == 0 {
            return None;
        }
        let System { columns, outputs, residuals, form, .. } = &mut self.system;
        match form {
            Form::Columns(products) => {
                let symmetric = Symmetric::new(products);
                let diagonal = symmetric.trace() / *columns as f64;
                let (change, ridge) = factorise(products, &symmetric, ridge * diagonal, residuals, par)?;
                // |R - X D|^2 = |R|^2 - 2 <D, X^T R> + <D, X^T X D>, and X^T X D = X^T R - ridge D.
                let after = self.before - inner(&change, residuals) - ridge * inner(&change, &change);
                Some(Solution { before: self.before, after: after.max(0.0), change })
            }
            Form::Rows(held) => {
                let (rows, outputs) = (held.of.len(), *outputs);
                let x = MatRef::from_row_major_slice(&held.x, rows, *columns);
                let mut matrix = Mat::<f64>::zeros(rows, rows);
                let mut panel = Mat::<f32>::zeros(rows, PANEL.min(rows));
                for first in (0..rows).step_by(PANEL) {
                    let count = PANEL.min(rows - first);
                    let mut panel = panel.get_mut(first.., ..count);
                    let (left, right) = (x.get(first.., ..), x.get(first..first + count, ..));
                    matmul(panel.as_mut(), Accum::Replace, left, right.transpose(), 1.0, par);
                    for column in 0..count {
                        let into = matrix.col_mut(first + column).get_mut(first + column..);
                        let from = panel.as_ref().col(column).get(column..);
                        into.iter_mut().zip(from.iter()).for_each(|(into, from)| *into = f64::from(*from));
                    }
                }
                let symmetric = Symmetric::new(&mut matrix);
                let diagonal = symmetric.trace() / *columns as f64;
                let r = Mat::from_fn(rows, outputs, |row, output| f64::from(held.r[row * outputs + output]));
                let (weights, _) = factorise(&mut matrix, &symmetric, ridge * diagonal, &r, par)?;
                let mut change = Mat::<f64>::zeros(*columns, outputs);
                let weights = Mat::from_fn(rows, outputs, |row, output| weights[(row, output)] as f32);
                let mut product = Mat::<f32>::zeros(*columns, outputs);
                matmul(product.as_mut(), Accum::Replace, x.transpose(), &weights, 1.0, par);
                add_to(&mut change, &product);
                let after = self.after(&change, par);
                Some(Solution { before: self.before, after, change })
            }
        }
    }

    /// Returns the squared error after a change of the weights, with biases fitted to it.
    pub(super) fn after(&self, change: &Mat<f64>, par: Par) -> f64 {
        let System { columns, outputs, residuals, form, .. } = &self.system;
        match form {
            Form::Columns(products) => {
                let mut image = Mat::<f64>::zeros(*columns, *outputs);
                factor::product(products, change, &mut image, par);
                (self.before - 2.0 * inner(change, residuals) + inner(change, &image)).max(0.0)
            }
            Form::Rows(held) => {
                let rows = held.of.len();
                let x = MatRef::from_row_major_slice(&held.x, rows, *columns);
                let change = Mat::from_fn(*columns, *outputs, |row, output| change[(row, output)] as f32);
                let mut left = Mat::from_fn(rows, *outputs, |row, output| held.r[row * outputs + output]);
                matmul(left.as_mut(), Accum::Add, x, &change, -1.0, par);
                (0..*outputs).flat_map(|at| left.col(at).iter()).map(|value| f64::from(*value).powi(2)).sum()
            }
        }
    }
}

/// Returns the sum of the products of all elements.
fn inner(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    let of = |column: usize| a.col(column).iter().zip(b.col(column).iter()).map(|(a, b)| a * b).sum::<f64>();
    (0..a.ncols()).map(of).sum()
}

#[cfg(test)]
mod tests;
