//! What operators of sequences share.

/// Why the coupling of a node with a sequence is not known.
pub(super) const CAUSE: &str = "it has a sequence whose tensors or positions are not known before the network runs";
