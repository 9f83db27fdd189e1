//! What is known of all values.

use std::collections::BTreeMap;

use super::NodeId;
use super::dim::Dim;
use super::fact::Fact;
use super::sizes::Sizes;

/// What inference knows of every value, by [`super::ValueId`].
#[derive(Clone, Debug)]
pub struct Facts {
    /// One entry per value; `None` where not even the element type is known.
    pub values: Vec<Option<Fact>>,
    /// Nodes whose operator is not registered or whose shapes could not be inferred, with the cause.
    pub gaps: Vec<(usize, String)>,
    /// Symbolic sizes of the network's inputs that its weights fix.
    pub fixed: BTreeMap<String, Fixed>,
    /// Symbolic sizes of the network's inputs that follow from others, in the order in which they are derived.
    pub ties: Vec<Tie>,
    pub(crate) fresh: usize,
    /// What nodes demand of symbolic sizes.
    pub(crate) equations: Vec<Equation>,
    /// Elements of large known values, see [`crate::graph::fact::KNOWN_TOTAL`].
    pub(crate) known_elements: usize,
}

/// A symbolic size that a weight fixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// The size.
    pub size: i64,
    /// The node that runs at this size only, as messages show it.
    pub node: String,
}

/// A symbolic size that another one decides, unless the user gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tie {
    /// The symbol.
    pub symbol: String,
    /// The size that it gets.
    pub size: Dim,
}

/// How two sizes are related that meet at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// They are equal.
    Equal,
    /// They are equal, or one of them is one.
    Broadcast,
    /// The first is not less than the second.
    Reaches,
}

/// What a node says of two sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equation {
    /// One size.
    pub a: Dim,
    /// The other.
    pub b: Dim,
    /// The node.
    pub node: NodeId,
    /// How they are related.
    pub relation: Relation,
}

impl Facts {
    /// Nothing yet of `count` values.
    pub(crate) fn unknown(count: usize) -> Self {
        Self {
            values: vec![None; count],
            gaps: Vec::new(),
            fixed: BTreeMap::new(),
            ties: Vec::new(),
            fresh: 0,
            equations: Vec::new(),
            known_elements: 0,
        }
    }

    /// The sizes that weights fix.
    pub fn fixed_sizes(&self) -> Sizes {
        self.fixed.iter().map(|(name, fixed)| (name.clone(), fixed.size)).collect()
    }
}
