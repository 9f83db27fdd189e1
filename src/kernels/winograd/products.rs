//! The matrix products of tiles, a few tiles at a time.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Mutex;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use ort::operator::ComputeContext;
use pulp::Arch;

use super::tiles::{Gather, Images, Side, Spread, Tiling};
use super::{POSITIONS, Rows, in_parts};
use crate::kernels::operators::parts;
use crate::kernels::{rows_of, tasks};

/// Number of elements of transformed tiles, of inputs and outputs together, that are in use at a time: they fit into
/// the cache of a core.
const IN_USE: usize = 1 << 17;

/// Minimum number of tiles that are multiplied at a time: the matrices of the filters are read again for each block.
const TILES: usize = 32;

/// Number of blocks that a convolution is divided into if they are still large enough, so that all cores have work.
const BLOCKS: usize = 32;

thread_local! {
    /// The transformed tiles of this thread.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The filter of a convolution.
pub(super) struct Filter<'a> {
    pub(super) tiling: Tiling,
    pub(super) outputs: usize,
    /// `[36, C, O]`.
    pub(super) matrices: &'a [f32],
    pub(super) bias: Option<&'a [f32]>,
}

/// Returns the number of blocks that the rows of tiles are divided into. A block is small enough to stay in the cache
/// and large enough for an efficient matrix product.
fn block_count(rows: usize, columns: usize, channels: usize, wanted: usize) -> usize {
    let least = TILES.div_ceil(columns.max(1));
    let most = (IN_USE / (POSITIONS * columns * channels).max(1)).max(least);
    rows.div_ceil(most).max(wanted.min(rows / least)).max(1)
}

/// Writes the convolution of `images` to `y`, `[N, O, height, width]`.
pub(super) fn convolve(
    context: &ComputeContext,
    images: &Images<'_>,
    filter: &Filter<'_>,
    y: &mut [f32],
) -> ort::Result<()> {
    let (tiling, channels) = (filter.tiling, images.channels + filter.outputs);
    let rows = images.count * tiling.rows();
    if y.is_empty() || images.values.is_empty() {
        y.fill(0.0);
        return Ok(());
    }
    let count = block_count(rows, tiling.columns(), channels, BLOCKS);
    let blocks: Vec<Range<usize>> = (0..count).map(|at| rows_of(at, count, rows)).collect();
    let outputs = outputs_of(&blocks, tiling, filter.outputs, y);
    context.par_for(count, 0, |at| {
        if let Ok(mut outputs) = outputs[at].lock() {
            SCRATCH.with_borrow_mut(|scratch| convolve_block(images, filter, &blocks[at], scratch, &mut outputs));
        }
    })
}

/// Returns the parts of `y` that every block computes, as [`Gather`] expects them.
fn outputs_of<'y>(
    blocks: &[Range<usize>],
    tiling: Tiling,
    channels: usize,
    y: &'y mut [f32],
) -> Vec<Mutex<Vec<&'y mut [f32]>>> {
    let mut outputs: Vec<Vec<&mut [f32]>> = blocks.iter().map(|_| Vec::new()).collect();
    let plane = (tiling.height * tiling.width).max(1);
    let mut first = 0;
    for (image, planes) in y.chunks_exact_mut(channels.max(1) * plane).enumerate() {
        let rows = image * tiling.rows()..(image + 1) * tiling.rows();
        while blocks[first].end <= rows.start {
            first += 1;
        }
        for mut plane in planes.chunks_exact_mut(plane) {
            let touched = blocks.iter().zip(&mut outputs).skip(first);
            for (block, outputs) in touched.take_while(|(block, _)| block.start < rows.end) {
                let end = tiling.above(block.end.min(rows.end) - rows.start);
                let start = tiling.above(block.start.max(rows.start) - rows.start);
                let (own, rest) = plane.split_at_mut((end - start) * tiling.width);
                outputs.push(own);
                plane = rest;
            }
        }
    }
    outputs.into_iter().map(Mutex::new).collect()
}

fn convolve_block(
    images: &Images<'_>,
    filter: &Filter<'_>,
    tile_rows: &Range<usize>,
    scratch: &mut Vec<f32>,
    outputs: &mut [&mut [f32]],
) {
    let (tiling, channels, bias) = (filter.tiling, filter.outputs, filter.bias);
    let tiles = tile_rows.len() * tiling.columns();
    let needed = POSITIONS * tiles * (images.channels + channels);
    if scratch.len() < needed {
        scratch.resize(needed, 0.0);
    }
    let (inputs, products) = scratch[..needed].split_at_mut(POSITIONS * tiles * images.channels);
    let mut rows: Vec<&mut [f32]> = inputs.chunks_exact_mut(tiles * images.channels).collect();
    if let Ok(matrices) = <&mut Rows<'_>>::try_from(rows.as_mut_slice()) {
        let tile_rows = tile_rows.clone();
        Arch::new().dispatch(Spread { side: Side::Input, images, tiling, tile_rows, matrices });
    }
    let factors = inputs.chunks_exact(tiles * images.channels);
    let factors = factors.zip(filter.matrices.chunks_exact(images.channels * channels));
    for (product, (inputs, filter)) in products.chunks_exact_mut(tiles * channels).zip(factors) {
        let inputs = MatRef::from_row_major_slice(inputs, tiles, images.channels);
        let filter = MatRef::from_row_major_slice(filter, images.channels, channels);
        let product = MatMut::from_row_major_slice_mut(product, tiles, channels);
        matmul(product, Accum::Replace, inputs, filter, 1.0, Par::Seq);
    }
    let (matrices, tile_rows) = (&*products, tile_rows.clone());
    Arch::new().dispatch(Gather { matrices, channels, tiling, tile_rows, bias, outputs });
}

/// Writes the sum over all tiles of the product of output gradient and input, for each of the 36 positions:
/// `[36, O, C]`. Tiles are added in blocks whose size does not depend on the number of threads.
pub(super) fn multiply(
    context: &ComputeContext,
    images: &Images<'_>,
    gradient: &Images<'_>,
    sums: &mut [f32],
) -> ort::Result<()> {
    let tiling = Tiling { height: gradient.height, width: gradient.width };
    let (rows, columns) = (images.count * tiling.rows(), tiling.columns());
    if images.values.is_empty() || gradient.values.is_empty() {
        sums.fill(0.0);
        return Ok(());
    }
    let channels = images.channels + gradient.channels;
    let count = block_count(rows, columns, channels, 1);
    let mut scratch = vec![0.0; POSITIONS * rows.div_ceil(count) * columns * channels];
    let sums = parts(sums, std::iter::repeat_n(gradient.channels * images.channels, POSITIONS));
    for at in 0..count {
        let block = rows_of(at, count, rows);
        let tiles = block.len() * columns;
        let (inputs, outputs) =
            scratch[..POSITIONS * tiles * channels].split_at_mut(POSITIONS * tiles * images.channels);
        {
            let tasks = tasks(block.len(), POSITIONS * columns * channels);
            let inputs = in_parts(inputs, [block.len(), columns * images.channels], tasks);
            let outputs = in_parts(outputs, [block.len(), columns * gradient.channels], tasks);
            context.par_for(tasks, 0, |at| {
                let own = rows_of(at, tasks, block.len());
                let tile_rows = block.start + own.start..block.start + own.end;
                for (side, images, parts) in
                    [(Side::Input, images, &inputs), (Side::OutputGradient, gradient, &outputs)]
                {
                    if let Ok(mut part) = parts[at].lock()
                        && let Ok(matrices) = <&mut Rows<'_>>::try_from(part.as_mut_slice())
                    {
                        let tile_rows = tile_rows.clone();
                        Arch::new().dispatch(Spread { side, images, tiling, tile_rows, matrices });
                    }
                }
            })?;
        }
        let accum = if at == 0 { Accum::Replace } else { Accum::Add };
        context.par_for(POSITIONS, 0, |place| {
            if let Ok(mut sum) = sums[place].lock() {
                let inputs = &inputs[place * tiles * images.channels..][..tiles * images.channels];
                let outputs = &outputs[place * tiles * gradient.channels..][..tiles * gradient.channels];
                let sum = MatMut::from_row_major_slice_mut(&mut sum, gradient.channels, images.channels);
                let inputs = MatRef::from_row_major_slice(inputs, tiles, images.channels);
                let outputs = MatRef::from_row_major_slice(outputs, tiles, gradient.channels);
                matmul(sum, accum, outputs.transpose(), inputs, 1.0, Par::Seq);
            }
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_divide_the_rows_of_images() {
        // Three images of two channels with 7x5 outputs: each has two rows of tiles, 4 and 3 outputs high.
        let tiling = Tiling { height: 7, width: 5 };
        let mut y: Vec<f32> = (0..3 * 2 * 35).map(|at| at as f32).collect();
        let blocks = [0..1, 1..4, 4..6];
        let outputs = outputs_of(&blocks, tiling, 2, &mut y);
        let found: Vec<Vec<(f32, usize)>> = outputs
            .iter()
            .map(|block| block.lock().unwrap().iter().map(|rows| (rows[0], rows.len())).collect())
            .collect();
        let first = vec![(0.0, 20), (35.0, 20)];
        let second = vec![(20.0, 15), (55.0, 15), (70.0, 35), (105.0, 35)];
        let third = vec![(140.0, 35), (175.0, 35)];
        assert_eq!(found, [first, second, third]);
    }

    #[test]
    fn blocks_are_small_enough_for_the_cache_and_large_enough_for_a_product() {
        // 32 images of 16x16 with 64 channels in and out, and a single image.
        let count = block_count(32 * 4, 4, 128, BLOCKS);
        assert!((32 * 16 / count) * POSITIONS * 128 <= 2 * IN_USE && 32 * 16 / count >= TILES, "{count} blocks");
        assert_eq!(block_count(2, 2, 128, BLOCKS), 1);
    }
}
