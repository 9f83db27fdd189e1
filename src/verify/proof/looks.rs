//! What a graph of the proof looks at, and what its outputs are.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::graph::NodeId;
use crate::onnx::ModelProto;

/// What a graph does beside comparing.
#[derive(Clone, Debug, Default)]
pub(super) struct Looks {
    /// Nodes of the original that read noise, in the reference and in the pruned network.
    pub(super) opened: BTreeSet<NodeId>,
    /// Values that do not change from place to place; those that are opened are open to all nodes above.
    pub(super) flat: HashSet<String>,
    /// Sizes of values in the original and in the pruned network, as an earlier run on the same inputs found them. Noise of
    /// known sizes needs no run of what comes before it.
    pub(super) sizes: HashMap<String, (Vec<i64>, Vec<i64>)>,
    /// Values whose nodes run again on rounded inputs.
    pub(super) rounded: BTreeSet<String>,
    /// The values that are looked at; all where none are named.
    pub(super) only: Option<BTreeSet<String>>,
}

/// A value that is compared.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) value: String,
    /// The node of the original.
    pub(super) node: NodeId,
    /// The output of the graph that tells of it, and those that tell how it differs with rounded inputs.
    pub(super) output: String,
    pub(super) rounded: Vec<String>,
    /// What its node reads.
    pub(super) reads: Vec<String>,
    /// Whether it may be smaller than the mask says: its size follows from others, as that of what is repeated along an
    /// axis that is cut.
    pub(super) shrinks: bool,
}

/// A value that is only looked at: one that nodes of the cut read and that the cut does not touch.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) value: String,
    pub(super) output: String,
}

/// The graph and what its outputs are.
pub(super) struct ProofGraph {
    pub(super) model: ModelProto,
    pub(super) watched: Vec<Watched>,
    pub(super) seen: Vec<Seen>,
    /// Values that the cut touches and that can't be compared, with the reason.
    pub(super) exceptions: Vec<(String, NodeId, String)>,
}
