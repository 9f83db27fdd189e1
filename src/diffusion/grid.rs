//! Samples as one image.

use std::path::Path;

use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use ndarray::ArrayD;

use crate::error::Error;

/// Pixels between tiles.
const GAP: usize = 2;
/// Tiles with smaller sides are enlarged by a whole factor.
const LEGIBLE: usize = 64;
/// The sides of the image that PNG readers take.
const SIDE_LIMIT: usize = 1 << 15;

/// Writes samples of shape `[count, channels, height, width]` as a PNG file of tiles; the ends of `range` become black
/// and white.
///
/// One channel is grey and three are red, green and blue. Samples with other numbers of channels are latents: every
/// channel becomes a grey tile, one row per sample.
///
/// # Errors
/// Samples of another rank, an image that would be too large, or a file that can't be written.
pub fn write_grid(path: &Path, samples: &ArrayD<f32>, range: (f64, f64)) -> Result<(), Error> {
    let &[count, channels, height, width] = samples.shape() else {
        return Err(Error::unmet(format!(
            "samples of shape {:?} are not images: expected [count, channels, height, width]",
            samples.shape()
        ))
        .hint("write them with --save-npy"));
    };
    let is_latent = !matches!(channels, 1 | 3);
    let columns = if is_latent { channels } else { (1..).find(|side| side * side >= count).unwrap_or(1) };
    let tiles = if is_latent { count * channels } else { count };
    let rows = tiles.div_ceil(columns.max(1));
    let zoom = (LEGIBLE / height.max(width).max(1)).max(1);
    let sides = [(columns, width), (rows, height)].map(|(tiles, side)| tiles * (side * zoom + GAP) + GAP);
    if sides.iter().any(|side| *side > SIDE_LIMIT) || tiles == 0 {
        return Err(Error::unmet(format!("an image of {} x {} pixels is too large", sides[0], sides[1]))
            .hint("lower --count, or write the samples with --save-npy"));
    }
    let value = |sample: usize, channel: usize, y: usize, x: usize| {
        let share = (f64::from(samples[[sample, channel, y, x].as_slice()]) - range.0) / (range.1 - range.0);
        // Not-a-number becomes black.
        (share * 255.0).round().clamp(0.0, 255.0) as u8
    };
    // Which tile, and where in it; `None` between tiles.
    let place = |x: u32, y: u32| {
        let along = |at: u32, side: usize| {
            let at = (at as usize).checked_sub(GAP)?;
            let (tile, inside) = (at / (side * zoom + GAP), at % (side * zoom + GAP));
            (inside < side * zoom).then_some((tile, inside / zoom))
        };
        let ((column, x), (row, y)) = (along(x, width)?, along(y, height)?);
        let tile = row * columns + column;
        (tile < tiles).then_some((tile, y, x))
    };
    let (wide, high) = (sides[0] as u32, sides[1] as u32);
    let saved = if channels == 3 {
        RgbImage::from_fn(wide, high, |x, y| match place(x, y) {
            Some((tile, y, x)) => Rgb([0, 1, 2].map(|channel| value(tile, channel, y, x))),
            None => Rgb([0; 3]),
        })
        .save_with_format(path, ImageFormat::Png)
    } else {
        GrayImage::from_fn(wide, high, |x, y| match place(x, y) {
            // With one channel, a tile is a sample.
            Some((tile, y, x)) => Luma([value(tile / channels, tile % channels, y, x)]),
            None => Luma([0]),
        })
        .save_with_format(path, ImageFormat::Png)
    };
    saved.map_err(|error| Error::io(path, format!("can't be written: {error}")).caused_by(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_stand_in_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grid.png");
        // Five grey images of one pixel: 3 columns, 2 rows, enlarged to 64.
        let values = vec![-1.0, 1.0, 0.0, 3.0, f32::NAN];
        let samples = ArrayD::from_shape_vec(vec![5, 1, 1, 1], values).unwrap();
        write_grid(&path, &samples, (-1.0, 1.0)).unwrap();
        let image = image::open(&path).unwrap().into_luma8();
        assert_eq!(image.dimensions(), (3 * 66 + 2, 2 * 66 + 2));
        let tile = |column: u32, row: u32| image.get_pixel(2 + 66 * column, 2 + 66 * row).0[0];
        assert_eq!([tile(0, 0), tile(1, 0), tile(2, 0), tile(0, 1), tile(1, 1), tile(2, 1)], [0, 255, 128, 255, 0, 0]);
        // Latents: one row per sample, one column per channel.
        let values = (0..16).map(|v| v as f32 / 15.0).collect();
        let latents = ArrayD::from_shape_vec(vec![2, 2, 2, 2], values).unwrap();
        write_grid(&path, &latents, (0.0, 1.0)).unwrap();
        let image = image::open(&path).unwrap().into_luma8();
        assert_eq!(image.get_pixel(2, 2 + 66).0[0], 136);
        assert_eq!(image.get_pixel(2 + 66, 2).0[0], 68);
        assert!(write_grid(&path, &ArrayD::zeros(vec![2, 3]), (0.0, 1.0)).is_err());
    }
}
