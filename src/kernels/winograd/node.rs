//! The transforms as kernels of graph nodes.

use ort::operator::{ComputeContext, KernelContext};
use ort::value::ValueRef;
use pulp::Arch;

use super::filters::{self, Direction};
use super::products::{self, Filter};
use super::tiles::{Images, Tiling};
use super::{POSITIONS, Rows, in_parts};
use crate::kernels::operators::{missing, parts};
use crate::kernels::{WINOGRAD_CONV, WINOGRAD_FILTER, WINOGRAD_FILTER_GRADIENT, rows_of, tasks};

/// A node's kernel with its attributes.
pub(in crate::kernels) enum WinogradNode {
    /// `[N, C, H, W]`, `[36, C, O]` and a bias `[O]` to `[N, O, height, width]`, with the padding at the top and on the
    /// left.
    Conv { tiling: Tiling, top: usize, left: usize },
    /// `[N, C, H, W]` and the gradient with respect to the output `[N, O, H', W']` to `[36, O, C]`, with the padding of
    /// the input.
    Products { top: usize, left: usize },
    /// `[O, C, 3, 3]` to `[36, C, O]` or, flipped, `[36, O, C]`.
    Filter(Direction),
    /// `[36, O, C]` to `[O, C, 3, 3]`.
    FilterGradient,
}

impl WinogradNode {
    /// Reads the attributes.
    pub(in crate::kernels) fn new(op_type: &str, context: &KernelContext<'_>) -> ort::Result<Self> {
        let size = |name: &str| {
            let size = context.get::<i64>(name).and_then(|size| usize::try_from(size).ok());
            size.ok_or_else(|| ort::Error::new(format!("{op_type}: attribute {name}: expected a nonnegative integer")))
        };
        let tiling = || -> ort::Result<Tiling> { Ok(Tiling { height: size("height")?, width: size("width")? }) };
        Ok(match op_type {
            WINOGRAD_CONV => Self::Conv { tiling: tiling()?, top: size("top")?, left: size("left")? },
            WINOGRAD_FILTER if size("flipped")? == 1 => Self::Filter(Direction::Flipped),
            WINOGRAD_FILTER => Self::Filter(Direction::Forward),
            WINOGRAD_FILTER_GRADIENT => Self::FilterGradient,
            _ => Self::Products { top: size("top")?, left: size("left")? },
        })
    }

    pub(in crate::kernels) fn compute(&self, context: &ComputeContext) -> ort::Result<()> {
        let value = context.input(0)?.ok_or_else(|| missing("input", 0))?;
        let (shape, values) = sized(&value)?;
        match (self, shape.as_slice()) {
            (Self::Conv { tiling, top, left }, &[count, channels, height, width]) => {
                let images = Images { values, count, channels, height, width, top: *top, left: *left };
                convolve(context, &images, *tiling)
            }
            (Self::Products { top, left }, &[count, channels, height, width]) => {
                let images = Images { values, count, channels, height, width, top: *top, left: *left };
                multiply(context, &images)
            }
            (Self::Filter(direction), &[outputs, inputs, 3, 3]) => {
                spread_filters(context, values, [outputs, inputs], *direction)
            }
            (Self::FilterGradient, &[POSITIONS, outputs, inputs]) => gather_filters(context, values, [outputs, inputs]),
            _ => Err(unfit(&shape)),
        }
    }
}

fn unfit(shape: &[usize]) -> ort::Error {
    ort::Error::new(format!("an operator of the Winograd convolution does not accept an input of shape {shape:?}"))
}

/// Returns the shape and elements of an input.
fn sized<'a>(value: &'a ValueRef<'_>) -> ort::Result<(Vec<usize>, &'a [f32])> {
    let (shape, values) = value.try_extract_tensor::<f32>()?;
    Ok((shape.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect(), values))
}

/// Computes a convolution from the input's images, the filters' matrices and the bias.
fn convolve(context: &ComputeContext, images: &Images<'_>, tiling: Tiling) -> ort::Result<()> {
    let filters = context.input(1)?.ok_or_else(|| missing("input", 1))?;
    let (shape, filters) = sized(&filters)?;
    let outputs = match shape[..] {
        [POSITIONS, inputs, outputs] if inputs == images.channels => outputs,
        _ => return Err(unfit(&shape)),
    };
    let bias = if context.num_inputs()? > 2 { context.input(2)? } else { None };
    let bias = match &bias {
        Some(bias) => Some(sized(bias)?.1),
        None => None,
    };
    if let Some(bias) = bias.filter(|bias| bias.len() != outputs) {
        return Err(ort::Error::new(format!("expected a bias of {outputs} elements, found {}", bias.len())));
    }
    let sizes = [images.count, outputs, tiling.height, tiling.width];
    let mut y = context.output(0, sizes.map(signed))?.ok_or_else(|| missing("output", 0))?;
    let (_, y) = y.try_extract_tensor_mut::<f32>()?;
    products::convolve(context, images, &Filter { tiling, outputs, matrices: filters, bias }, y)
}

fn multiply(context: &ComputeContext, images: &Images<'_>) -> ort::Result<()> {
    let gradient = context.input(1)?.ok_or_else(|| missing("input", 1))?;
    let (shape, values) = sized(&gradient)?;
    let gradient = match shape[..] {
        [count, channels, height, width] if count == images.count => {
            Images { values, count, channels, height, width, top: 0, left: 0 }
        }
        _ => return Err(unfit(&shape)),
    };
    let shape = [POSITIONS, gradient.channels, images.channels].map(signed);
    let mut sums = context.output(0, shape)?.ok_or_else(|| missing("output", 0))?;
    let (_, sums) = sums.try_extract_tensor_mut::<f32>()?;
    products::multiply(context, images, &gradient, sums)
}

fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// Writes the output `[36, rows, columns]`. Every task calls `fill` with its rows.
fn spread_rows(
    context: &ComputeContext,
    [rows, columns]: [usize; 2],
    tasks: usize,
    fill: impl Fn(std::ops::Range<usize>, &mut Rows<'_>) + Send + Sync,
) -> ort::Result<()> {
    let shape = [POSITIONS, rows, columns].map(signed);
    let mut matrices = context.output(0, shape)?.ok_or_else(|| missing("output", 0))?;
    let (_, matrices) = matrices.try_extract_tensor_mut::<f32>()?;
    let all = in_parts(matrices, [rows, columns], tasks);
    context.par_for(tasks, 0, |at| {
        if let Ok(mut own) = all[at].lock()
            && let Ok(own) = <&mut Rows<'_>>::try_from(own.as_mut_slice())
        {
            fill(rows_of(at, tasks, rows), own);
        }
    })
}

fn spread_filters(
    context: &ComputeContext,
    weights: &[f32],
    [outputs, inputs]: [usize; 2],
    direction: Direction,
) -> ort::Result<()> {
    let [rows, columns] = if direction == Direction::Forward { [inputs, outputs] } else { [outputs, inputs] };
    let tasks = tasks(rows, POSITIONS * columns);
    spread_rows(context, [rows, columns], tasks, |rows, matrices| {
        Arch::new().dispatch(filters::Spread { direction, weights, outputs, inputs, rows, matrices });
    })
}

fn gather_filters(context: &ComputeContext, matrices: &[f32], [outputs, inputs]: [usize; 2]) -> ort::Result<()> {
    let shape = [outputs, inputs, 3, 3].map(signed);
    let mut gradients = context.output(0, shape)?.ok_or_else(|| missing("output", 0))?;
    let (_, gradients) = gradients.try_extract_tensor_mut::<f32>()?;
    let row = gradients.len() / outputs.max(1);
    let tasks = tasks(outputs, row);
    let gradients = parts(gradients, (0..tasks).map(|at| rows_of(at, tasks, outputs).len() * row));
    context.par_for(tasks, 0, |at| {
        if let Ok(mut gradients) = gradients[at].lock() {
            let outputs = rows_of(at, tasks, outputs);
            Arch::new().dispatch(filters::Gather { matrices, inputs, outputs, gradients: &mut gradients });
        }
    })
}
