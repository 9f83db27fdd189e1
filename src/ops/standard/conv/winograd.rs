//! When a convolution is computed tile by tile.

use super::gradient::Geometry;
use crate::operator::gradient::{GradientCx, WinogradConv};

/// What is computed in another way otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Instead {
    /// A convolution.
    Conv,
    /// The gradient by the weights: a slice of the input and a matrix product for every place of the kernel.
    Products,
}

/// Products of a tile for every pair of channels: 36, and what a matrix product of this form takes longer than a
/// convolution of as many.
const PRODUCTS: f64 = 39.0;

/// What transforming a tile of one channel takes, in products that take as long. Measured on an AMD EPYC with vectors of 256
/// bits: 40 to 45 ns, at 44 products per nanosecond.
const TILE: f64 = 2000.0;

/// What the transforms of the filter for a pair of channels take, and packing its matrices; measured likewise, 36 to 41 ns.
const FILTER: f64 = 1700.0;

/// What taking an element of a slice takes, likewise.
const SLICE: f64 = 40.0;

impl Geometry {
    /// The convolution of images `[N, C, H, W]` with `inputs` channels to `[N, O, H', W']`, given as `output`, in tiles, if
    /// that is possible and takes less time than the sum over the places of the kernel. `before` are the zeros above and
    /// on the left.
    pub(super) fn in_tiles(
        &self,
        cx: &GradientCx<'_>,
        inputs: i64,
        output: &[i64],
        before: &[i64],
        instead: Instead,
    ) -> Option<WinogradConv> {
        let is_one = |values: &[i64]| values.iter().all(|value| *value == 1);
        let fits = self.kernel == [3, 3] && is_one(&self.strides) && is_one(&self.dilations) && self.group == 1;
        let (&[images, outputs, height, width], &[top, left]) = (output, before) else { return None };
        let conv = WinogradConv { top, left, height, width };
        let is_less = is_less_work([images, inputs, outputs], [height, width], instead);
        (cx.has_kernels() && fits && top >= 0 && left >= 0 && is_less).then_some(conv)
    }
}

/// Whether tiles take less time than the plain sum.
fn is_less_work([images, inputs, outputs]: [i64; 3], [height, width]: [i64; 2], instead: Instead) -> bool {
    let tiles = (images * ((height + 3) / 4) * ((width + 3) / 4)) as f64;
    let pairs = (inputs * outputs) as f64;
    let in_tiles = PRODUCTS * tiles * pairs + TILE * tiles * (inputs + outputs) as f64 + FILTER * pairs;
    let each = match instead {
        Instead::Conv => pairs,
        Instead::Products => pairs + SLICE * inputs as f64,
    };
    in_tiles < (9 * images * height * width) as f64 * each
}

#[cfg(test)]
mod tests {
    use super::Instead::{Conv, Products};
    use super::*;

    #[test]
    fn many_channels_and_many_tiles_are_worth_it() {
        assert!(is_less_work([8, 256, 256], [16, 16], Conv));
        assert!(!is_less_work([8, 256, 256], [4, 4], Conv), "transforming the filters takes longer than all else");
        assert!(is_less_work([32, 32, 32], [16, 16], Products), "slices take longer than products");
        assert!(!is_less_work([8, 16, 16], [64, 64], Conv), "transforming the images takes longer than all else");
        assert!(!is_less_work([8, 256, 256], [2, 2], Conv), "most of a tile is unused");
    }
}
