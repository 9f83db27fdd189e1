//! Index spaces, and which of their indices must be removed together.
//!
//! Every prunable axis of every use of a weight is a space; concatenations, splits and products of axes add further
//! ones. Indices are united (petgraph's union-find) if removing one without the other would be wrong. Selection later
//! treats a class of united indices as one channel. A frozen index keeps its whole class.

mod digits;

mod excerpt;

use std::collections::BTreeMap;

use petgraph::unionfind::UnionFind;

use super::layout::{Axis, Piece, SpaceId};
use crate::graph::dim::Dim;

/// Why an index can't be removed, as shown to the user.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reason {
    /// The reason: a clause with a subject.
    pub text: String,
    /// The node that keeps it.
    pub node: String,
}

/// One index space.
#[derive(Clone, Debug)]
pub struct Space {
    /// First element of the space among all elements.
    pub start: usize,
    /// Number of indices.
    pub len: usize,
    /// Whether a contraction computes these indices from others (rows of a weight).
    pub produced: bool,
    /// Whether a contraction sums over these indices (columns of a weight).
    pub consumed: bool,
}

/// Which digits of a divided space may shrink, as stated by the operator that divides it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shrinks {
    /// Any one of them.
    #[default]
    Any,
    /// Any one of them; preferably the one at this position.
    Preferably(usize),
    /// Only the one at this position.
    Only(usize),
    /// None: two operators allow one digit each, and not the same.
    Nothing,
}

impl Shrinks {
    /// Combines what two operators allow that divide a space in the same way.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, _) | (_, Self::Nothing) => Self::Nothing,
            (Self::Only(a), Self::Only(b)) if a != b => Self::Nothing,
            (Self::Only(at), _) | (_, Self::Only(at)) => Self::Only(at),
            (Self::Preferably(a), Self::Preferably(b)) if a != b => Self::Any,
            (Self::Preferably(at), _) | (_, Self::Preferably(at)) => Self::Preferably(at),
            (Self::Any, Self::Any) => Self::Any,
        }
    }

    /// The same with the digits at other positions; `to` returns `None` for a digit that no longer exists.
    fn moved(self, to: impl Fn(usize) -> Option<usize>) -> Self {
        match self {
            Self::Only(at) => to(at).map_or(Self::Nothing, Self::Only),
            Self::Preferably(at) => to(at).map_or(Self::Any, Self::Preferably),
            other => other,
        }
    }

    /// The same without the digits that have only one value; `sizes` are the sizes of all digits.
    pub(super) fn without_ones(self, sizes: &[usize]) -> Self {
        self.moved(|at| (sizes[at] > 1).then(|| sizes[..at].iter().filter(|size| **size > 1).count()))
    }
}

/// A space whose index is also read as several digits, outermost first.
#[derive(Clone, Debug)]
pub struct Division {
    /// The space that is divided.
    pub space: SpaceId,
    /// Number of values of each digit; their product is the size of the space.
    pub sizes: Vec<usize>,
    /// The spaces of the digits that occur alone somewhere. If only the first does, the division is ragged: the others
    /// occur only together with it, as in a group norm, and different indices may be removed from every block.
    pub digits: Vec<Option<SpaceId>>,
    /// Which digits may shrink, as the operators state.
    pub shrinks: Shrinks,
    /// The node that divides it.
    pub node: String,
}

impl Division {
    /// Whether only the outermost digit occurs alone.
    pub fn is_ragged(&self) -> bool {
        self.digits.iter().skip(1).all(Option::is_none) && self.shrinks == Shrinks::Any
    }
}

/// Blocks of consecutive indices, equal in size, each of which must lose the same number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EqualBlocks {
    /// The space.
    pub space: SpaceId,
    /// Indices in a block.
    pub block: usize,
    /// The node that requires it.
    pub node: String,
}

/// All index spaces of a graph.
#[derive(Clone, Debug)]
pub struct Spaces {
    spaces: Vec<Space>,
    united: UnionFind<u32>,
    frozen: Vec<u32>,
    reasons: Vec<Reason>,
    reason_ids: BTreeMap<Reason, u32>,
    divisions: BTreeMap<(SpaceId, Vec<usize>), Division>,
    equal_blocks: std::collections::BTreeSet<EqualBlocks>,
    borders: BTreeMap<(SpaceId, usize), String>,
    repeated: BTreeMap<SpaceId, Reason>,
    preferred: BTreeMap<(SpaceId, usize), usize>,
}

impl Default for Spaces {
    fn default() -> Self {
        Self {
            spaces: Vec::new(),
            united: UnionFind::new_empty(),
            frozen: Vec::new(),
            reasons: Vec::new(),
            reason_ids: BTreeMap::new(),
            divisions: BTreeMap::new(),
            equal_blocks: std::collections::BTreeSet::new(),
            borders: BTreeMap::new(),
            repeated: BTreeMap::new(),
            preferred: BTreeMap::new(),
        }
    }
}

impl Spaces {
    /// Makes a space of `len` free indices.
    pub fn add(&mut self, len: usize) -> SpaceId {
        let start = self.frozen.len();
        for _ in 0..len {
            self.united.new_set();
        }
        self.frozen.resize(start + len, 0);
        self.spaces.push(Space { start, len, produced: false, consumed: false });
        self.spaces.len() - 1
    }

    /// Returns the axis that is one whole space. An axis of one index or of none can't shrink.
    pub fn whole(&self, space: SpaceId) -> Axis {
        match self.spaces[space].len {
            0 => vec![Piece::Fixed(Dim::from(0))],
            1 => Vec::new(),
            extent => vec![Piece::Part { space, inner: 1, extent }],
        }
    }

    /// Returns all spaces in the order of their creation.
    pub fn all(&self) -> &[Space] {
        &self.spaces
    }

    /// Returns the number of elements of all spaces.
    pub fn element_count(&self) -> usize {
        self.frozen.len()
    }

    /// Returns all divisions, by space and sizes.
    pub fn divisions(&self) -> impl Iterator<Item = &Division> {
        self.divisions.values()
    }

    /// Returns all requirements that blocks lose equally many indices.
    pub fn equal_blocks(&self) -> impl Iterator<Item = &EqualBlocks> {
        self.equal_blocks.iter()
    }

    /// Requires that every block of `block` consecutive indices of the space loses equally many.
    pub fn require_equal_blocks(&mut self, space: SpaceId, block: usize, node: &str) {
        self.equal_blocks.insert(EqualBlocks { space, block, node: node.to_owned() });
    }

    /// Notes that a kernel accepts the blocks of `block` consecutive indices of a space only if each keeps a multiple
    /// of `multiple`.
    pub fn prefer_multiples(&mut self, space: SpaceId, block: usize, multiple: usize) {
        if multiple > 1 && block.is_multiple_of(multiple) {
            self.preferred.insert((space, block), multiple);
        }
    }

    /// Returns the multiple of kept indices per block of `block` consecutive indices that a kernel accepts; 1 if none
    /// asks for any.
    pub fn liked_multiple(&self, space: SpaceId, block: usize) -> usize {
        self.preferred.get(&(space, block)).copied().unwrap_or(1)
    }

    /// Returns where axes end within a space: the space, the number of indices in the block between two borders, and
    /// the first node whose output has the border. The blocks must keep equally many indices, or be removed whole.
    pub fn borders(&self) -> impl Iterator<Item = (SpaceId, usize, &str)> {
        self.borders.iter().map(|((space, block), node)| (*space, *block, node.as_str()))
    }

    /// Records where axes end within a space.
    pub fn mark_borders(&mut self, axes: &[Axis], node: &str) {
        for axis in axes {
            if let Some(Piece::Part { space, inner, extent }) = axis.first()
                && inner * extent < self.spaces[*space].len
            {
                self.borders.entry((*space, inner * extent)).or_insert_with(|| node.to_owned());
            }
        }
    }

    /// Returns the representative of every element's class.
    pub fn classes(&self) -> Vec<u32> {
        self.united.clone().into_labeling()
    }

    /// Unites index `a_at` of `a` with index `b_at` of `b`.
    pub fn unite(&mut self, a: SpaceId, a_at: usize, b: SpaceId, b_at: usize) {
        let (a, b) = (self.element(a, a_at), self.element(b, b_at));
        self.united.union(a, b);
    }

    fn element(&self, space: SpaceId, at: usize) -> u32 {
        debug_assert!(at < self.spaces[space].len, "index {at} of a space of {}", self.spaces[space].len);
        u32::try_from(self.spaces[space].start + at).unwrap_or(u32::MAX)
    }

    /// Unites two whole spaces of the same size, index by index.
    pub fn unite_spaces(&mut self, a: SpaceId, b: SpaceId) {
        if a != b {
            for at in 0..self.spaces[a].len.min(self.spaces[b].len) {
                self.unite(a, at, b, at);
            }
        }
    }

    /// Marks that the indices of a space hold copies of one value: they are removed only with channels that a weight
    /// computes.
    pub fn mark_repeated(&mut self, space: SpaceId, reason: Reason) {
        self.repeated.insert(space, reason);
    }

    /// Returns why the indices of a space can't be removed alone if they are copies of one value; `None` if they are
    /// not.
    pub fn repeated(&self, space: SpaceId) -> Option<&Reason> {
        self.repeated.get(&space)
    }

    /// Marks that a contraction computes the indices of a space.
    pub fn mark_produced(&mut self, space: SpaceId) {
        self.spaces[space].produced = true;
    }

    /// Marks that a contraction sums over the indices of a space.
    pub fn mark_consumed(&mut self, space: SpaceId) {
        self.spaces[space].consumed = true;
    }

    /// Keeps the indices `range` of a space. The first reason given for an index is the one shown.
    pub fn freeze(&mut self, space: SpaceId, range: std::ops::Range<usize>, reason: &Reason) {
        let id = match self.reason_ids.get(reason) {
            Some(id) => *id,
            None => {
                self.reasons.push(reason.clone());
                let id = u32::try_from(self.reasons.len()).unwrap_or(u32::MAX);
                self.reason_ids.insert(reason.clone(), id);
                id
            }
        };
        let start = self.spaces[space].start;
        for frozen in &mut self.frozen[start + range.start..start + range.end] {
            if *frozen == 0 {
                *frozen = id;
            }
        }
    }

    /// Keeps a whole space.
    pub fn freeze_space(&mut self, space: SpaceId, reason: &Reason) {
        self.freeze(space, 0..self.spaces[space].len, reason);
    }

    /// Keeps every index of every space in an axis.
    pub fn freeze_axis(&mut self, axis: &Axis, reason: &Reason) {
        for piece in axis {
            if let Piece::Part { space, .. } = piece {
                self.freeze_space(*space, reason);
            }
        }
    }

    /// Returns the reason that keeps each class, by representative element; the reason of the smallest element wins.
    pub fn frozen_classes(&self, classes: &[u32]) -> Vec<Option<&Reason>> {
        let mut by_class = vec![None; classes.len()];
        for (class, frozen) in classes.iter().zip(&self.frozen) {
            if *frozen != 0 && by_class[*class as usize].is_none() {
                by_class[*class as usize] = self.reasons.get(*frozen as usize - 1);
            }
        }
        by_class
    }
}

/// Axes that an operator makes larger than its inputs (by repetition or padding) are not divided into indices beyond
/// this size: a file can claim any size in a few bytes.
const NEW_AXIS_LIMIT: usize = 1 << 20;

/// Maximum number of indices into which an axis is divided, wherever the axis comes from.
pub const LONGEST_AXIS: usize = 1 << 21;

/// Maximum number of indices of all spaces of a network; nodes beyond it are barriers. Today's largest networks have
/// about ten million.
pub const MOST_INDICES: usize = 1 << 25;

/// Returns the size of an axis that may consist of new indices: static, more than one, and at most the limit for new
/// axes. `None` otherwise.
pub fn new_axis_size(size: &Dim) -> Option<usize> {
    usize::try_from(size.as_const()?).ok().filter(|size| (2..=NEW_AXIS_LIMIT).contains(size))
}

/// Returns the size of an axis; `None` unless all its pieces are static.
pub fn axis_size(axis: &Axis) -> Option<usize> {
    let size = crate::graph::dim::product(axis.iter().map(Piece::size).collect::<Vec<Dim>>().iter());
    usize::try_from(size.as_const()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_of_one_index_or_none_never_shrink() {
        let mut spaces = Spaces::default();
        let (none, one, two) = (spaces.add(0), spaces.add(1), spaces.add(2));
        assert_eq!(spaces.whole(none), vec![Piece::Fixed(Dim::from(0))]);
        assert_eq!(spaces.whole(one), Axis::new());
        assert_eq!(spaces.whole(two), vec![Piece::Part { space: two, inner: 1, extent: 2 }]);
    }

    #[test]
    fn a_statistic_per_block_meets_the_outermost_digit() {
        let mut spaces = Spaces::default();
        let channels = spaces.add(12);
        let divided = vec![Piece::Part { space: channels, inner: 4, extent: 3 }];
        let groups = spaces.outer_digit(channels, 4, "norm");
        assert!(spaces.is_outer_digit(&divided, &spaces.whole(groups)));
        let others = spaces.add(3);
        assert!(!spaces.is_outer_digit(&divided, &spaces.whole(others)));
        assert!(!spaces.is_outer_digit(&spaces.whole(channels), &spaces.whole(groups)));
    }

    #[test]
    fn huge_and_symbolic_sizes_are_not_divided_into_indices() {
        assert_eq!(new_axis_size(&Dim::from(1280)), Some(1280));
        assert_eq!(new_axis_size(&Dim::from(1)), None);
        assert_eq!(new_axis_size(&Dim::from(1 << 40)), None);
        assert_eq!(new_axis_size(&Dim::symbol("N")), None);
    }
}
