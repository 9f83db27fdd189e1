//! Convolutions with a 3x3 kernel by Winograd tiles, where these take less time: in the forward pass, and in the
//! gradients with respect to the weights and to the input.

use super::Choice;
use crate::graph::NodeId;
use crate::kernels::{WINOGRAD_CONV, WINOGRAD_FILTER, WINOGRAD_FILTER_GRADIENT, WINOGRAD_PRODUCTS};
use crate::onnx::attr_int;
use crate::operator::gradient::Step;
use crate::operator::part::{Convolution, Part};

/// The computation that tiles replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instead {
    /// A convolution.
    Conv,
    /// The gradient with respect to the weights: a slice of the input and a matrix product for every position of the
    /// kernel.
    Products,
}

/// Cost of a tile per pair of channels: 36 products, and the extra time of this form of matrix product compared to a
/// convolution of as many products.
const PRODUCTS: f64 = 39.0;

/// Cost of transforming a tile of one channel, in products of the same duration. Measured on an AMD EPYC with 256-bit
/// vectors and tiles in the cache: 16 to 20 ns, at 44 products per nanosecond.
const TILE: f64 = 900.0;

/// Cost of the filter transforms and of packing the matrices per pair of channels. Measured in the same way: 36 to 41
/// ns.
const FILTER: f64 = 1700.0;

/// Cost of taking one element of a slice, measured in the same way.
const SLICE: f64 = 40.0;

/// The padding and the output size of a convolution in tiles.
#[derive(Clone, Copy, Debug)]
struct Tiles {
    /// Rows of zero padding above the input.
    top: i64,
    /// Columns of zero padding to its left.
    left: i64,
    /// Size of the output. Tiles are padded with zeros beyond the input.
    height: i64,
    width: i64,
}

impl Tiles {
    /// Returns the tiles for the convolution of images `[N, C, H, W]` with `inputs` channels to the shape `output`,
    /// `[N, O, H', W']`. `before` is the padding above and on the left. Returns `None` if tiles are not possible or
    /// take more time than the sum over kernel positions.
    fn of(of: &Convolution, inputs: i64, output: &[i64], before: &[i64], instead: Instead) -> Option<Self> {
        let is_one = |values: &[i64]| values.iter().all(|value| *value == 1);
        let fits = of.kernel == [3, 3] && is_one(&of.strides) && is_one(&of.dilations) && of.group == 1;
        let (&[images, outputs, height, width], &[top, left]) = (output, before) else { return None };
        let is_less = is_less_work([images, inputs, outputs], [height, width], instead);
        (fits && top >= 0 && left >= 0 && is_less).then_some(Self { top, left, height, width })
    }
}

/// Matches a convolution that was differentiated.
pub(super) fn tiles(choice: &mut Choice<'_, '_>, step: &Step) -> Option<()> {
    let Part::Convolution(of) = choice.part(step.node)? else { return None };
    let node = choice.node(step.node);
    let shape = |slot: usize| choice.shape(node.input(slot)?);
    let (x, y) = (shape(0)?, choice.shape(node.output(0)?)?);
    let dy = step.upstream.first()?.as_deref()?;
    let [from, weight] = [node.input(0)?, node.input(1)?].map(|value| choice.name(value));
    if let Some(tiles) = Tiles::of(&of, x[1], &y, &of.before, Instead::Conv) {
        let bias = node.input(2).map(|value| choice.name(value));
        let output = choice.name(node.output(0)?);
        choice.compute(output, |choice| choice.in_tiles(tiles, from, (weight, false), bias));
    }
    if choice.given(step.node, 1).is_some()
        && let Some(tiles) = Tiles::of(&of, x[1], &y, &of.before, Instead::Products)
    {
        choice.replace_gradient(step, step.node, 1, |choice| choice.by_weight(tiles, from, dy));
    }
    // The gradient with respect to the input is a convolution with the flipped kernel.
    let around = (0..of.before.len()).map(|axis| of.dilations[axis] * (of.kernel[axis] - 1) - of.before[axis]);
    if choice.given(step.node, 0).is_some()
        && let Some(tiles) = Tiles::of(&of, y[1], &x, &around.collect::<Vec<_>>(), Instead::Conv)
    {
        choice.replace_gradient(step, step.node, 0, |choice| choice.in_tiles(tiles, dy, (weight, true), None));
    }
    Some(())
}

impl Choice<'_, '_> {
    fn replace_gradient(&mut self, step: &Step, node: NodeId, slot: usize, emit: impl FnOnce(&mut Self) -> String) {
        self.replace(step, &[node], |choice| {
            let gradient = emit(choice);
            choice.take_over(&[node], node, slot, &gradient);
        });
    }

    /// Emits the convolution of `x`, `[N, C, H, W]`, with `w`: `[O, C, 3, 3]`, or if flipped, `[C, O, 3, 3]` with its
    /// kernel positions reversed.
    fn in_tiles(&mut self, tiles: Tiles, x: &str, (w, is_flipped): (&str, bool), bias: Option<&str>) -> String {
        let [filters] = self.kernel(WINOGRAD_FILTER, &[w], vec![attr_int("flipped", i64::from(is_flipped))]);
        let inputs: Vec<&str> = [x, &filters].into_iter().chain(bias).collect();
        let sizes = [("top", tiles.top), ("left", tiles.left), ("height", tiles.height), ("width", tiles.width)];
        let [y] = self.kernel(WINOGRAD_CONV, &inputs, sizes.map(|(name, size)| attr_int(name, size)).to_vec());
        y
    }

    /// Emits the gradient with respect to the weights, `[O, C, 3, 3]`, of the convolution of `x` `[N, C, H, W]`, whose
    /// output has the gradient `dy` `[N, O, height, width]`.
    fn by_weight(&mut self, tiles: Tiles, x: &str, dy: &str) -> String {
        let padding = vec![attr_int("top", tiles.top), attr_int("left", tiles.left)];
        let [products] = self.kernel(WINOGRAD_PRODUCTS, &[x, dy], padding);
        let [dw] = self.kernel(WINOGRAD_FILTER_GRADIENT, &[&products], vec![]);
        dw
    }
}

/// Returns whether tiles take less time than the plain sum.
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
    fn tiles_are_faster_with_many_channels_and_many_tiles() {
        assert!(is_less_work([8, 256, 256], [16, 16], Conv));
        assert!(!is_less_work([8, 256, 256], [4, 4], Conv), "transforming the filters takes longer than all else");
        assert!(is_less_work([32, 32, 32], [16, 16], Products), "slices take longer than products");
        assert!(!is_less_work([8, 16, 16], [64, 64], Conv), "transforming the images takes longer than all else");
        assert!(!is_less_work([8, 256, 256], [2, 2], Conv), "most of a tile is unused");
    }
}
