//! Measures the time of a network's blocks.

use serde::Serialize;

use super::super::runtime::Runtime;
use super::super::staged::Staged;
use super::Outline;
use crate::error::Error;
use crate::inputs::{InputOptions, Purpose, input_variants};
use crate::load::load;
use crate::lower;
use crate::runtime::{OperatorTime, SessionOptions, node_times};
use crate::verify::VerifyOptions;

/// Number of warm-up runs, and of measured runs.
const RUNS: (usize, usize) = (2, 9);

/// Minimum share of the time that must belong to blocks. Nodes that ONNX Runtime fuses may have lost their names.
const KNOWN: f64 = 0.6;

/// The times of the blocks in milliseconds, original and pruned.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BlockTimes {
    /// The time of every block of the [`Outline`], before and after the cut.
    pub blocks: Vec<(f64, f64)>,
    /// The time of nodes that belong to no block.
    pub other: (f64, f64),
    /// Number of runs. Times are medians over them, node by node.
    pub runs: usize,
}

impl Staged {
    /// Measures the time of the blocks of original and pruned file on the CPU, at the sizes of `options`. Returns
    /// `None` if too few of the nodes that run have names of the file. Runs are slower than usual, since ONNX Runtime
    /// records the time of every node.
    ///
    /// # Errors
    /// Fails if a network does not run.
    pub fn block_times(
        &self,
        runtime: &Runtime,
        options: &VerifyOptions,
        outline: &Outline,
    ) -> Result<Option<BlockTimes>, Error> {
        let analysis = &self.cut().analysis().0;
        let timing = InputOptions { purpose: Purpose::Timing, ..options.inputs() };
        let (_, inputs) = input_variants(analysis, &timing)?.into_iter().next().unwrap_or_default();
        let pruned = load(self.path())?;
        let mut times = BlockTimes { blocks: vec![(0.0, 0.0); outline.blocks.len()], other: (0.0, 0.0), runs: RUNS.1 };
        for (at, model) in [&analysis.model, &pruned].into_iter().enumerate() {
            let open = |options: &SessionOptions| lower::session(runtime.0, model, options);
            let nodes = node_times::<Error>(&SessionOptions::default(), open, &inputs, RUNS)?;
            let all: f64 = nodes.iter().map(|node| node.median_ms).sum();
            let mut known = 0.0;
            for OperatorTime { operator: node, median_ms, .. } in &nodes {
                let block = block_of(outline, node);
                let of = block.map_or(&mut times.other, |block| &mut times.blocks[block]);
                *(if at == 0 { &mut of.0 } else { &mut of.1 }) += median_ms;
                known += if block.is_some() { *median_ms } else { 0.0 };
            }
            if known < KNOWN * all {
                return Ok(None);
            }
        }
        Ok(Some(times))
    }
}

/// Returns the block of a node that ONNX Runtime runs. The node's name is that of a node of the file, or starts with it
/// and has a suffix for the optimisation.
fn block_of(outline: &Outline, node: &str) -> Option<usize> {
    let ends = std::iter::once(node.len()).chain(node.char_indices().rev().map(|(at, _)| at));
    let mut shortened = ends.map(|end| &node[..end]).filter(|name| !name.is_empty());
    let half = node.len() / 2;
    shortened.find_map(|name| outline.by_node.get(name).copied().filter(|_| name.len() > half))
}
