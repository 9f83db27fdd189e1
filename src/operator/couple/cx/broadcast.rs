//! Ties between values that are broadcast against each other.

use std::collections::{BTreeMap, BTreeSet};

use super::CoupleCx;
use crate::operator::RuleError;
use crate::operator::couple::layout::{Axis, Layout, Piece, SpaceId};
use crate::operator::couple::space::Spaces;

impl CoupleCx<'_> {
    /// Ties the axes of inputs that are broadcast against each other and returns the common axes. Missing inputs are
    /// skipped.
    ///
    /// # Errors
    /// [`RuleError::UnknownShape`] if a rank is not known.
    pub fn broadcast(&mut self, slots: &[usize]) -> Result<Layout, RuleError> {
        let mut layouts = Vec::new();
        for slot in slots {
            if self.has(*slot) {
                layouts.push(self.layout(*slot)?);
            }
        }
        Ok(self.tie_broadcast(&layouts))
    }

    /// Ties the axes of layouts that are broadcast against each other and returns the common axes.
    pub fn tie_broadcast(&mut self, layouts: &[Layout]) -> Layout {
        let rank = layouts.iter().map(Layout::rank).max().unwrap_or(0);
        let mut result = Layout { axes: vec![Axis::new(); rank] };
        for layout in layouts {
            let tied = self.tie_divided_spaces(&result, layout);
            for (axis, other) in result.axes[rank - layout.rank()..].iter_mut().zip(&layout.axes) {
                if axis.is_empty() || self.coupling.spaces.is_outer_digit(other, axis) {
                    axis.clone_from(other);
                } else if self.coupling.spaces.is_outer_digit(axis, other) {
                    // A statistic per block meets its block; the cut may remain ragged.
                } else if !other.is_empty() && axis != other && !same_digits(axis, other, &tied) {
                    let reason = self.reason_to_stay(axis, other);
                    *axis = self.coupling.spaces.tie(axis, other, &reason);
                }
            }
        }
        result
    }

    /// Ties two spaces as wholes if both layouts hold the same digits of them at the same axes, so that a cut may
    /// remain ragged through elementwise operators. Returns the pairs of spaces tied.
    fn tie_divided_spaces(&mut self, a: &Layout, b: &Layout) -> BTreeSet<(SpaceId, SpaceId)> {
        let mut pairs: BTreeMap<(SpaceId, SpaceId), usize> = BTreeMap::new();
        for (x, y) in a.axes.iter().rev().zip(b.axes.iter().rev()) {
            for (x, y) in x.iter().zip(y) {
                if let (Piece::Part { space: a, inner: i, extent: m }, Piece::Part { space: b, inner: j, extent: n }) =
                    (x, y)
                    && a != b
                    && i == j
                    && m == n
                {
                    *pairs.entry((*a, *b)).or_insert(1) *= m;
                }
            }
        }
        let spaces = &mut self.coupling.spaces;
        let len = |spaces: &Spaces, space: SpaceId| spaces.all()[space].len;
        pairs.retain(|(x, y), covered| len(spaces, *x) == *covered && len(spaces, *y) == *covered);
        for (x, y) in pairs.keys() {
            spaces.unite_spaces(*x, *y);
        }
        pairs.into_keys().collect()
    }
}

/// Whether two axes are the same digits of one space, or of two spaces that have been tied as wholes.
fn same_digits(a: &Axis, b: &Axis, tied: &BTreeSet<(SpaceId, SpaceId)>) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|pair| match pair {
            (Piece::Part { space: a, inner: i, extent: m }, Piece::Part { space: b, inner: j, extent: n }) => {
                i == j && m == n && (a == b || tied.contains(&(*a, *b)))
            }
            (Piece::Fixed(a), Piece::Fixed(b)) => a == b,
            _ => false,
        })
}
