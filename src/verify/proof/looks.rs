//! The settings of a graph of the proof, and the meaning of its outputs.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::graph::NodeId;
use crate::onnx::ModelProto;

/// What a graph does besides comparing.
#[derive(Clone, Debug, Default)]
pub(super) struct Looks {
    /// Nodes of the original that read noise, in the reference and in the pruned network.
    pub(super) opened: BTreeSet<NodeId>,
    /// Values that noise replaces as inputs of the opened nodes.
    pub(super) flat: HashSet<String>,
    /// Sizes of values in the original and in the pruned network, from an earlier run on the same inputs. With known sizes,
    /// the nodes before the noise need not run.
    pub(super) sizes: HashMap<String, (Vec<i64>, Vec<i64>)>,
    /// Values whose nodes run again on rounded inputs.
    pub(super) rounded: BTreeSet<String>,
    /// The values to compare. `None`: all of them.
    pub(super) only: Option<BTreeSet<String>>,
}

/// A value that is compared.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) value: String,
    /// The node of the original.
    pub(super) node: NodeId,
    /// The output of the graph that measures it, and those that measure its difference with rounded inputs.
    pub(super) output: String,
    pub(super) rounded: Vec<String>,
    /// The inputs of its node.
    pub(super) reads: Vec<String>,
    /// Whether it may be smaller than its mask indicates because its size follows from others: an example is a value
    /// repeated along an axis that is cut.
    pub(super) shrinks: bool,
}

/// A value that is measured without being compared: nodes of the cut read it and the cut does not touch it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) value: String,
    pub(super) output: String,
}

/// The graph and the meaning of its outputs.
pub(super) struct ProofGraph {
    pub(super) model: ModelProto,
    pub(super) watched: Vec<Watched>,
    pub(super) seen: Vec<Seen>,
    /// Values that the cut touches and that can't be compared, with the reason.
    pub(super) exceptions: Vec<(String, NodeId, String)>,
}
