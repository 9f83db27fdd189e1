//! Emitting the transforms of [`crate::kernels`] for convolutions by kernels of 3 x 3 places.

use crate::kernels::{
    WINOGRAD_FILTER, WINOGRAD_FILTER_GRADIENT, WINOGRAD_INPUT, WINOGRAD_OUTPUT, WINOGRAD_OUTPUT_GRADIENT,
};
use crate::onnx::attr_int;

use super::GradientCx;

/// A convolution of stride 1 by a kernel of 3 x 3 places, as far as tiles are concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WinogradConv {
    /// Rows of zeros above the input.
    pub(crate) top: i64,
    /// Columns of zeros to its left.
    pub(crate) left: i64,
    /// Size of the output; what its tiles read beyond the input is zero.
    pub(crate) height: i64,
    pub(crate) width: i64,
}

impl GradientCx<'_> {
    /// The convolution of `x` `[N, C, H, W]` by `w`: `[O, C, 3, 3]`, or where flipped, `[C, O, 3, 3]` with its places
    /// turned round.
    pub(crate) fn winograd_conv(
        &mut self,
        conv: WinogradConv,
        x: &str,
        (w, is_flipped): (&str, bool),
        bias: Option<&str>,
    ) -> String {
        let tiles = self.winograd_input(conv, x);
        let [filters] = self.tape.kernel(WINOGRAD_FILTER, &[w], vec![attr_int("flipped", i64::from(is_flipped))]);
        let product = self.op("MatMul", &[&tiles, &filters]);
        let inputs: Vec<&str> = std::iter::once(product.as_str()).chain(bias).collect();
        let size = vec![attr_int("height", conv.height), attr_int("width", conv.width)];
        let [y] = self.tape.kernel(WINOGRAD_OUTPUT, &inputs, size);
        y
    }

    /// The gradient by the weights, `[O, C, 3, 3]`, of the convolution of `x` `[N, C, H, W]` whose output has the gradient
    /// `dy` `[N, O, height, width]`.
    pub(crate) fn winograd_weight(&mut self, conv: WinogradConv, x: &str, dy: &str) -> String {
        let [outputs] = self.tape.kernel(WINOGRAD_OUTPUT_GRADIENT, &[dy], vec![]);
        let outputs = self.matrix_transpose(&outputs, 3);
        let inputs = self.winograd_input(conv, x);
        let product = self.op("MatMul", &[&outputs, &inputs]);
        let [dw] = self.tape.kernel(WINOGRAD_FILTER_GRADIENT, &[&product], vec![]);
        dw
    }

    fn winograd_input(&mut self, conv: WinogradConv, x: &str) -> String {
        let sizes = [("top", conv.top), ("left", conv.left), ("height", conv.height), ("width", conv.width)];
        let [tiles] = self.tape.kernel(WINOGRAD_INPUT, &[x], sizes.map(|(name, size)| attr_int(name, size)).to_vec());
        tiles
    }
}
