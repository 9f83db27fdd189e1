//! Division of spaces into digits, and ties between axes composed of digits.

use std::collections::BTreeMap;

use super::{Division, LONGEST_AXIS, Reason, Shrinks, Spaces};
use crate::operator::couple::layout::{Axis, Piece, SpaceId, push_piece};

impl Spaces {
    /// Returns the space of the outermost digit of a division into blocks of `block` indices. It does not divide the
    /// blocks.
    pub fn outer_digit(&mut self, space: SpaceId, block: usize, node: &str) -> SpaceId {
        let len = self.spaces[space].len;
        if block == 1 {
            return space;
        }
        let key = (space, vec![len / block, block]);
        if let Some(Some(outer)) = self.divisions.get(&key).map(|division| division.digits[0]) {
            return outer;
        }
        let outer = self.add(len / block);
        let division = self.divisions.entry(key).or_insert_with_key(|(space, sizes)| Division {
            space: *space,
            sizes: sizes.clone(),
            digits: vec![None; sizes.len()],
            shrinks: Shrinks::Any,
            node: node.to_owned(),
        });
        division.digits[0] = Some(outer);
        outer
    }

    /// Whether `axis` is the outermost digit of a division and `digit` the space that [`Spaces::outer_digit`] returned
    /// for it.
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
            && self
                .divisions
                .get(&(*space, vec![*extent, *inner]))
                .is_some_and(|division| division.digits[0] == Some(*other))
    }

    /// Returns the spaces of all digits of a division into `sizes` (outermost first; every size is above one, their
    /// product is the size of the space). A digit may shrink if every operator that divides the space in this way
    /// allows it.
    pub fn digits(&mut self, space: SpaceId, sizes: &[usize], shrinks: Shrinks, node: &str) -> Vec<SpaceId> {
        if sizes.len() == 1 {
            if shrinks == Shrinks::Nothing {
                let text = format!("the axis holds {} values of the only index that could be removed", sizes[0]);
                self.freeze_space(space, &Reason { text, node: node.to_owned() });
            }
            return vec![space];
        }
        let key = (space, sizes.to_vec());
        let known =
            self.divisions.get(&key).map_or_else(|| vec![None; sizes.len()], |division| division.digits.clone());
        let digits: Vec<SpaceId> =
            known.iter().zip(sizes).map(|(digit, size)| digit.unwrap_or_else(|| self.add(*size))).collect();
        let division = self.divisions.entry(key).or_insert_with_key(|(space, sizes)| Division {
            space: *space,
            sizes: sizes.clone(),
            digits: Vec::new(),
            shrinks,
            node: node.to_owned(),
        });
        division.digits = digits.iter().copied().map(Some).collect();
        division.shrinks = division.shrinks.and(shrinks);
        digits
    }

    /// Replaces every digit that is not a whole space by a space of its own.
    ///
    /// All digits of one space that occur in `axes` get one common division, so that `[3, heads, 64]` is one decision.
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
            let digits = self.digits(space, &sizes, Shrinks::Any, node);
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

    /// Whether the digits of every divided space are adjacent and complete, as right after a reshape.
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

    /// Returns one whole space for an axis of several pieces; `None` for an axis that never shrinks. Pieces that never
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
                let reason = Reason {
                    text: "the axis is a product with a size that is not known".to_owned(),
                    node: node.to_owned(),
                };
                self.freeze_axis(&axis, &reason);
                return None;
            };
            sizes.push(size);
        }
        let whole = sizes.iter().try_fold(1usize, |whole, size| whole.checked_mul(*size));
        let Some(whole) = whole.filter(|whole| *whole <= LONGEST_AXIS) else {
            let reason = Reason {
                text: "the axis is a product that is too long to be divided".to_owned(),
                node: node.to_owned(),
            };
            self.freeze_axis(&axis, &reason);
            return None;
        };
        let space = self.add(whole);
        let digits = self.digits(space, &sizes, Shrinks::Any, node);
        for (piece, digit) in axis.iter().zip(digits) {
            match piece {
                Piece::Part { space, .. } => self.unite_spaces(digit, *space),
                Piece::Fixed(size) => {
                    let text = format!("this part of the axis has {size} positions, all of which are kept");
                    self.freeze_space(digit, &Reason { text, node: node.to_owned() });
                }
            }
        }
        Some(space)
    }

    /// Ties two axes that hold the same indices and returns the axis that stands for both. `stays` is the reason for
    /// indices that are kept because the other axis never shrinks.
    ///
    /// Axes of different factors are refined to common digits; if that does not come out even, both are kept.
    pub fn tie(&mut self, a: &Axis, b: &Axis, stays: &Reason) -> Axis {
        if a == b {
            return a.clone();
        }
        let node = stays.node.as_str();
        let Some((a_digits, b_digits)) = refine(a, b) else {
            let text = "the node combines the axis with one of fixed size or with other divisions".to_owned();
            let reason = Reason { text, node: node.to_owned() };
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
                    self.freeze_space(*space, stays);
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

/// Divides both axes into digits of the same sizes, one digit per axis; `None` if they do not come out even.
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
                // A symbolic size that equals one: there is nothing to tie.
                return Some((a_digits, b_digits));
            }
            _ => return None,
        }
    }
}
