//! The transforms as nodes of a graph.

use std::sync::Mutex;

use ort::operator::{ComputeContext, KernelContext};
use pulp::Arch;

use super::filters::{self, Direction};
use super::tiles::{self, Images, Side, Tiling};
use super::{BLOCK, PLACES, Rows};
use crate::kernels::operators::{missing, parts};
use crate::kernels::{WINOGRAD_FILTER, WINOGRAD_FILTER_GRADIENT, WINOGRAD_INPUT, WINOGRAD_OUTPUT, rows_of, tasks};

/// Channels of an image that a task computes.
const UNIT: usize = 4 * BLOCK;

/// A node's kernel with its attributes.
pub(in crate::kernels) enum WinogradNode {
    /// `[N, C, H, W]` to `[36, P, C]`, with the padding above and on the left.
    Input { tiling: Tiling, top: usize, left: usize },
    /// `[36, P, O]` and a bias `[O]` to `[N, O, height, width]`.
    Output(Tiling),
    /// `[N, O, H, W]` to `[36, P, O]`.
    OutputGradient,
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
            size.ok_or_else(|| ort::Error::new(format!("{op_type}: attribute {name}: expected a size")))
        };
        let tiling = || -> ort::Result<Tiling> { Ok(Tiling { height: size("height")?, width: size("width")? }) };
        Ok(match op_type {
            WINOGRAD_INPUT => Self::Input { tiling: tiling()?, top: size("top")?, left: size("left")? },
            WINOGRAD_OUTPUT => Self::Output(tiling()?),
            WINOGRAD_FILTER if size("flipped")? == 1 => Self::Filter(Direction::Flipped),
            WINOGRAD_FILTER => Self::Filter(Direction::Forward),
            WINOGRAD_FILTER_GRADIENT => Self::FilterGradient,
            _ => Self::OutputGradient,
        })
    }

    pub(in crate::kernels) fn compute(&self, context: &ComputeContext) -> ort::Result<()> {
        let value = context.input(0)?.ok_or_else(|| missing("input", 0))?;
        let (shape, values) = value.try_extract_tensor::<f32>()?;
        let sizes: Vec<usize> = shape.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
        match (self, sizes.as_slice()) {
            (Self::Input { tiling, top, left }, &[count, channels, height, width]) => {
                let images = Images { values, channels, height, width, top: *top, left: *left };
                spread_images(context, count, &images, *tiling, Side::Input)
            }
            (Self::OutputGradient, &[count, channels, height, width]) => {
                let images = Images { values, channels, height, width, top: 0, left: 0 };
                spread_images(context, count, &images, Tiling { height, width }, Side::OutputGradient)
            }
            (Self::Output(tiling), &[PLACES, tiles, channels]) => {
                gather_images(context, values, [tiles, channels], *tiling)
            }
            (Self::Filter(direction), &[outputs, inputs, 3, 3]) => {
                spread_filters(context, values, [outputs, inputs], *direction)
            }
            (Self::FilterGradient, &[PLACES, outputs, inputs]) => gather_filters(context, values, [outputs, inputs]),
            _ => Err(ort::Error::new(format!("a transform of Winograd's does not take a tensor of shape {sizes:?}"))),
        }
    }
}

/// Writes `[36, rows * block, columns]`; a task calls `fill` with its blocks of rows, of which there are `rows`.
fn spread_rows(
    context: &ComputeContext,
    [rows, columns]: [usize; 2],
    tasks: usize,
    block: usize,
    fill: impl Fn(std::ops::Range<usize>, &mut Rows<'_>) + Send + Sync,
) -> ort::Result<()> {
    let shape = [PLACES, rows * block, columns].map(|size| i64::try_from(size).unwrap_or(i64::MAX));
    let mut matrices = context.output(0, shape)?.ok_or_else(|| missing("output", 0))?;
    let (_, matrices) = matrices.try_extract_tensor_mut::<f32>()?;
    let row = block * columns;
    // For every task the rows of all matrices.
    let mut all: Vec<Vec<&mut [f32]>> = (0..tasks).map(|_| Vec::with_capacity(PLACES)).collect();
    for matrix in matrices.chunks_exact_mut((rows * row).max(1)) {
        let mut rest = matrix;
        for (at, own) in all.iter_mut().enumerate() {
            let (part, after) = rest.split_at_mut(rows_of(at, tasks, rows).len() * row);
            own.push(part);
            rest = after;
        }
    }
    let all: Vec<Mutex<Vec<&mut [f32]>>> = all.into_iter().map(Mutex::new).collect();
    context.par_for(tasks, 0, |at| {
        if let Ok(mut own) = all[at].lock()
            && let Ok(own) = <&mut Rows<'_>>::try_from(own.as_mut_slice())
        {
            fill(rows_of(at, tasks, rows), own);
        }
    })
}

fn spread_images(
    context: &ComputeContext,
    count: usize,
    images: &Images<'_>,
    tiling: Tiling,
    side: Side,
) -> ort::Result<()> {
    let (rows, columns) = (count * tiling.rows(), tiling.columns());
    let tasks = tasks(rows, PLACES * columns * images.channels);
    spread_rows(context, [rows, images.channels], tasks, columns, |rows, matrices| {
        Arch::new().dispatch(tiles::Spread { side, images, tiling, tile_rows: rows, matrices });
    })
}

fn spread_filters(
    context: &ComputeContext,
    weights: &[f32],
    [outputs, inputs]: [usize; 2],
    direction: Direction,
) -> ort::Result<()> {
    let [rows, columns] = if direction == Direction::Forward { [inputs, outputs] } else { [outputs, inputs] };
    let tasks = tasks(rows, PLACES * columns);
    spread_rows(context, [rows, columns], tasks, 1, |rows, matrices| {
        Arch::new().dispatch(filters::Spread { direction, weights, outputs, inputs, rows, matrices });
    })
}

fn gather_images(
    context: &ComputeContext,
    matrices: &[f32],
    [tiles, channels]: [usize; 2],
    tiling: Tiling,
) -> ort::Result<()> {
    let bias = if context.num_inputs()? > 1 { context.input(1)? } else { None };
    let bias = match &bias {
        Some(bias) => Some(bias.try_extract_tensor::<f32>()?.1),
        None => None,
    };
    let per_image = tiling.rows() * tiling.columns();
    if per_image == 0 || !tiles.is_multiple_of(per_image) || bias.is_some_and(|bias| bias.len() != channels) {
        return Err(ort::Error::new(format!(
            "expected tiles of whole images of {} x {} and a bias of {channels} elements, found {tiles} tiles and {:?}",
            tiling.height,
            tiling.width,
            bias.map(<[f32]>::len)
        )));
    }
    let images = tiles / per_image;
    let shape = [images, channels, tiling.height, tiling.width].map(|size| i64::try_from(size).unwrap_or(i64::MAX));
    let mut outputs = context.output(0, shape)?.ok_or_else(|| missing("output", 0))?;
    let (_, outputs) = outputs.try_extract_tensor_mut::<f32>()?;
    // A unit is some channels of an image.
    let blocks = channels.div_ceil(UNIT);
    let units = images * blocks;
    let plane = tiling.height * tiling.width;
    let sizes = (0..units).map(|unit| UNIT.min(channels - unit % blocks * UNIT) * plane);
    let outputs = parts(outputs, sizes);
    let tasks = tasks(units, UNIT * plane);
    context.par_for(tasks, 0, |at| {
        for unit in rows_of(at, tasks, units) {
            if let Ok(mut outputs) = outputs[unit].lock() {
                let (image, first) = (unit / blocks, unit % blocks * UNIT);
                Arch::new().dispatch(tiles::Gather {
                    matrices,
                    channels,
                    tiling,
                    image,
                    first,
                    bias,
                    outputs: &mut outputs,
                });
            }
        }
    })
}

fn gather_filters(context: &ComputeContext, matrices: &[f32], [outputs, inputs]: [usize; 2]) -> ort::Result<()> {
    let shape = [outputs, inputs, 3, 3].map(|size| i64::try_from(size).unwrap_or(i64::MAX));
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
