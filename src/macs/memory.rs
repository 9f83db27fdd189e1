//! Estimates of the memory that runs need, known before they start.
//!
//! A run needs memory for the values that a network computes at the given sizes, if every value lives from the node
//! that computes it to the last node that uses it, and for all copies of the weights that the run keeps. A verification
//! keeps nearly all values at the same time, because comparisons take the values of both networks. Values of unknown
//! size are not counted. The memory per node and of the library was measured with ONNX Runtime 1.31 on networks of 0.7
//! to 7 MB. The memory of weights was measured on a U-Net with the layout of Stable Diffusion 1.5 (859 M parameters),
//! whose verification takes 8.7 GB at 16x16 and 18.1 GB at 64x64.

use crate::error::Error;
use crate::graph::facts::Facts;
use crate::graph::model::Model;
use crate::graph::sizes::{Sizes, sizes_for};
use crate::graph::{Graph, ValueId};
use crate::operator::gradient::signed_shape;
use crate::operator::macs::elements;

/// The sizes in bytes of a network's parts, at given sizes of its inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Its inputs.
    pub inputs: u64,
    /// Maximum total size of the values that are alive at the same time, including inputs.
    pub activations: u64,
    /// Total size of all values, if none is freed before the run ends.
    pub values: u64,
    /// Size of its file, with external data.
    pub weights: u64,
    /// The number of its nodes.
    pub nodes: u64,
}

/// Returns the size in bytes of float32 elements with this shape.
pub fn float32_bytes(dims: &[i64]) -> u64 {
    dims.iter().fold(4, |product, size| product.saturating_mul(u64::try_from(*size).unwrap_or(0)))
}

/// Returns the size in bytes of a value in float32. A value of unknown shape counts as one element.
pub fn float32_bytes_of(facts: &Facts, value: ValueId) -> u64 {
    let shape = facts.values[value].as_ref().and_then(|fact| signed_shape(fact.shape.as_deref()?));
    float32_bytes(&shape.unwrap_or_default())
}

/// Memory of ONNX Runtime after it is loaded, in bytes.
pub const LIBRARY: u64 = 32 << 20;

/// Memory of a session per node, in bytes.
pub const OF_NODE: u64 = 8 << 10;

/// The fraction of the forward pass's values that forward and backward pass keep in memory at the same time, including
/// the gradients of values and the gaps of the arena. Measured as the growth of resident memory with the batch: 0.31
/// for `ddpm_fashion16` (0.54 with factors in half precision), 0.56 for `dit_fashion16`.
pub const HELD: f64 = 0.6;

/// Memory of a verification per node, in bytes: its form in the reference, its mask, the node of the pruned network and
/// the comparison of their outputs.
const OF_COMPARED_NODE: u64 = 45 << 10;

/// Approximate number of nodes whose comparison is one session.
const OF_PIECE: u64 = 250;

/// Factor for the additional memory of ONNX Runtime: its own layouts, and the gaps of its arena.
const OVERHEAD: f64 = 1.5;

impl Footprint {
    /// Computes the footprint of a network. `given` are sizes of symbolic dimensions. Other sizes follow from names.
    ///
    /// # Errors
    /// An external file has disappeared.
    pub fn of(model: &Model, graph: &Graph, facts: &Facts, given: &Sizes) -> Result<Self, Error> {
        let sizes = sizes_for(facts, given);
        let bytes = |value: ValueId| match graph.tensor(model, value) {
            Some(_) => 0,
            None => value_bytes(facts, value, &sizes),
        };
        let inputs = graph.inputs.iter().fold(0, |sum: u64, value| sum.saturating_add(bytes(*value)));
        let values = (0..graph.values.len()).fold(0, |sum: u64, value| sum.saturating_add(bytes(value)));
        let nodes = graph.nodes.len() as u64;
        Ok(Self { inputs, activations: peak(graph, &bytes), values, weights: model.total_bytes()?, nodes })
    }

    /// Returns the memory in bytes of a run of the network in one session.
    pub fn run(&self) -> u64 {
        // The library keeps a copy of the weights in the layout of its kernels, in addition to those of the file.
        let parts = [
            scaled(self.activations, OVERHEAD),
            self.weights.saturating_mul(2),
            self.nodes.saturating_mul(OF_NODE),
            self.drawn(),
            LIBRARY,
        ];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// Returns the memory in bytes of a verification: first a reference that keeps all channels, with its masks,
    /// together with the nodes of the pruned network, all of whose values are kept until they are compared; then the
    /// pruned network itself.
    pub fn verification(&self) -> u64 {
        // A piece of the comparison keeps the values of its nodes in both networks, and values of the reference that
        // later pieces use.
        let pieces = (self.nodes / OF_PIECE).max(1) as f64;
        let parts = [
            scaled(self.values, 1.0 + 1.0 / pieces).max(scaled(self.activations, 2.0 * OVERHEAD)),
            scaled(self.weights, 2.5),
            self.nodes.saturating_mul(OF_COMPARED_NODE),
            self.drawn(),
            LIBRARY,
        ];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// Returns the memory in bytes of inputs while they are generated, first in double precision.
    fn drawn(&self) -> u64 {
        self.inputs.saturating_mul(3)
    }
}

fn scaled(bytes: u64, factor: f64) -> u64 {
    // Beyond 2^53 bytes, rounding errors do not matter.
    (bytes as f64 * factor) as u64
}

/// Returns the size of a value in bytes, or zero if it is not known.
fn value_bytes(facts: &Facts, value: ValueId, sizes: &Sizes) -> u64 {
    let Some(fact) = &facts.values[value] else { return 0 };
    let shape: Option<Vec<i64>> = fact.shape.iter().flatten().map(|dim| dim.eval(sizes)).collect();
    let count = shape.map_or(0.0, |shape| elements(&shape));
    // A model may declare sizes that exceed any memory.
    (count.max(0.0) as u64).saturating_mul(fact.dtype.byte_size().unwrap_or(1) as u64)
}

/// Returns the maximum total size in bytes of the values that are alive at the same time, if nodes run in order.
pub fn peak(graph: &Graph, bytes: &dyn Fn(ValueId) -> u64) -> u64 {
    let bytes: Vec<u64> = (0..graph.values.len()).map(bytes).collect();
    let last_read: Vec<usize> = graph
        .values
        .iter()
        .map(|value| {
            let last = value.consumers.iter().map(|(node, _)| *node).max().unwrap_or(0);
            if value.is_output { usize::MAX } else { last }
        })
        .collect();
    let add = |sum: u64, value: &usize| sum.saturating_add(bytes[*value]);
    let mut alive: u64 = graph.inputs.iter().fold(0, add);
    let mut peak = alive;
    for node in &graph.nodes {
        alive = node.outputs.iter().flatten().fold(alive, add);
        peak = peak.max(alive);
        let mut read: Vec<usize> = node.inputs.iter().flatten().copied().collect();
        read.sort_unstable();
        read.dedup();
        for value in read {
            if last_read[value] == node.id {
                alive = alive.saturating_sub(bytes[value]);
            }
        }
    }
    peak
}

/// Returns an error if a run needs more memory than is `available`. `None`: not known. `what` is the subject of the
/// message.
///
/// # Errors
/// An error of kind [`crate::error::ErrorKind::Unmet`] if `needed` exceeds `available`.
pub fn refuse_beyond(available: Option<u64>, needed: u64, what: &str) -> Result<(), Error> {
    match available.filter(|available| needed > *available) {
        None => Ok(()),
        Some(available) => {
            let text = format!(
                "{what} needs about {} of memory, but only {} are available",
                gibibytes(needed),
                gibibytes(available)
            );
            Err(Error::unmet(text))
        }
    }
}

/// Returns the largest divisor of `batch` for which the `needed` bytes of so many samples are `available`. Returns
/// `None` if even one sample needs too much.
pub fn fitting_batch(available: Option<u64>, batch: usize, needed: impl Fn(usize) -> u64) -> Option<usize> {
    let fits = |size: &usize| available.is_none_or(|available| needed(*size) <= available);
    (1..=batch).rev().filter(|size| batch.is_multiple_of(*size)).find(fits)
}

/// Formats a number of bytes for messages.
pub fn gibibytes(bytes: u64) -> String {
    let gibibytes = bytes as f64 / f64::from(1 << 30);
    if gibibytes < 0.1 { format!("{:.1} MiB", gibibytes * 1024.0) } else { format!("{gibibytes:.1} GiB") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn batches_shrink_to_divisors_that_fit() {
        let needed = |batch: usize| 100 * batch as u64;
        assert_eq!(fitting_batch(Some(1_000), 16, needed), Some(8));
        assert_eq!(fitting_batch(Some(1_600), 16, needed), Some(16));
        assert_eq!(fitting_batch(Some(700), 15, needed), Some(5));
        assert_eq!(fitting_batch(Some(99), 16, needed), None);
        assert_eq!(fitting_batch(None, 16, needed), Some(16));
    }

    #[test]
    fn the_error_for_too_little_memory_names_both_numbers() {
        assert!(refuse_beyond(None, u64::MAX, "a run").is_ok());
        assert!(refuse_beyond(Some(1 << 31), 1 << 30, "a run").is_ok());
        let error = refuse_beyond(Some(1 << 30), 3 << 29, "a run").unwrap_err();
        assert_eq!(error.to_string(), "a run needs about 1.5 GiB of memory, but only 1.0 GiB are available");
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn footprints_never_overflow() {
        let most = u64::MAX;
        let all = Footprint { inputs: most, activations: most, values: most, weights: most, nodes: most };
        assert_eq!((all.run(), all.verification()), (u64::MAX, u64::MAX));
    }
}
