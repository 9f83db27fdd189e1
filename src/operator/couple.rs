//! What coupling offers to an operator, and what it collects: the pieces of axes ([`layout`]), united and frozen indices
//! of [`space`]s.

pub mod layout;

pub mod space;

pub mod grid;

pub mod kept;

mod cx;

use crate::graph::{NodeId, Reader, ValueId};
pub use cx::CoupleCx;
use layout::{Layout, SpaceId};
use space::Spaces;

/// One use of a constant tensor by a node. Exporters share equal constants, so every use has axes of its own.
#[derive(Clone, Debug)]
pub struct WeightUse {
    /// The constant.
    pub value: ValueId,
    /// The node that reads it.
    pub node: NodeId,
    /// At which input.
    pub slot: usize,
    /// The space of every axis; `None` for an axis of size one.
    pub axes: Vec<Option<SpaceId>>,
}

impl WeightUse {
    /// The input that reads it.
    pub fn reader(&self) -> Reader {
        Reader { node: self.node, slot: self.slot }
    }
}

/// Something that stops channels from being removed, for the user to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// The node.
    pub node: NodeId,
    /// Why.
    pub cause: String,
}

/// What coupling found.
#[derive(Debug)]
pub struct Coupling {
    /// All index spaces with their united and frozen indices.
    pub spaces: Spaces,
    /// The pieces of every value's axes; `None` where the rank is not known.
    pub layouts: Vec<Option<Layout>>,
    /// Every use of a constant that an operator's rule looked at.
    pub uses: Vec<WeightUse>,
    /// The input of the network that a value is, or that alone it follows from without weights, or the sparse initializer
    /// that it is computed with; its axes never shrink.
    pub origins: Vec<Option<ValueId>>,
    /// The integers of every value that are a grid of indices.
    pub grids: grid::Grids,
    /// Nodes that keep all their channels because no rule covers them.
    pub barriers: Vec<Barrier>,
}

impl Coupling {
    /// The use of a constant by input `slot` of a node.
    pub fn weight_use(&self, node: NodeId, slot: usize) -> Option<&WeightUse> {
        let at = self.uses.binary_search_by_key(&(node, slot), |weight| (weight.node, weight.slot)).ok()?;
        self.uses.get(at)
    }
}
