//! Gradients of convolutions, direct and transposed: each consists of the other and of one product per kernel
//! position.

use super::window::{AutoPad, Spatial};
use crate::onnx::{attr_int, attr_ints};
use crate::operator::RuleError;
use crate::operator::gradient::GradientCx;
use crate::operator::part::Convolution;

/// Stride, dilation and padding of a convolution at known sizes.
pub(in crate::ops) struct Geometry {
    kernel: Vec<i64>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    before: Vec<i64>,
    after: Vec<i64>,
    group: i64,
}

impl Geometry {
    /// Computes the geometry of a direct convolution from spatial sizes `input` to `output`.
    pub(super) fn of_conv(
        spatial: &Spatial,
        group: i64,
        kernel: &[i64],
        input: &[i64],
        output: &[i64],
    ) -> Result<Self, RuleError> {
        let mut geometry = Self::explicit(spatial, group, kernel)?;
        if spatial.auto_pad.is_same() {
            for axis in 0..kernel.len() {
                let total = (output[axis] - 1) * geometry.strides[axis] + geometry.reach(axis) - input[axis];
                geometry.share(spatial.auto_pad, axis, total.max(0));
            }
        }
        Ok(geometry)
    }

    /// Computes the geometry of a transposed convolution from spatial sizes `input` to `output`. The node may state
    /// the size of its output, from which the padding then follows.
    pub(in crate::ops) fn of_transposed(
        spatial: &Spatial,
        group: i64,
        kernel: &[i64],
        (extra, names_output): (&[i64], bool),
        (input, output): (&[i64], &[i64]),
    ) -> Result<Self, RuleError> {
        let mut geometry = Self::explicit(spatial, group, kernel)?;
        if spatial.auto_pad.is_same() || names_output {
            for axis in 0..kernel.len() {
                let extra = extra.get(axis).copied().unwrap_or(0);
                let full = (input[axis] - 1) * geometry.strides[axis] + extra + geometry.reach(axis);
                geometry.share(spatial.auto_pad, axis, (full - output[axis]).max(0));
            }
        }
        Ok(geometry)
    }

    fn explicit(spatial: &Spatial, group: i64, kernel: &[i64]) -> Result<Self, RuleError> {
        let sizes: Vec<crate::graph::dim::Dim> = kernel.iter().copied().map(crate::graph::dim::Dim::from).collect();
        let window = spatial.window(&sizes, kernel.len())?;
        let (before, after) = window.pads.split_at(kernel.len());
        Ok(Self {
            kernel: kernel.to_vec(),
            strides: window.strides.clone(),
            dilations: window.dilations.clone(),
            before: before.to_vec(),
            after: after.to_vec(),
            group: group.max(1),
        })
    }

    /// Divides a padding of `total` along an axis; the specification puts the odd element at the end for SAME_UPPER
    /// only.
    fn share(&mut self, auto_pad: AutoPad, axis: usize, total: i64) {
        let less = total / 2;
        let is_upper = auto_pad == AutoPad::SameUpper;
        (self.before[axis], self.after[axis]) = if is_upper { (less, total - less) } else { (total - less, less) };
    }

    /// Describes the convolution to the choice of kernels.
    pub(super) fn convolution(self) -> Convolution {
        let Self { kernel, strides, dilations, before, group, .. } = self;
        Convolution { kernel, strides, dilations, before, group }
    }

    /// Returns, for each of the `count` windows along an axis of `size` elements, the element at each kernel position;
    /// `None` in the padding.
    pub(in crate::ops) fn elements(&self, axis: usize, size: i64, count: i64) -> Vec<Vec<Option<usize>>> {
        let at = |window: i64, tap: i64| {
            let at = window * self.strides[axis] + tap * self.dilations[axis] - self.before[axis];
            usize::try_from(at).ok().filter(|_| at < size)
        };
        (0..count).map(|window| (0..self.kernel[axis]).map(|tap| at(window, tap)).collect()).collect()
    }

    /// The same for a transposed convolution: for each of the `count` positions of the output, the input element that
    /// each kernel position multiplies; `None` if there is none.
    pub(in crate::ops) fn transposed_elements(&self, axis: usize, size: i64, count: i64) -> Vec<Vec<Option<usize>>> {
        let at = |position: i64, tap: i64| {
            let steps = position + self.before[axis] - tap * self.dilations[axis];
            let at = steps.div_euclid(self.strides[axis]);
            let is_one = steps.rem_euclid(self.strides[axis]) == 0 && (0..size).contains(&at);
            is_one.then(|| usize::try_from(at).ok()).flatten()
        };
        (0..count).map(|position| (0..self.kernel[axis]).map(|tap| at(position, tap)).collect()).collect()
    }

    /// Returns the extent of the dilated kernel.
    fn reach(&self, axis: usize) -> i64 {
        self.dilations[axis] * (self.kernel[axis] - 1) + 1
    }

    /// Lists the kernel positions, the last axis fastest.
    fn taps(&self) -> Vec<Vec<i64>> {
        self.kernel.iter().fold(vec![vec![]], |taps, size| {
            taps.iter().flat_map(|tap| (0..*size).map(move |at| [&tap[..], &[at]].concat())).collect()
        })
    }

    fn pads(&self) -> Vec<i64> {
        [self.before.as_slice(), &self.after].concat()
    }

    /// Whether the convolution only mixes channels.
    fn is_pointwise(&self) -> bool {
        let is_one = |sizes: &[i64]| sizes.iter().all(|size| *size == 1);
        let is_zero = |sizes: &[i64]| sizes.iter().all(|size| *size == 0);
        is_one(&self.kernel) && is_one(&self.strides) && is_zero(&self.before) && is_zero(&self.after)
    }
}

/// Applies the gradient rule of Conv to the gradient `dy` with respect to its output.
pub(super) fn of_conv(spatial: &Spatial, group: i64, cx: &mut GradientCx<'_>, dy: &str) -> Result<(), RuleError> {
    let (x, w, y) = (cx.shape(0)?, cx.shape(1)?, cx.output_shape(0)?);
    let geometry = Geometry::of_conv(spatial, group, &w[2..], &x[2..], &y[2..])?;
    if cx.wants(2) {
        bias(cx, dy, y.len());
    }
    if cx.wants(1) {
        let dw = weight(cx, &geometry, (&cx.input(0), &x), (dy, &y), &w);
        cx.add_gradient(1, dw);
    }
    if cx.wants(0) {
        let dx = through(cx, &geometry, &cx.input(1), dy, [&x, &w, &y]);
        cx.add_gradient(0, dx);
    }
    Ok(())
}

/// Applies the gradient rule of ConvTranspose: the same products with X and dY swapped.
pub(in crate::ops) fn of_conv_transpose(cx: &mut GradientCx<'_>, geometry: &Geometry) -> Result<(), RuleError> {
    let (x, w, y) = (cx.shape(0)?, cx.shape(1)?, cx.output_shape(0)?);
    let dy = cx.dy()?;
    if cx.wants(2) {
        bias(cx, &dy, y.len());
    }
    if cx.wants(1) {
        let dw = weight(cx, geometry, (&dy, &y), (&cx.input(0), &x), &w);
        cx.add_gradient(1, dw);
    }
    if cx.wants(0) {
        let attributes = vec![
            attr_ints("kernel_shape", &geometry.kernel),
            attr_ints("strides", &geometry.strides),
            attr_ints("dilations", &geometry.dilations),
            attr_ints("pads", &geometry.pads()),
            attr_int("group", geometry.group),
        ];
        let dx = cx.op_with("Conv", &[&dy, &cx.input(1)], attributes);
        cx.add_gradient(0, dx);
    }
    Ok(())
}

fn bias(cx: &mut GradientCx<'_>, dy: &str, rank: usize) {
    let axes: Vec<usize> = (0..rank).filter(|axis| *axis != 1).collect();
    let db = cx.reduce_sum(dy, &axes, false);
    cx.add_gradient(2, db);
}

/// Computes `dX[n, i, q]`: the sum over o and k of `dY[n, o, p] W[o, i, k]` with `q = p * stride + k * dilation -
/// pad`.
fn through(cx: &mut GradientCx<'_>, geometry: &Geometry, weight: &str, dy: &str, [x, w, y]: [&[i64]; 3]) -> String {
    let spatial = geometry.kernel.len();
    let around: Vec<i64> = (0..spatial).map(|axis| geometry.reach(axis) - 1 - geometry.before[axis]).collect();
    let is_dense = geometry.strides.iter().all(|stride| *stride == 1);
    if is_dense && geometry.group == 1 && around.iter().all(|pad| *pad >= 0) && cx.opset() >= 10 {
        // A convolution with flipped weights, which are folded into a constant before the session starts.
        let mut perm: Vec<usize> = (0..w.len()).collect();
        perm.swap(0, 1);
        let mut flipped = cx.transpose(weight, &perm);
        for axis in (2..w.len()).filter(|axis| w[*axis] > 1) {
            flipped = cx.slice(&flipped, axis, -1, i64::MIN, -1);
        }
        let after = (0..spatial).map(|axis| x[axis + 2] + geometry.reach(axis) - 1 - y[axis + 2] - around[axis]);
        let pads = [around.clone(), after.collect()].concat();
        if pads.iter().all(|pad| *pad >= 0) {
            let attributes = vec![
                attr_ints("kernel_shape", &geometry.kernel),
                attr_ints("dilations", &geometry.dilations),
                attr_ints("pads", &pads),
            ];
            return cx.op_with("Conv", &[dy, &flipped], attributes);
        }
    }
    // Elements at the end that no window covers get no gradient.
    let extra: Vec<i64> = (0..spatial)
        .map(|axis| {
            let covered = (y[axis + 2] - 1) * geometry.strides[axis] + geometry.reach(axis);
            x[axis + 2] + geometry.before[axis] + geometry.after[axis] - covered
        })
        .collect();
    let attributes = vec![
        attr_ints("kernel_shape", &geometry.kernel),
        attr_ints("strides", &geometry.strides),
        attr_ints("dilations", &geometry.dilations),
        attr_ints("pads", &geometry.pads()),
        attr_ints("output_padding", &extra),
        attr_int("group", geometry.group),
    ];
    cx.op_with("ConvTranspose", &[dy, weight], attributes)
}

/// Maximum number of elements of a matrix of columns: 256 MiB in float32.
const COLUMNS: i64 = 1 << 26;

/// Computes `dW[o, i, k]`: the sum over n and p of `g[n, o, p] X[n, i, p * stride + k * dilation - pad]`. It builds
/// the columns that the convolution multiplies (im2col), one block of rows for each kernel position k, and multiplies
/// them by g for all images at once, in several products if the columns would exceed [`COLUMNS`]. `w` is the shape of
/// the weight, `[O, I / group, k...]`.
fn weight(
    cx: &mut GradientCx<'_>,
    geometry: &Geometry,
    (x, x_shape): (&str, &[i64]),
    (g, g_shape): (&str, &[i64]),
    w: &[i64],
) -> String {
    let (images, inputs, outputs) = (x_shape[0], x_shape[1], g_shape[1]);
    let group = geometry.group;
    let spots: i64 = g_shape[2..].iter().product();
    if geometry.is_pointwise() && group == 1 {
        let x = cx.reshape(x, &[images, inputs, spots]);
        let g = cx.reshape(g, &[images, outputs, spots]);
        let x_t = cx.matrix_transpose(&x, 3);
        let product = cx.op("MatMul", &[&g, &x_t]);
        let sum = cx.reduce_sum(&product, &[0], false);
        return cx.reshape(&sum, w);
    }
    // Channels before images, `[C, N, L...]`, in blocks if they are grouped: `[group, C / group, N, L...]`.
    let length = images * spots;
    let leading = if group == 1 { vec![] } else { vec![group] };
    let g = channels_first(cx, g, g_shape, group);
    let g = cx.reshape(&g, &[&leading[..], &[outputs / group, length]].concat());
    let x = channels_first(cx, x, x_shape, group);
    let first = leading.len() + 2;
    let mut before = vec![0; first + geometry.before.len()];
    let mut after = before.clone();
    before[first..].copy_from_slice(&geometry.before);
    after[first..].copy_from_slice(&geometry.after);
    let x = cx.pad(&x, &before, &after);
    let blocks: Vec<String> =
        geometry.taps().iter().map(|tap| under(cx, geometry, tap, (&x, x_shape), g_shape, first)).collect();
    let at_once = (COLUMNS / (inputs * length).max(1)).clamp(1, blocks.len() as i64);
    let products: Vec<String> = blocks
        .chunks(usize::try_from(at_once).unwrap_or(1))
        .map(|blocks| {
            let columns = cx.concat(blocks, leading.len());
            let rows = blocks.len() as i64 * (inputs / group);
            let columns = cx.reshape(&columns, &[&leading[..], &[rows, length]].concat());
            if group == 1 {
                return cx.gemm(&g, &columns, false, true);
            }
            let columns = cx.matrix_transpose(&columns, 3);
            cx.op("MatMul", &[&g, &columns])
        })
        .collect();
    let joined = cx.concat(&products, leading.len() + 1);
    let by_tap = cx.reshape(&joined, &[w[0], blocks.len() as i64, w[1]]);
    let by_channel = cx.matrix_transpose(&by_tap, 3);
    cx.reshape(&by_channel, w)
}

/// Permutes a value `[N, C, L...]` to `[C, N, L...]`, or to `[group, C / group, N, L...]` if there are groups.
fn channels_first(cx: &mut GradientCx<'_>, value: &str, shape: &[i64], group: i64) -> String {
    if group == 1 {
        let mut perm: Vec<usize> = (0..shape.len()).collect();
        perm.swap(0, 1);
        return cx.transpose(value, &perm);
    }
    let blocks = [&[shape[0], group, shape[1] / group], &shape[2..]].concat();
    let value = cx.reshape(value, &blocks);
    let perm: Vec<usize> = [1, 2, 0].into_iter().chain(3..blocks.len()).collect();
    cx.transpose(&value, &perm)
}

/// Selects the elements of the padded input under one kernel position, over all windows; spatial axes start at
/// `first`.
fn under(
    cx: &mut GradientCx<'_>,
    geometry: &Geometry,
    tap: &[i64],
    (x, x_shape): (&str, &[i64]),
    g_shape: &[i64],
    first: usize,
) -> String {
    let mut cuts = Vec::new();
    for (axis, at) in tap.iter().enumerate() {
        let start = at * geometry.dilations[axis];
        let end = start + (g_shape[axis + 2] - 1) * geometry.strides[axis] + 1;
        let whole = x_shape[axis + 2] + geometry.before[axis] + geometry.after[axis];
        if start != 0 || end != whole || geometry.strides[axis] != 1 {
            cuts.push((axis + first, start, end, geometry.strides[axis]));
        }
    }
    cx.slices(x, &cuts)
}
