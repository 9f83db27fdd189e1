//! The common part of operators of sequences.

/// Why the coupling of a node with a sequence is not known.
pub(super) const CAUSE: &str =
    "the node takes or returns a sequence whose tensors or positions are not known before the network runs";
