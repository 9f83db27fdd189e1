//! The similarity of two images: SSIM and PSNR.

use ndarray::{ArrayView2, ArrayView3, Axis};

/// The side of the window for local statistics, in pixels.
pub(super) const WINDOW: usize = 7;

/// Computes the structural similarity of two images `[channels, height, width]`. Equal images have 1.
///
/// Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", with the defaults of
/// `skimage.metrics.structural_similarity`: uniform windows of 7x7 pixels inside the image, sample covariances (48 in
/// the denominator), K1 = 0.01, K2 = 0.03, the mean over windows and then over channels. `range` is the difference
/// between the largest and the smallest possible value of a pixel.
///
/// `None` if the images have different shapes, no channels, or sides below 7.
pub fn ssim(a: ArrayView3<'_, f64>, b: ArrayView3<'_, f64>, range: f64) -> Option<f64> {
    let (channels, height, width) = a.dim();
    if a.dim() != b.dim() || channels == 0 || height < WINDOW || width < WINDOW {
        return None;
    }
    let channel = |at: usize| of_channel(a.index_axis(Axis(0), at), b.index_axis(Axis(0), at), range);
    Some((0..channels).map(channel).sum::<f64>() / channels as f64)
}

/// Returns the sums over all windows along one axis of a row-major image: `windows` sums for every line.
fn sums(values: &[f64], lines: usize, length: usize) -> Vec<f64> {
    let windows = length + 1 - WINDOW;
    let mut out = Vec::with_capacity(lines * windows);
    for line in values.chunks_exact(length) {
        // Each window is summed separately: a running sum would carry rounding errors of large values into small ones.
        out.extend(line.windows(WINDOW).map(|window| window.iter().sum::<f64>()));
    }
    out
}

/// Returns the means over all windows of an image.
fn means(values: &[f64], (height, width): (usize, usize)) -> Vec<f64> {
    let columns = width + 1 - WINDOW;
    let across = sums(values, height, width);
    let transposed: Vec<f64> =
        (0..columns).flat_map(|x| across.iter().skip(x).step_by(columns).copied().collect::<Vec<_>>()).collect();
    let area = (WINDOW * WINDOW) as f64;
    sums(&transposed, columns, height).into_iter().map(|sum| sum / area).collect()
}

fn of_channel(a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>, range: f64) -> f64 {
    let product = |x: ArrayView2<'_, f64>, y: ArrayView2<'_, f64>| -> Vec<f64> {
        x.iter().zip(y.iter()).map(|(x, y)| x * y).collect()
    };
    let sides = a.dim();
    let flat = |x: ArrayView2<'_, f64>| means(&x.iter().copied().collect::<Vec<_>>(), sides);
    let (mean_a, mean_b) = (flat(a), flat(b));
    let (square_a, square_b, mixed) =
        (means(&product(a, a), sides), means(&product(b, b), sides), means(&product(a, b), sides));
    let area = (WINDOW * WINDOW) as f64;
    let correction = area / (area - 1.0);
    let (c1, c2) = ((0.01 * range).powi(2), (0.03 * range).powi(2));
    let of_window = |at: usize| {
        let (ua, ub) = (mean_a[at], mean_b[at]);
        let (va, vb) = (correction * (square_a[at] - ua * ua), correction * (square_b[at] - ub * ub));
        let cov = correction * (mixed[at] - ua * ub);
        let (top, bottom) = ((2.0 * ua * ub + c1) * (2.0 * cov + c2), (ua * ua + ub * ub + c1) * (va + vb + c2));
        // Only if the range is zero and both windows are black.
        if bottom == 0.0 { 1.0 } else { top / bottom }
    };
    (0..mean_a.len()).map(of_window).sum::<f64>() / mean_a.len() as f64
}

/// Computes the peak signal-to-noise ratio of two lists of values in decibels, as in
/// `skimage.metrics.peak_signal_noise_ratio`. Infinite if they are equal. `range` as in [`ssim`].
///
/// `None` if they have different lengths or no elements.
pub fn psnr<'v>(
    a: impl ExactSizeIterator<Item = &'v f64>,
    b: impl ExactSizeIterator<Item = &'v f64>,
    range: f64,
) -> Option<f64> {
    let count = a.len();
    if count == 0 || b.len() != count {
        return None;
    }
    let error = a.zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / count as f64;
    Some(if error == 0.0 { f64::INFINITY } else { 10.0 * (range * range / error).log10() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use ndarray::Array3;

    use super::*;

    #[test]
    fn equal_images_have_similarity_one_and_small_images_none() {
        let image = Array3::from_shape_fn((2, 9, 8), |(c, y, x)| (c + 3 * y + x * x) as f64 / 50.0);
        assert_eq!(ssim(image.view(), image.view(), 2.0), Some(1.0));
        assert_eq!(psnr(image.iter(), image.iter(), 2.0), Some(f64::INFINITY));
        let small = Array3::zeros((1, 6, 9));
        assert_eq!(ssim(small.view(), small.view(), 1.0), None);
        assert_eq!(ssim(small.view(), image.view(), 1.0), None);
        assert_eq!(psnr([].iter(), [].iter(), 1.0), None);
    }

    #[test]
    fn constant_images_differ_only_by_their_means() {
        let of = |value: f64| Array3::from_elem((1, 7, 7), value);
        let found = ssim(of(0.5).view(), of(0.25).view(), 1.0).unwrap();
        let c1 = 0.01f64.powi(2);
        let expected = (2.0 * 0.5 * 0.25 + c1) / (0.25 + 0.0625 + c1);
        assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        assert!((psnr(of(0.5).iter(), of(0.4).iter(), 1.0).unwrap() - 20.0).abs() < 1e-9);
    }
}
