//! Samples as one image of tiles.

use std::io::Cursor;

use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use ndarray::ArrayD;

use crate::error::Error;

/// Pixels between tiles.
const GAP: usize = 2;
/// Minimum side of a tile in pixels: smaller tiles are enlarged by an integer factor.
const LEGIBLE: usize = 64;
/// Maximum side of the image in pixels that PNG readers accept.
const SIDE_LIMIT: usize = 1 << 15;

/// The layout of the tiles in an image.
struct Layout {
    columns: usize,
    tiles: usize,
    zoom: usize,
    /// Width and height of the image.
    sides: [usize; 2],
}

impl Layout {
    fn of(shape: &[usize]) -> Result<Self, Error> {
        let &[count, channels, height, width] = shape else {
            return Err(Error::unmet(format!(
                "samples of shape {shape:?} are not images: expected [count, channels, height, width]"
            ))
            .hint("write them with --save-npy"));
        };
        let is_latent = !matches!(channels, 1 | 3);
        let columns = if is_latent { channels } else { count.isqrt() + usize::from(count.isqrt().pow(2) < count) };
        let tiles = if is_latent { count.saturating_mul(channels) } else { count };
        let rows = tiles.div_ceil(columns.max(1));
        let zoom = (LEGIBLE / height.max(width).max(1)).max(1);
        let sides = [(columns, width), (rows, height)].map(|(tiles, side)| {
            tiles.saturating_mul(side.saturating_mul(zoom).saturating_add(GAP)).saturating_add(GAP)
        });
        if sides.iter().any(|side| *side > SIDE_LIMIT) || tiles == 0 {
            return Err(Error::unmet(format!(
                "an image of {} x {} pixels is empty or too large (at most {SIDE_LIMIT} per side)",
                sides[0], sides[1]
            ))
            .hint("lower --count, or write the samples with --save-npy"));
        }
        Ok(Self { columns, tiles, zoom, sides })
    }
}

/// Returns an error for samples of a shape that [`grid_png`] does not accept.
///
/// # Errors
/// As [`grid_png`].
pub fn check_grid(shape: &[usize]) -> Result<(), Error> {
    Layout::of(shape).map(drop)
}

/// Encodes samples of shape `[count, channels, height, width]` as a PNG file of tiles. The ends of `range` become black
/// and white.
///
/// One channel is grey, and three are red, green and blue. Samples with other numbers of channels are latents: every
/// channel becomes a grey tile, with one row per sample.
///
/// # Errors
/// The samples have another rank, or the image would be empty or too large.
pub fn grid_png(samples: &ArrayD<f32>, range: (f64, f64)) -> Result<Vec<u8>, Error> {
    let Layout { columns, tiles, zoom, sides } = Layout::of(samples.shape())?;
    let &[_, channels, height, width] = samples.shape() else { return Ok(Vec::new()) };
    let value = |sample: usize, channel: usize, y: usize, x: usize| {
        let share = (f64::from(samples[[sample, channel, y, x].as_slice()]) - range.0) / (range.1 - range.0);
        // NaN becomes black.
        (share * 255.0).round().clamp(0.0, 255.0) as u8
    };
    // The tile and the position in it. `None`: between tiles.
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
    let mut bytes = Cursor::new(Vec::new());
    let encoded = if channels == 3 {
        RgbImage::from_fn(wide, high, |x, y| match place(x, y) {
            Some((tile, y, x)) => Rgb([0, 1, 2].map(|channel| value(tile, channel, y, x))),
            None => Rgb([0; 3]),
        })
        .write_to(&mut bytes, ImageFormat::Png)
    } else {
        GrayImage::from_fn(wide, high, |x, y| match place(x, y) {
            // With one channel, a tile is a sample.
            Some((tile, y, x)) => Luma([value(tile / channels, tile % channels, y, x)]),
            None => Luma([0]),
        })
        .write_to(&mut bytes, ImageFormat::Png)
    };
    encoded.map_err(|error| Error::unmet(format!("the image can't be encoded: {error}")).caused_by(error))?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_arranged_in_rows() {
        let read = |samples: &ArrayD<f32>, range| {
            image::load_from_memory(&grid_png(samples, range).unwrap()).unwrap().into_luma8()
        };
        // Five grey images of one pixel: 3 columns, 2 rows, enlarged to 64.
        let values = vec![-1.0, 1.0, 0.0, 3.0, f32::NAN];
        let samples = ArrayD::from_shape_vec(vec![5, 1, 1, 1], values).unwrap();
        let image = read(&samples, (-1.0, 1.0));
        assert_eq!(image.dimensions(), (3 * 66 + 2, 2 * 66 + 2));
        let tile = |column: u32, row: u32| image.get_pixel(2 + 66 * column, 2 + 66 * row).0[0];
        assert_eq!([tile(0, 0), tile(1, 0), tile(2, 0), tile(0, 1), tile(1, 1), tile(2, 1)], [0, 255, 128, 255, 0, 0]);
        // Latents: one row per sample, one column per channel.
        let values = (0..16).map(|v| v as f32 / 15.0).collect();
        let latents = ArrayD::from_shape_vec(vec![2, 2, 2, 2], values).unwrap();
        let image = read(&latents, (0.0, 1.0));
        assert_eq!(image.get_pixel(2, 2 + 66).0[0], 136);
        assert_eq!(image.get_pixel(2 + 66, 2).0[0], 68);
        assert!(grid_png(&ArrayD::zeros(vec![2, 3]), (0.0, 1.0)).is_err());
        assert!(check_grid(&[usize::MAX, 3, 8, 8]).is_err() && check_grid(&[0, 3, 8, 8]).is_err());
    }
}
