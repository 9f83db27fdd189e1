//! Conversion of images for feature networks: to bytes, to another number of channels, to another size.

use ndarray::{Array3, ArrayView3, Axis};

/// The weights of red, green and blue in grey (ITU-R BT.601), as in image libraries.
const GREY: [f32; 3] = [0.299, 0.587, 0.114];

/// Converts an image with values in `range` to pixels from 0 to 255, clipped and rounded as in an image file.
pub(super) fn to_bytes(image: ArrayView3<'_, f32>, range: (f64, f64)) -> Array3<f32> {
    let (low, high) = range;
    // The cast clips, and turns NaN into black.
    image.mapv(|value| f32::from(((f64::from(value) - low) / (high - low) * 255.0).round() as u8))
}

/// Converts an image to one or three channels: grey is repeated, colours are averaged to grey by weight.
pub(super) fn with_channels(image: Array3<f32>, channels: usize) -> Array3<f32> {
    match (image.dim().0, channels) {
        (1, 3) => {
            let (_, height, width) = image.dim();
            Array3::from_shape_fn((3, height, width), |(_, y, x)| image[[0, y, x]])
        }
        (3, 1) => {
            let (_, height, width) = image.dim();
            Array3::from_shape_fn((1, height, width), |(_, y, x)| {
                GREY.iter().enumerate().map(|(channel, share)| share * image[[channel, y, x]]).sum()
            })
        }
        _ => image,
    }
}

/// Resizes an image `[channels, height, width]` by linear interpolation along each side.
///
/// The centre of a pixel is at half. Outside the image nothing counts: the weights of the pixels inside are normalised
/// to sum to one. Where a side shrinks, the triangle filter is wide enough to cover all pixels (antialiasing). This
/// equals Pillow's `resize` with `BILINEAR` and PyTorch's `interpolate` with `antialias`, and also without `antialias`
/// where sides grow.
pub fn resize(image: ArrayView3<'_, f32>, height: usize, width: usize) -> Array3<f32> {
    along(along(image.to_owned(), 2, width), 1, height)
}

/// Returns, for every new pixel, the index of the first old pixel that counts, and the weights from there on.
fn weights(from: usize, to: usize) -> Vec<(usize, Vec<f64>)> {
    let scale = from as f64 / to as f64;
    let reach = scale.max(1.0);
    let of_place = |at: usize| {
        let centre = (at as f64 + 0.5) * scale;
        let first = (centre - reach + 0.5).max(0.0) as usize;
        let last = ((centre + reach + 0.5) as usize).min(from);
        let weight = |old: usize| (1.0 - ((old as f64 + 0.5 - centre) / reach).abs()).max(0.0);
        let all: Vec<f64> = (first..last).map(weight).collect();
        let sum: f64 = all.iter().sum();
        (first, all.into_iter().map(|weight| weight / sum).collect())
    };
    (0..to).map(of_place).collect()
}

fn along(image: Array3<f32>, axis: usize, size: usize) -> Array3<f32> {
    let from = image.shape()[axis];
    if from == size {
        return image;
    }
    let mut shape = image.raw_dim();
    shape[axis] = size;
    let mut out = Array3::zeros(shape);
    let weights = weights(from, size);
    for (old, mut new) in image.lanes(Axis(axis)).into_iter().zip(out.lanes_mut(Axis(axis))) {
        for (value, (first, weights)) in new.iter_mut().zip(&weights) {
            let sum: f64 = weights.iter().enumerate().map(|(at, weight)| weight * f64::from(old[first + at])).sum();
            *value = sum as f32;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn pixels_equal_those_of_an_image_file() {
        let image = array![[[-1.0, 1.0], [0.0, 3.0]], [[f32::NAN, -7.0], [0.5, 1.0]]];
        let expected = array![[[0.0, 255.0], [128.0, 255.0]], [[0.0, 0.0], [191.0, 255.0]]];
        assert_eq!(to_bytes(image.view(), (-1.0, 1.0)), expected);
    }

    #[test]
    fn channels_are_repeated_or_averaged() {
        let grey = with_channels(array![[[10.0, 20.0]]], 3);
        assert_eq!(grey, array![[[10.0, 20.0]], [[10.0, 20.0]], [[10.0, 20.0]]]);
        assert!((with_channels(grey, 1)[[0, 0, 1]] - 20.0).abs() < 1e-4);
        let red = with_channels(array![[[100.0]], [[0.0]], [[0.0]]], 1);
        assert!((red[[0, 0, 0]] - 29.9).abs() < 1e-4);
    }

    #[test]
    fn sides_are_interpolated_when_they_grow_and_shrink() {
        let line = array![[[0.0, 4.0]]];
        assert_eq!(resize(line.view(), 1, 4), array![[[0.0, 1.0, 3.0, 4.0]]]);
        // Of four pixels, the two that are merged count three times as much as their neighbour.
        let halved = resize(array![[[0.0, 0.0, 8.0, 8.0]]].view(), 1, 2);
        assert!((halved[[0, 0, 0]] - 8.0 / 7.0).abs() < 1e-6, "{halved}");
        assert_eq!(resize(line.view(), 3, 2).shape(), [1, 3, 2]);
    }
}
