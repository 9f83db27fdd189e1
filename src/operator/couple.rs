//! The interface of coupling to an operator, and what coupling collects: the pieces of axes ([`layout`]), and the
//! united and frozen indices of [`space`]s.

pub mod layout;

pub mod space;

pub mod grid;

pub mod kept;

mod cx;

use crate::graph::{NodeId, Reader, ValueId};
pub use cx::CoupleCx;
use layout::{Layout, SpaceId};
use space::Spaces;

/// One use of a constant tensor by a node. Exporters share equal constants, so every use has its own axes.
#[derive(Clone, Debug)]
pub struct WeightUse {
    /// The constant.
    pub value: ValueId,
    /// The node that takes it as input.
    pub node: NodeId,
    /// The input slot.
    pub slot: usize,
    /// The space of every axis; `None` for an axis of size one.
    pub axes: Vec<Option<SpaceId>>,
}

impl WeightUse {
    /// Returns the input that takes the constant.
    pub fn reader(&self) -> Reader {
        Reader { node: self.node, slot: self.slot }
    }
}

/// A node that keeps channels from being removed, as shown to the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// The node.
    pub node: NodeId,
    /// Why it keeps them.
    pub cause: String,
}

/// What coupling found.
#[derive(Debug)]
pub struct Coupling {
    /// All index spaces with their united and frozen indices.
    pub spaces: Spaces,
    /// The pieces of every value's axes; `None` where the rank is not known.
    pub layouts: Vec<Option<Layout>>,
    /// Every use of a constant whose axes an operator's rule asked for.
    pub uses: Vec<WeightUse>,
    /// For every value, the input of the network from which alone, and without weights, it is computed, or the sparse
    /// initializer that it is computed with. The axes of such a value never shrink. `None` for all other values.
    pub origins: Vec<Option<ValueId>>,
    /// The integers of every value that form a grid of indices.
    pub grids: grid::Grids,
    /// Nodes that keep all their channels because no rule covers them.
    pub barriers: Vec<Barrier>,
}

impl Coupling {
    /// Returns the use of a constant by input `slot` of a node.
    pub fn weight_use(&self, node: NodeId, slot: usize) -> Option<&WeightUse> {
        let at = self.uses.binary_search_by_key(&(node, slot), |weight| (weight.node, weight.slot)).ok()?;
        self.uses.get(at)
    }
}
