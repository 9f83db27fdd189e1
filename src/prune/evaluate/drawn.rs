//! Compares samples that networks generate from the same noise: their similarity and their features.

use ndarray::{Array2, Array3, ArrayD, ArrayView, Axis, Ix3, IxDyn, Slice};
use rayon::prelude::*;

use super::report::{Consistency, Distances};
use crate::collective::{Collective, parts};
use crate::error::Error;
use crate::evaluate::{
    Distribution, FeatureNetwork, KernelOptions, Statistics, frechet_distance, kernel_distance, psnr, ssim,
};

/// Samples of a network that others are compared with.
pub(super) struct Reference {
    samples: ArrayD<f32>,
    /// The smallest value. `range` is the difference to the largest.
    low: f32,
    pub(super) range: f64,
    /// Whether the samples are images, whose values are clipped as in a file.
    is_images: bool,
}

/// Returns whether samples `[count, channels, ...]` are images.
pub(super) fn is_images(shape: &[usize]) -> bool {
    shape.len() == 4 && matches!(shape[1], 1 | 3)
}

/// Replaces values that are not finite. Also returns the number of samples that had such values.
pub(super) fn mended(mut samples: ArrayD<f32>, instead: f32) -> (ArrayD<f32>, usize) {
    let mut broken = 0;
    for mut sample in samples.axis_iter_mut(Axis(0)) {
        let mut is_broken = false;
        sample.iter_mut().filter(|value| !value.is_finite()).for_each(|value| {
            (*value, is_broken) = (instead, true);
        });
        broken += usize::from(is_broken);
    }
    (samples, broken)
}

/// Returns the first samples.
pub(super) fn first(samples: &ArrayD<f32>, count: usize) -> ArrayD<f32> {
    let count = count.min(samples.shape()[0]);
    samples.slice_axis(Axis(0), Slice::from(0..count)).to_owned()
}

impl Reference {
    /// Creates a reference from finite samples of a network that was trained on values in `range`. If the samples are
    /// not images, their own minimum and maximum are the range.
    pub(super) fn new(samples: ArrayD<f32>, range: (f64, f64)) -> Self {
        let is_images = is_images(samples.shape());
        let (low, high) = match is_images {
            true => range,
            false => {
                let values = || samples.iter().map(|value| f64::from(*value));
                (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max))
            }
        };
        Self { samples, low: low as f32, range: high - low, is_images }
    }

    fn values(&self, sample: ArrayView<'_, f32, IxDyn>) -> ArrayD<f64> {
        let (low, high) = (f64::from(self.low), f64::from(self.low) + self.range);
        sample.mapv(|value| if self.is_images { f64::from(value).clamp(low, high) } else { f64::from(value) })
    }

    /// Compares other finite samples from the same noise with these.
    pub(super) fn consistency(&self, others: &ArrayD<f32>) -> Consistency {
        let each = |at: usize| -> (Option<f64>, Option<f64>) {
            let (a, b) =
                (self.values(self.samples.index_axis(Axis(0), at)), self.values(others.index_axis(Axis(0), at)));
            let peak = psnr(a.iter(), b.iter(), self.range);
            let image = |of: ArrayD<f64>| -> Option<Array3<f64>> { of.into_dimensionality::<Ix3>().ok() };
            let similar = image(a).zip(image(b)).and_then(|(a, b)| ssim(a.view(), b.view(), self.range));
            (similar, peak)
        };
        let found: Vec<_> = (0..self.samples.shape()[0]).into_par_iter().map(each).collect();
        let peaks = || found.iter().filter_map(|(_, peak)| *peak);
        Consistency {
            ssim: Distribution::of(found.iter().filter_map(|(similar, _)| *similar).collect()),
            psnr: Distribution::of(peaks().filter(|peak| peak.is_finite()).collect()),
            identical: peaks().filter(|peak| *peak == f64::INFINITY).count(),
        }
    }

    /// Returns why there is no structural similarity for these samples, if so.
    pub(super) fn without_ssim(&self) -> Option<String> {
        let shape = &self.samples.shape()[1..];
        let is_large = shape.len() == 3 && shape[1..].iter().all(|side| *side >= 7);
        (!is_large).then(|| {
            format!("SSIM was not computed: it needs images of at least 7x7 pixels, samples have shape {shape:?}")
        })
    }
}

/// Returns the features of samples, one row each. Every rank computes a part of them.
///
/// # Errors
/// Fails if the network fails, or if `progress` returns an error.
pub(super) fn features_over(
    ranks: &dyn Collective,
    features: &mut FeatureNetwork,
    samples: &ArrayD<f32>,
    range: (f64, f64),
    progress: &mut dyn FnMut(usize, usize) -> Result<(), Error>,
) -> Result<Array2<f64>, Error> {
    if ranks.size() == 1 {
        return features.features(samples, range, progress);
    }
    let count = samples.shape()[0];
    let own = parts(count, ranks.size())[ranks.rank()].clone();
    // A rank without a part computes the features of one sample, to know their number.
    let taken = if own.is_empty() { 0..count.min(1) } else { own.clone() };
    let of_own = samples.slice_axis(Axis(0), Slice::from(taken)).to_owned();
    let found = features.features(&of_own, range, progress)?;
    let mut rows = Array2::zeros((count, found.ncols()));
    for (at, row) in own.zip(found.outer_iter()) {
        rows.row_mut(at).assign(&row);
    }
    if let Some(values) = rows.as_slice_mut() {
        ranks.sum_f64(values)?;
    }
    Ok(rows)
}

/// The features of a set of samples, with their statistics for distances.
pub(super) struct Featured {
    rows: Array2<f64>,
    statistics: Statistics,
}

impl Featured {
    /// # Errors
    /// Same as [`Statistics::of`].
    pub(super) fn new(rows: Array2<f64>) -> Result<Self, Error> {
        let statistics = Statistics::of(rows.view())?;
        Ok(Self { rows, statistics })
    }

    /// Returns the number of samples.
    pub(super) fn count(&self) -> usize {
        self.rows.nrows()
    }

    /// Returns the distances of these samples to those of the original, if given, and to the data.
    ///
    /// # Errors
    /// Fails if a decomposition fails, or if a subset would be larger than a set.
    pub(super) fn distances(
        &self,
        original: Option<&Featured>,
        data: &Featured,
        kernel: &KernelOptions,
    ) -> Result<Distances, Error> {
        let frechet = |other: &Featured| frechet_distance(&self.statistics, &other.statistics);
        let of_kernel = |other: &Featured| kernel_distance(self.rows.view(), other.rows.view(), kernel);
        Ok(Distances {
            fd_to_original: original.map(frechet).transpose()?,
            kid_to_original: original.map(of_kernel).transpose()?,
            fd_to_data: Some(frechet(data)?),
            kid_to_data: Some(of_kernel(data)?),
        })
    }
}
