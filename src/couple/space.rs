//! Index spaces, and which of their indices live or die together.
//!
//! Every prunable axis of every use of a weight is a space; concatenations, splits and products of axes make further
//! ones. Indices are united (petgraph's union-find) when removing one without the other would be wrong. A class of
//! united indices is what selection later calls a channel. A frozen index keeps its whole class.

use std::collections::BTreeMap;

use petgraph::unionfind::UnionFind;

use super::layout::{Axis, Piece, SpaceId, push_piece};
use crate::dim::Dim;

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

/// A space whose index is also read as several digits, outermost first.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The space that is cut.
    pub space: SpaceId,
    /// Number of values of each digit; their product is the size of the space.
    pub sizes: Vec<usize>,
    /// The spaces of the digits that stand alone somewhere. If only the first does, the cut is ragged: the others
    /// are seen only together with it, as in a group norm, and different indices may go from every block.
    pub digits: Vec<Option<SpaceId>>,
    /// The digit that alone may shrink, where the operator says so.
    pub only: Option<usize>,
    /// The node that cut it.
    pub node: String,
}

impl Cut {
    /// Whether only the outermost digit stands alone.
    pub fn is_ragged(&self) -> bool {
        self.digits.iter().skip(1).all(Option::is_none) && self.only.is_none()
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
    cuts: BTreeMap<(SpaceId, Vec<usize>), Cut>,
    equal_blocks: std::collections::BTreeSet<EqualBlocks>,
    repeated: BTreeMap<SpaceId, Reason>,
}

impl Default for Spaces {
    fn default() -> Self {
        Self {
            spaces: Vec::new(),
            united: UnionFind::new_empty(),
            frozen: Vec::new(),
            reasons: Vec::new(),
            reason_ids: BTreeMap::new(),
            cuts: BTreeMap::new(),
            equal_blocks: std::collections::BTreeSet::new(),
            repeated: BTreeMap::new(),
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

    /// All cuts, by space and sizes.
    pub fn cuts(&self) -> impl Iterator<Item = &Cut> {
        self.cuts.values()
    }

    /// All demands for equally many removals per block.
    pub fn equal_blocks(&self) -> impl Iterator<Item = &EqualBlocks> {
        self.equal_blocks.iter()
    }

    /// Demands that every block of `block` consecutive indices of the space loses equally many.
    pub fn require_equal_blocks(&mut self, space: SpaceId, block: usize, node: &str) {
        self.equal_blocks.insert(EqualBlocks { space, block, node: node.to_owned() });
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

    /// The space of the outermost digit of a cut into blocks of `block` indices, not claiming anything of the rest.
    pub fn outer_digit(&mut self, space: SpaceId, block: usize, node: &str) -> SpaceId {
        let len = self.spaces[space].len;
        if block == 1 {
            return space;
        }
        let key = (space, vec![len / block, block]);
        if let Some(Some(outer)) = self.cuts.get(&key).map(|cut| cut.digits[0]) {
            return outer;
        }
        let outer = self.add(len / block);
        let cut = self.cuts.entry(key).or_insert_with_key(|(space, sizes)| Cut {
            space: *space,
            sizes: sizes.clone(),
            digits: vec![None; sizes.len()],
            only: None,
            node: node.to_owned(),
        });
        cut.digits[0] = Some(outer);
        outer
    }

    /// Whether `digit` is the space that [`Spaces::outer_digit`] gave for the outermost digit of a cut, which is `axis`.
    pub fn is_outer_digit(&self, axis: &Axis, digit: &Axis) -> bool {
        let ([Piece::Part { space, inner, extent }], [Piece::Part { space: other, inner: 1, extent: count }]) =
            (axis.as_slice(), digit.as_slice())
        else {
            return false;
        };
        *inner > 1
            && extent == count
            && self.spaces[*space].len == inner * extent
            && self.spaces[*other].len == *count
            && self.cuts.get(&(*space, vec![*extent, *inner])).is_some_and(|cut| cut.digits[0] == Some(*other))
    }

    /// The spaces of all digits of a cut into `sizes` (outermost first; sizes above one, their product the space's).
    /// Where `only` is given, no other digit may shrink.
    pub fn digits(&mut self, space: SpaceId, sizes: &[usize], only: Option<usize>, node: &str) -> Vec<SpaceId> {
        if sizes.len() == 1 {
            return vec![space];
        }
        let key = (space, sizes.to_vec());
        let known = self.cuts.get(&key).map_or_else(|| vec![None; sizes.len()], |cut| cut.digits.clone());
        let digits: Vec<SpaceId> =
            known.iter().zip(sizes).map(|(digit, size)| digit.unwrap_or_else(|| self.add(*size))).collect();
        let cut = self.cuts.entry(key).or_insert_with_key(|(space, sizes)| Cut {
            space: *space,
            sizes: sizes.clone(),
            digits: Vec::new(),
            only: None,
            node: node.to_owned(),
        });
        cut.digits = digits.iter().copied().map(Some).collect();
        cut.only = cut.only.or(only);
        digits
    }

    /// The axis with every digit that is not a whole space replaced by a space of its own.
    ///
    /// All digits of a space that occur in `axes` are made in one cut, so that `[3, heads, 64]` is one decision.
    pub fn separate(&mut self, axes: &[Axis], node: &str) -> Vec<Axis> {
        let mut parts: BTreeMap<SpaceId, Vec<(usize, usize)>> = BTreeMap::new();
        for piece in axes.iter().flatten() {
            if let Piece::Part { space, inner, extent } = piece
                && *extent != self.spaces[*space].len
            {
                parts.entry(*space).or_default().push((*inner, *extent));
            }
        }
        let mut replacements: BTreeMap<(SpaceId, usize), SpaceId> = BTreeMap::new();
        for (space, mut present) in parts {
            present.sort_unstable_by(|a, b| b.cmp(a));
            present.dedup();
            let len = self.spaces[space].len;
            if present.len() == 1 && present[0].0 * present[0].1 == len {
                let (inner, _) = present[0];
                replacements.insert((space, inner), self.outer_digit(space, inner, node));
                continue;
            }
            // Fill the gaps between the digits that are present.
            let mut chain = Vec::new();
            let mut covered = len;
            for (inner, extent) in &present {
                if inner * extent < covered {
                    chain.push((inner * extent, covered / (inner * extent)));
                }
                chain.push((*inner, *extent));
                covered = *inner;
            }
            if covered > 1 {
                chain.push((1, covered));
            }
            let sizes: Vec<usize> = chain.iter().map(|(_, extent)| *extent).collect();
            let digits = self.digits(space, &sizes, None, node);
            for ((inner, _), digit) in chain.iter().zip(digits) {
                replacements.insert((space, *inner), digit);
            }
        }
        let mut separated = Vec::with_capacity(axes.len());
        for axis in axes {
            let mut new = Axis::new();
            for piece in axis {
                let piece = match piece {
                    Piece::Part { space, inner, extent } if *extent != self.spaces[*space].len => {
                        let digit = replacements.get(&(*space, *inner)).copied().unwrap_or(*space);
                        Piece::Part { space: digit, inner: 1, extent: *extent }
                    }
                    other => other.clone(),
                };
                push_piece(&mut new, piece);
            }
            separated.push(new);
        }
        separated
    }

    /// Whether the digits of every cut space stand side by side and complete, as right after a reshape.
    pub fn is_contiguous(&self, axes: &[Axis]) -> bool {
        let mut open: Option<(SpaceId, usize)> = None;
        for piece in axes.iter().flatten() {
            match (piece, open) {
                (Piece::Part { space, inner, extent }, Some((open_space, rest))) => {
                    if *space != open_space || inner * extent != rest {
                        return false;
                    }
                    open = (*inner > 1).then_some((*space, *inner));
                }
                (Piece::Part { space, inner, extent }, None) => {
                    if inner * extent != self.spaces[*space].len {
                        return false;
                    }
                    open = (*inner > 1).then_some((*space, *inner));
                }
                (Piece::Fixed(_), Some(_)) => return false,
                (Piece::Fixed(_), None) => {}
            }
        }
        open.is_none()
    }

    /// One whole space for an axis of several pieces; `None` for an axis that never shrinks. Pieces that never
    /// shrink inside a product become frozen digits.
    pub fn single(&mut self, axis: &Axis, node: &str) -> Option<SpaceId> {
        let axis = self.separate(std::slice::from_ref(axis), node).pop()?;
        match axis.as_slice() {
            [Piece::Part { space, .. }] => return Some(*space),
            [] | [Piece::Fixed(_)] => return None,
            _ => {}
        }
        let mut sizes = Vec::new();
        for piece in &axis {
            let Some(size) = piece.size().as_const().and_then(|size| usize::try_from(size).ok()) else {
                let reason =
                    Reason { text: "shares an axis with a size that is not known".to_owned(), node: node.to_owned() };
                self.freeze_axis(&axis, &reason);
                return None;
            };
            sizes.push(size);
        }
        let space = self.add(sizes.iter().product());
        let digits = self.digits(space, &sizes, None, node);
        for (piece, digit) in axis.iter().zip(digits) {
            match piece {
                Piece::Part { space, .. } => self.unite_spaces(digit, *space),
                Piece::Fixed(size) => {
                    let text = format!("an axis of {size} positions that stay");
                    self.freeze_space(digit, &Reason { text, node: node.to_owned() });
                }
            }
        }
        Some(space)
    }

    /// Keeps everything that an axis is made of.
    pub fn freeze_axis(&mut self, axis: &Axis, reason: &Reason) {
        for piece in axis {
            if let Piece::Part { space, .. } = piece {
                self.freeze_space(*space, reason);
            }
        }
    }

    /// Ties two axes that hold the same indices and returns the axis that stands for both.
    ///
    /// Axes of different factors are refined to common digits; where that does not come out even, both are kept.
    pub fn tie(&mut self, a: &Axis, b: &Axis, node: &str) -> Axis {
        if a == b {
            return a.clone();
        }
        let kept = |text: &str| Reason { text: text.to_owned(), node: node.to_owned() };
        let Some((a_digits, b_digits)) = refine(a, b) else {
            let reason = kept("meets an axis that never shrinks or that is divided differently");
            self.freeze_axis(a, &reason);
            self.freeze_axis(b, &reason);
            return a.clone();
        };
        let a = self.separate(&a_digits, node);
        let b = self.separate(&b_digits, node);
        let mut tied = Axis::new();
        for (a, b) in a.iter().zip(&b) {
            match (a.first(), b.first()) {
                (Some(Piece::Part { space: a, .. }), Some(Piece::Part { space: b, .. })) => self.unite_spaces(*a, *b),
                (Some(Piece::Part { space, .. }), _) | (_, Some(Piece::Part { space, .. })) => {
                    self.freeze_space(*space, &kept("meets an axis of positions that stay"));
                }
                _ => {}
            }
            if let Some(piece) = a.first().or(b.first()) {
                push_piece(&mut tied, piece.clone());
            }
        }
        tied
    }
}

/// Both axes cut into digits of the same sizes, one digit an axis.
fn refine(a: &Axis, b: &Axis) -> Option<(Vec<Axis>, Vec<Axis>)> {
    let mut left: std::collections::VecDeque<Piece> = a.iter().cloned().collect();
    let mut right: std::collections::VecDeque<Piece> = b.iter().cloned().collect();
    let (mut a_digits, mut b_digits) = (Vec::new(), Vec::new());
    loop {
        match (left.pop_front(), right.pop_front()) {
            (None, None) => return Some((a_digits, b_digits)),
            (Some(x), Some(y)) => {
                let (x, y) = if x.size() == y.size() {
                    (x, y)
                } else if let Some((outer, inner)) = x.cut(&y.size()) {
                    left.push_front(inner);
                    (outer, y)
                } else if let Some((outer, inner)) = y.cut(&x.size()) {
                    right.push_front(inner);
                    (x, outer)
                } else {
                    return None;
                };
                a_digits.push(vec![x]);
                b_digits.push(vec![y]);
            }
            (Some(Piece::Fixed(_)), None) | (None, Some(Piece::Fixed(_))) if left.is_empty() && right.is_empty() => {
                // A symbolic size that equals one; nothing to tie.
                return Some((a_digits, b_digits));
            }
            _ => return None,
        }
    }
}

/// Axes that an operator makes larger than its inputs (by repetition or padding) are not divided into indices beyond
/// this size: a file can claim any size in a few bytes.
const NEW_AXIS_LIMIT: usize = 1 << 20;

/// The size of an axis that may be made of new indices: static, more than one, and not larger than any network's.
pub fn new_axis_size(size: &Dim) -> Option<usize> {
    usize::try_from(size.as_const()?).ok().filter(|size| (2..=NEW_AXIS_LIMIT).contains(size))
}

/// The size of an axis when all its pieces are static.
pub fn axis_size(axis: &Axis) -> Option<usize> {
    let size = crate::dim::product(axis.iter().map(Piece::size).collect::<Vec<Dim>>().iter());
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
        let cut = vec![Piece::Part { space: channels, inner: 4, extent: 3 }];
        let groups = spaces.outer_digit(channels, 4, "norm");
        assert!(spaces.is_outer_digit(&cut, &spaces.whole(groups)));
        let others = spaces.add(3);
        assert!(!spaces.is_outer_digit(&cut, &spaces.whole(others)));
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
