//! The Fréchet distance between two sets of features, each modelled as a normal distribution.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par, Side, get_global_parallelism};
use ndarray::{ArrayView2, Axis};

use crate::error::Error;

/// Mean and covariance of a set of features.
#[derive(Clone, Debug)]
pub struct Statistics {
    count: usize,
    mean: Vec<f64>,
    /// `F` in the factorisation `F Fᵀ` of the covariance, `[features, rank]`.
    factor: Mat<f64>,
    /// The trace of the covariance.
    trace: f64,
}

/// Returns an error for features without statistics.
pub(super) fn check(features: ArrayView2<'_, f64>) -> Result<(), Error> {
    let (count, width) = features.dim();
    if count < 2 || width == 0 {
        return Err(Error::unmet(format!(
            "distances between features need at least two samples and one feature, found {count} samples of {width} features"
        )));
    }
    match features.iter().find(|value| !value.is_finite()) {
        Some(wrong) => Err(Error::unmet(format!("the features contain {wrong}"))),
        None => Ok(()),
    }
}

impl Statistics {
    /// Computes the statistics of the rows of `[samples, features]`. The covariance has `samples - 1` in the
    /// denominator.
    ///
    /// # Errors
    /// Fewer than two samples, no features, or features that are not finite.
    pub fn of(features: ArrayView2<'_, f64>) -> Result<Self, Error> {
        check(features)?;
        let (count, width) = features.dim();
        let mean = features.mean_axis(Axis(0)).unwrap_or_default().to_vec();
        let scale = ((count - 1) as f64).sqrt().recip();
        let centred = Mat::from_fn(width, count, |at, row| (features[[row, at]] - mean[at]) * scale);
        let trace = centred.col_iter().map(|column| column.squared_norm_l2()).sum();
        // With few samples, the centred samples themselves are a factor, and the smaller one.
        let factor = if count <= width { centred } else { square_root(&centred)? };
        Ok(Self { count, mean, factor, trace })
    }

    /// Returns the number of samples.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns the number of features.
    pub fn width(&self) -> usize {
        self.mean.len()
    }
}

/// Returns a square factor `F` of the covariance of centred columns.
fn square_root(centred: &Mat<f64>) -> Result<Mat<f64>, Error> {
    let width = centred.nrows();
    let mut covariance = Mat::zeros(width, width);
    product(&mut covariance, centred, &centred.transpose().to_owned());
    let eigen = covariance.self_adjoint_eigen(Side::Lower).map_err(|error| {
        Error::unmet(format!("the eigendecomposition of the covariance of {width} features failed: {error:?}"))
    })?;
    let (vectors, values) = (eigen.U(), eigen.S());
    // Rounding can turn an eigenvalue of zero into a tiny negative one.
    Ok(Mat::from_fn(width, width, |row, column| vectors[(row, column)] * values[column].max(0.0).sqrt()))
}

fn product(out: &mut Mat<f64>, left: &Mat<f64>, right: &Mat<f64>) {
    let par: Par = get_global_parallelism();
    matmul(out.as_mut(), Accum::Replace, left, right, 1.0, par);
}

/// Computes the squared Fréchet distance `|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½)`, as in Heusel et al. 2017 ("GANs
/// Trained by a Two Time-Scale Update Rule") for Inception features, and as `pytorch-fid` computes it.
///
/// With `Σ = F Fᵀ`, the trace of `(Σ₁ Σ₂)^½` is the sum of the singular values of `F₁ᵀ F₂`. This avoids the square root
/// of a matrix that is not symmetric. The result is therefore real, and right even where covariances are singular: with
/// fewer samples than features, or with constant features.
///
/// # Errors
/// The numbers of features differ, or a decomposition fails.
pub fn frechet_distance(a: &Statistics, b: &Statistics) -> Result<f64, Error> {
    if a.width() != b.width() {
        return Err(Error::usage(format!(
            "expected the same number of features, found {} and {}",
            a.width(),
            b.width()
        )));
    }
    let means: f64 = a.mean.iter().zip(&b.mean).map(|(a, b)| (a - b).powi(2)).sum();
    let mut mixed = Mat::zeros(a.factor.ncols(), b.factor.ncols());
    product(&mut mixed, &a.factor.transpose().to_owned(), &b.factor);
    let values = mixed.singular_values().map_err(|error| {
        Error::unmet(format!("the singular values of the product of two covariances can't be computed: {error:?}"))
    })?;
    // Rounding can turn a distance of zero into a tiny negative one.
    Ok((means + a.trace + b.trace - 2.0 * values.iter().sum::<f64>()).max(0.0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ndarray::{Array2, array};

    use super::*;

    fn distance(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
        frechet_distance(&Statistics::of(a.view()).unwrap(), &Statistics::of(b.view()).unwrap()).unwrap()
    }

    #[test]
    fn one_feature_has_the_distance_of_two_normal_distributions() {
        let (a, b) = (array![[0.0], [2.0], [4.0]], array![[1.0], [1.5]]);
        // Means 2 and 1.25, deviations 2 and sqrt(1/8).
        let expected = 0.75f64.powi(2) + (2.0 - 0.125f64.sqrt()).powi(2);
        assert!((distance(&a, &b) - expected).abs() < 1e-12);
        // Fewer samples than features use the other factor: the same feature among constant ones.
        let widened = |features: &Array2<f64>| {
            Array2::from_shape_fn((features.nrows(), 9), |(row, at)| if at == 4 { features[[row, 0]] } else { 7.0 })
        };
        assert!((distance(&widened(&a), &widened(&b)) - expected).abs() < 1e-12);
    }

    #[test]
    fn equal_and_constant_sets_have_no_distance() {
        let many = Array2::from_shape_fn((40, 5), |(row, at)| ((row * 7 + at * 3) % 11) as f64);
        assert!(distance(&many, &many) < 1e-12);
        let constant = Array2::from_elem((9, 5), 3.0);
        assert_eq!(distance(&constant, &constant), 0.0);
        // For a set without variance: the squared distance of the means, plus the trace of the other.
        let zero = Statistics::of(Array2::zeros((2, 5)).view()).unwrap();
        let of = Statistics::of(many.view()).unwrap();
        let means: f64 = many.mean_axis(Axis(0)).unwrap().iter().map(|mean| mean * mean).sum();
        assert!((frechet_distance(&zero, &of).unwrap() - means - of.trace).abs() < 1e-9);
    }

    #[test]
    fn features_without_statistics_are_refused() {
        let refused = |features: Array2<f64>| Statistics::of(features.view()).unwrap_err().to_string();
        assert!(refused(Array2::zeros((1, 3))).contains("at least two samples"));
        assert!(refused(Array2::zeros((3, 0))).contains("one feature"));
        assert!(refused(array![[0.0], [f64::NAN]]).contains("NaN"));
        let of = |width| Statistics::of(Array2::zeros((3, width)).view()).unwrap();
        assert!(frechet_distance(&of(2), &of(3)).unwrap_err().to_string().contains("found 2 and 3"));
    }
}
