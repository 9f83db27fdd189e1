//! The kernel distance between two sets of features.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, get_global_parallelism};
use ndarray::ArrayView2;
use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Serialize};

use super::frechet::check;
use crate::error::Error;

/// Maximum number of samples per set for which the kernel of all pairs is computed at once: 134 MB for each of three
/// matrices.
const WHOLE: usize = 4096;

/// The settings of the kernel distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelOptions {
    /// The number of random subsets. The distance is the mean over them.
    pub subsets: usize,
    /// The number of samples of each set in a subset. `None`: 1000, or all samples of the smaller set if it has fewer.
    pub subset_size: Option<usize>,
    /// The seed that chooses the subsets.
    pub seed: u64,
}

impl Default for KernelOptions {
    fn default() -> Self {
        Self { subsets: 100, subset_size: None, seed: 0 }
    }
}

/// The kernel distance over random subsets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KernelDistance {
    /// The mean over the subsets.
    pub mean: f64,
    /// The standard deviation over the subsets.
    pub deviation: f64,
    /// The number of subsets.
    pub subsets: usize,
    /// The number of samples of each set in a subset.
    pub subset_size: usize,
}

/// Computes the kernel distance of Bińkowski et al. 2018 ("Demystifying MMD GANs"; KID for Inception features). It is
/// the unbiased estimate of the squared maximum mean discrepancy with the kernel `(x·y / d + 1)³` of `d` features, over
/// random subsets. It may be negative.
///
/// If a subset has all samples of both sets, only one is used.
///
/// # Errors
/// The numbers of features differ, there are fewer than two samples, features are not finite, there are no subsets, or
/// subsets are larger than a set.
pub fn kernel_distance(
    a: ArrayView2<'_, f64>,
    b: ArrayView2<'_, f64>,
    options: &KernelOptions,
) -> Result<KernelDistance, Error> {
    let fewest = a.nrows().min(b.nrows());
    let size = options.subset_size.unwrap_or(fewest.min(1000));
    if size < 2 || size > fewest {
        return Err(Error::usage(format!("expected subsets of 2 to {fewest} samples, found {size}")));
    }
    if options.subsets == 0 {
        return Err(Error::usage("expected at least one subset, found 0"));
    }
    let is_all = size == a.nrows() && size == b.nrows();
    let mut random = Pcg64Mcg::seed_from_u64(options.seed);
    let mut choose = |count: usize| rand::seq::index::sample(&mut random, count, size).into_vec();
    let count = if is_all { 1 } else { options.subsets };
    let subsets: Vec<(Vec<usize>, Vec<usize>)> = (0..count).map(|_| (choose(a.nrows()), choose(b.nrows()))).collect();
    kernel_distance_on(a, b, &subsets)
}

/// Does what [`kernel_distance`] does, over given subsets: equally many rows of `a` and of `b`.
///
/// # Errors
/// As [`kernel_distance`], or a row does not exist.
pub fn kernel_distance_on(
    a: ArrayView2<'_, f64>,
    b: ArrayView2<'_, f64>,
    subsets: &[(Vec<usize>, Vec<usize>)],
) -> Result<KernelDistance, Error> {
    check(a)?;
    check(b)?;
    if a.ncols() != b.ncols() {
        return Err(Error::usage(format!(
            "expected the same number of features, found {} and {}",
            a.ncols(),
            b.ncols()
        )));
    }
    let size = subsets.first().map_or(0, |(rows, _)| rows.len());
    let exists = |(of_a, of_b): &(Vec<usize>, Vec<usize>)| {
        of_a.iter().all(|row| *row < a.nrows()) && of_b.iter().all(|row| *row < b.nrows())
    };
    if size < 2 || subsets.iter().any(|of| of.0.len() != size || of.1.len() != size || !exists(of)) {
        return Err(Error::usage("expected subsets with the same number of rows of both sets, at least two"));
    }
    let kernels = Kernels::of(a, b);
    let distances: Vec<f64> = subsets.iter().map(|(of_a, of_b)| kernels.distance(of_a, of_b)).collect();
    let count = distances.len() as f64;
    let mean = distances.iter().sum::<f64>() / count;
    let variance = distances.iter().map(|distance| (distance - mean).powi(2)).sum::<f64>() / count;
    Ok(KernelDistance { mean, deviation: variance.sqrt(), subsets: distances.len(), subset_size: size })
}

/// The kernel between all rows of two sets, `[a, a]`, `[b, b]` and `[a, b]`, or the rows to compute it from.
enum Kernels<'a> {
    Whole([Mat<f64>; 3]),
    Rows(ArrayView2<'a, f64>, ArrayView2<'a, f64>),
}

impl<'a> Kernels<'a> {
    fn of(a: ArrayView2<'a, f64>, b: ArrayView2<'a, f64>) -> Self {
        if a.nrows().max(b.nrows()) > WHOLE {
            return Self::Rows(a, b);
        }
        let all = |of: ArrayView2<'_, f64>| rows(of, &(0..of.nrows()).collect::<Vec<_>>());
        let (a, b) = (all(a), all(b));
        Self::Whole([kernel(&a, &a), kernel(&b, &b), kernel(&a, &b)])
    }

    /// Computes the squared discrepancy between rows of one set and equally many of the other.
    fn distance(&self, of_a: &[usize], of_b: &[usize]) -> f64 {
        let count = of_a.len() as f64;
        let [within_a, within_b, between] = match self {
            Self::Whole([aa, bb, ab]) => [
                sum(aa, of_a, of_a) - diagonal(aa, of_a),
                sum(bb, of_b, of_b) - diagonal(bb, of_b),
                sum(ab, of_a, of_b),
            ],
            Self::Rows(a, b) => {
                let (a, b) = (rows(*a, of_a), rows(*b, of_b));
                let every: Vec<usize> = (0..of_a.len()).collect();
                let [aa, bb, ab] = [kernel(&a, &a), kernel(&b, &b), kernel(&a, &b)];
                [
                    sum(&aa, &every, &every) - diagonal(&aa, &every),
                    sum(&bb, &every, &every) - diagonal(&bb, &every),
                    sum(&ab, &every, &every),
                ]
            }
        };
        (within_a + within_b) / (count * (count - 1.0)) - 2.0 * between / (count * count)
    }
}

/// Returns the chosen rows as columns of a matrix.
fn rows(of: ArrayView2<'_, f64>, chosen: &[usize]) -> Mat<f64> {
    Mat::from_fn(of.ncols(), chosen.len(), |at, row| of[[chosen[row], at]])
}

/// Computes `(x·y / d + 1)³` between all columns of two matrices.
fn kernel(a: &Mat<f64>, b: &Mat<f64>) -> Mat<f64> {
    let mut out = Mat::zeros(a.ncols(), b.ncols());
    let scale = (a.nrows() as f64).recip();
    matmul(out.as_mut(), Accum::Replace, a.transpose(), b, scale, get_global_parallelism());
    out.col_iter_mut().for_each(|column| column.iter_mut().for_each(|value| *value = (*value + 1.0).powi(3)));
    out
}

fn sum(of: &Mat<f64>, rows: &[usize], columns: &[usize]) -> f64 {
    columns.iter().map(|column| rows.iter().map(|row| of[(*row, *column)]).sum::<f64>()).sum()
}

fn diagonal(of: &Mat<f64>, rows: &[usize]) -> f64 {
    rows.iter().map(|row| of[(*row, *row)]).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ndarray::Array2;

    use super::*;

    fn features(count: usize, shift: f64) -> Array2<f64> {
        Array2::from_shape_fn((count, 6), |(row, at)| ((row * 31 + at * 17) % 23) as f64 / 23.0 + shift)
    }

    #[test]
    fn whole_kernels_and_kernels_of_subsets_agree() {
        let (a, b) = (features(40, 0.0), features(30, 0.2));
        let subsets = vec![((5..15).collect(), (0..10).collect()), ((20..30).collect(), (20..30).collect())];
        let whole = kernel_distance_on(a.view(), b.view(), &subsets).unwrap();
        let by_rows = Kernels::Rows(a.view(), b.view());
        let mean = subsets.iter().map(|(a, b)| by_rows.distance(a, b)).sum::<f64>() / 2.0;
        assert!((whole.mean - mean).abs() < 1e-12 && whole.mean > 0.0, "{whole:?} {mean}");
        assert_eq!((whole.subsets, whole.subset_size), (2, 10));
    }

    #[test]
    fn subsets_follow_the_seed_and_scatter_around_the_whole() {
        let (a, b) = (features(60, 0.0), features(60, 0.2));
        let of = |subset_size, seed| {
            kernel_distance(a.view(), b.view(), &KernelOptions { subsets: 400, subset_size, seed }).unwrap()
        };
        let (whole, some) = (of(None, 0), of(Some(20), 3));
        assert_eq!((whole.subsets, whole.deviation), (1, 0.0));
        assert_eq!(some, of(Some(20), 3));
        assert_ne!(some, of(Some(20), 4));
        assert!(some.deviation > 0.0 && (some.mean - whole.mean).abs() < 4.0 * some.deviation / 20.0, "{some:?}");
    }

    #[test]
    fn equal_and_constant_sets_have_no_distance() {
        let constant = Array2::from_elem((8, 3), 2.0);
        let found = kernel_distance(constant.view(), constant.view(), &KernelOptions::default()).unwrap();
        assert!(found.mean.abs() < 1e-9, "{found:?}");
        let refused = |size, subsets| {
            let options = KernelOptions { subset_size: size, subsets, seed: 0 };
            kernel_distance(constant.view(), constant.view(), &options).unwrap_err().to_string()
        };
        assert!(refused(Some(9), 1).contains("2 to 8 samples, found 9"));
        assert!(refused(Some(1), 1).contains("found 1"));
        assert!(refused(None, 0).contains("at least one subset"));
        let other = Array2::zeros((8, 4));
        assert!(kernel_distance(constant.view(), other.view(), &KernelOptions::default()).is_err());
    }
}
