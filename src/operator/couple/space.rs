//! Index spaces, and which of their indices live or die together.
//!
//! Every prunable axis of every use of a weight is a space; concatenations, splits and products of axes make further
//! ones. Indices are united (petgraph's union-find) when removing one without the other would be wrong. A class of
//! united indices is what selection later calls a channel. A frozen index keeps its whole class.

mod digits;

mod excerpt;

use std::collections::BTreeMap;

use petgraph::unionfind::UnionFind;

use super::layout::{Axis, Piece, SpaceId};
use crate::graph::dim::Dim;

/// Why an index can't be removed, as shown to the user.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reason {
    /// What keeps it.
    pub text: String,
    /// The node that does.
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

/// Which digits of a divided space may shrink, as its divider says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shrinks {
    /// Any one of them.
    #[default]
    Any,
    /// Any one of them; the one at this position where it can.
    Preferably(usize),
    /// The one at this position alone.
    Only(usize),
    /// None: two operators allow one each, and not the same.
    Nothing,
}

impl Shrinks {
    /// What two operators allow that divide a space in the same way.
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

    /// The same with the digits at other positions; `None` for a digit that is no more.
    fn moved(self, to: impl Fn(usize) -> Option<usize>) -> Self {
        match self {
            Self::Only(at) => to(at).map_or(Self::Nothing, Self::Only),
            Self::Preferably(at) => to(at).map_or(Self::Any, Self::Preferably),
            other => other,
        }
    }

    /// The same where the digits of the given sizes that have one value are left out.
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
    /// The spaces of the digits that stand alone somewhere. If only the first does, the division is ragged: the others
    /// are seen only together with it, as in a group norm, and different indices may go from every block.
    pub digits: Vec<Option<SpaceId>>,
    /// Which digits may shrink, as the operators say.
    pub shrinks: Shrinks,
    /// The node that divides it.
    pub node: String,
}

impl Division {
    /// Whether only the outermost digit stands alone.
    pub fn is_ragged(&self) -> bool {
        self.digits.iter().skip(1).all(Option::is_none) && self.shrinks == Shrinks::Any
    }
}

/// Blocks of equally many consecutive indices of which each must lose the same number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EqualBlocks {
    /// The space.
    pub space: SpaceId,
    /// Indices in a block.
    pub block: usize,
    /// The node that asks for it.
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
    liked: BTreeMap<(SpaceId, usize), usize>,
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
            liked: BTreeMap::new(),
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

    /// An axis that is one whole space; an axis of one index, or of none, has nothing that could shrink.
    pub fn whole(&self, space: SpaceId) -> Axis {
        match self.spaces[space].len {
            0 => vec![Piece::Fixed(Dim::from(0))],
            1 => Vec::new(),
            extent => vec![Piece::Part { space, inner: 1, extent }],
        }
    }

    /// All spaces in the order of their creation.
    pub fn all(&self) -> &[Space] {
        &self.spaces
    }

    /// The number of elements of all spaces.
    pub fn element_count(&self) -> usize {
        self.frozen.len()
    }

    /// All divisions, by space and sizes.
    pub fn divisions(&self) -> impl Iterator<Item = &Division> {
        self.divisions.values()
    }

    /// All demands for equally many removals per block.
    pub fn equal_blocks(&self) -> impl Iterator<Item = &EqualBlocks> {
        self.equal_blocks.iter()
    }

    /// Demands that every block of `block` consecutive indices of the space loses equally many.
    pub fn require_equal_blocks(&mut self, space: SpaceId, block: usize, node: &str) {
        self.equal_blocks.insert(EqualBlocks { space, block, node: node.to_owned() });
    }

    /// Says that a kernel takes the blocks of `block` consecutive indices of a space only where a multiple of `multiple`
    /// stays of each.
    pub fn like_multiples(&mut self, space: SpaceId, block: usize, multiple: usize) {
        if multiple > 1 && block.is_multiple_of(multiple) {
            self.liked.insert((space, block), multiple);
        }
    }

    /// The multiple of what stays of each block of `block` consecutive indices that a kernel likes; 1 where none does.
    pub fn liked_multiple(&self, space: SpaceId, block: usize) -> usize {
        self.liked.get(&(space, block)).copied().unwrap_or(1)
    }

    /// Where axes end within a space: the space, the number of indices of the blocks that lie between two borders, and the
    /// first node whose output has it. What is left of the blocks must be equally many, or whole blocks.
    pub fn borders(&self) -> impl Iterator<Item = (SpaceId, usize, &str)> {
        self.borders.iter().map(|((space, block), node)| (*space, *block, node.as_str()))
    }

    /// Notes where axes end within a space.
    pub fn mark_borders(&mut self, axes: &[Axis], node: &str) {
        for axis in axes {
            if let Some(Piece::Part { space, inner, extent }) = axis.first()
                && inner * extent < self.spaces[*space].len
            {
                self.borders.entry((*space, inner * extent)).or_insert_with(|| node.to_owned());
            }
        }
    }

    /// The representative of every element's class.
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

    /// Unites two whole spaces of one size index by index.
    pub fn unite_spaces(&mut self, a: SpaceId, b: SpaceId) {
        if a != b {
            for at in 0..self.spaces[a].len.min(self.spaces[b].len) {
                self.unite(a, at, b, at);
            }
        }
    }

    /// Marks that the indices of a space hold copies of one value: they go only with channels that a weight computes.
    pub fn mark_repeated(&mut self, space: SpaceId, reason: Reason) {
        self.repeated.insert(space, reason);
    }

    /// Why the indices of a space do not go by themselves, if they are copies of one value.
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

    /// Keeps indices `range` of a space; the first reason that is given stands.
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

    /// Keeps everything that an axis is made of.
    pub fn freeze_axis(&mut self, axis: &Axis, reason: &Reason) {
        for piece in axis {
            if let Piece::Part { space, .. } = piece {
                self.freeze_space(*space, reason);
            }
        }
    }

    /// The reason that keeps each class, by representative element; the smallest element's reason wins.
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

/// Axes of more indices than this are not divided into them, wherever they come from.
pub const LONGEST_AXIS: usize = 1 << 21;

/// Indices of all spaces of a network; nodes beyond are barriers. The largest networks of today have some ten million.
pub const MOST_INDICES: usize = 1 << 25;

/// The size of an axis that may be made of new indices: static, more than one, and not larger than any network's.
pub fn new_axis_size(size: &Dim) -> Option<usize> {
    usize::try_from(size.as_const()?).ok().filter(|size| (2..=NEW_AXIS_LIMIT).contains(size))
}

/// The size of an axis when all its pieces are static.
pub fn axis_size(axis: &Axis) -> Option<usize> {
    let size = crate::graph::dim::product(axis.iter().map(Piece::size).collect::<Vec<Dim>>().iter());
    usize::try_from(size.as_const()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_of_one_index_or_none_have_nothing_that_could_shrink() {
        let mut spaces = Spaces::default();
        let (none, one, two) = (spaces.add(0), spaces.add(1), spaces.add(2));
        assert_eq!(spaces.whole(none), vec![Piece::Fixed(Dim::from(0))]);
        assert_eq!(spaces.whole(one), Axis::new());
        assert_eq!(spaces.whole(two), vec![Piece::Part { space: two, inner: 1, extent: 2 }]);
    }

    #[test]
    fn a_statistic_of_every_block_meets_the_outermost_digit() {
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
    fn sizes_that_a_file_only_claims_are_not_divided_into_indices() {
        assert_eq!(new_axis_size(&Dim::from(1280)), Some(1280));
        assert_eq!(new_axis_size(&Dim::from(1)), None);
        assert_eq!(new_axis_size(&Dim::from(1 << 40)), None);
        assert_eq!(new_axis_size(&Dim::symbol("N")), None);
    }
}
