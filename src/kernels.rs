//! CPU kernels of this tool, as custom operators that ONNX Runtime calls in a gradient graph.
//!
//! Norms and activations move much memory and compute little. In standard operators, their gradients read and write
//! every value about a dozen times and keep intermediate values of the forward pass. A kernel here reads the input and
//! the gradient once and recomputes the rest. Convolutions with a 3x3 kernel are computed in tiles with a quarter of
//! the multiplications; see [`winograd`]. A graph with these operators runs on the CPU only. For other devices, the
//! same gradients are emitted in standard operators (see [`crate::gradient::GradientGraph::build_for`]).
//!
//! All values are float32. The order of summation does not depend on the number of threads.

mod activation;

mod norm;

mod operators;

pub(crate) mod proof;

mod softmax;

mod winograd;

pub(crate) use operators::domain;

/// The domain of the operators.
pub(crate) const DOMAIN: &str = "onnx_diffprune.kernels";

/// Normalisation with scale and offset, optionally followed by SiLU. Inputs x, scale, offset; output y.
pub(crate) const NORM: &str = "Norm";

/// The gradients of [`NORM`]. Inputs x, dy, scale, offset; outputs dx, dscale, doffset.
pub(crate) const NORM_GRADIENT: &str = "NormGradient";

/// The gradient of SiLU, `x sigmoid(x)`. Inputs x, dy; output dx.
pub(crate) const SILU_GRADIENT: &str = "SiluGradient";

/// The gradient of a softmax along the last axis. Inputs y (its output) and dy; output dx.
pub(crate) const SOFTMAX_GRADIENT: &str = "SoftmaxGradient";

/// A convolution with a 3x3 kernel. Inputs x `[N, C, H, W]`, the kernel as matrices `[36, C, O]` (see [`winograd`]) and
/// optionally the bias; output y `[N, O, height, width]`.
pub(crate) const WINOGRAD_CONV: &str = "WinogradConv";

/// The gradient with respect to the weights, still in the transformed domain. Inputs x `[N, C, H, W]` and dy
/// `[N, O, H', W']`; output `[36, O, C]`.
pub(crate) const WINOGRAD_PRODUCTS: &str = "WinogradProducts";

/// Transforms weights to matrices. Input w `[O, C, 3, 3]`; output `[36, C, O]` or, flipped, `[36, O, C]`.
pub(crate) const WINOGRAD_FILTER: &str = "WinogradFilter";

/// Transforms matrices to the gradient with respect to the weights. Input `[36, O, C]`; output dw `[O, C, 3, 3]`.
pub(crate) const WINOGRAD_FILTER_GRADIENT: &str = "WinogradFilterGradient";

/// Minimum number of elements for one task of a parallel loop.
const TASK_ELEMENTS: usize = 1 << 14;

/// Returns the number of tasks for `rows` rows of `row` elements. It is the same on every machine.
fn tasks(rows: usize, row: usize) -> usize {
    rows.min((rows * row).div_ceil(TASK_ELEMENTS)).clamp(1, 64)
}

/// Returns the rows of task `at` of `tasks`.
fn rows_of(at: usize, tasks: usize, rows: usize) -> std::ops::Range<usize> {
    at * rows / tasks..(at + 1) * rows / tasks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_cover_all_rows_once() {
        for (rows, row) in [(1, 5), (7, 100_000), (1000, 3), (300, 4096)] {
            let tasks = tasks(rows, row);
            let all: Vec<usize> = (0..tasks).flat_map(|at| rows_of(at, tasks, rows)).collect();
            assert_eq!(all, (0..rows).collect::<Vec<_>>());
        }
    }
}
