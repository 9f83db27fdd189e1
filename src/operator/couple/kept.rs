//! Which indices of every index space a selection keeps, and the sizes that follow.

use std::collections::BTreeMap;

use crate::graph::dim::Dim;
use crate::operator::couple::layout::{Axis, Layout, Piece, SpaceId};
use crate::operator::couple::space::{self, Spaces};

/// Kept indices by axis; axes that are kept whole are absent.
pub type Slices = BTreeMap<usize, Vec<usize>>;

/// Which indices of every space are kept.
#[derive(Clone, Debug)]
pub struct Kept {
    alive: Vec<Vec<bool>>,
}

impl Kept {
    /// Keeps everything but the classes for which `removed` holds; classes are representative elements of
    /// [`Spaces::classes`].
    pub fn without(spaces: &Spaces, classes: &[u32], removed: &dyn Fn(u32) -> bool) -> Self {
        let alive = spaces
            .all()
            .iter()
            .map(|space| classes[space.start..space.start + space.len].iter().map(|class| !removed(*class)).collect());
        Self { alive: alive.collect() }
    }

    /// Keeps what both keep.
    #[must_use]
    pub fn and(&self, other: &Kept) -> Self {
        let both = |(a, b): (&Vec<bool>, &Vec<bool>)| a.iter().zip(b).map(|(a, b)| *a && *b).collect();
        Self { alive: self.alive.iter().zip(&other.alive).map(both).collect() }
    }

    /// Returns for every index of a space whether it is kept.
    pub fn of_space(&self, space: SpaceId) -> &[bool] {
        &self.alive[space]
    }

    /// Returns the kept indices of a space in ascending order; `None` if all are kept.
    pub fn indices(&self, space: SpaceId) -> Option<Vec<usize>> {
        let alive = &self.alive[space];
        if alive.iter().all(|alive| *alive) {
            return None;
        }
        Some(alive.iter().enumerate().filter(|(_, alive)| **alive).map(|(at, _)| at).collect())
    }

    /// Counts the values of `k / inner` over the kept indices `k`.
    fn distinct(&self, space: SpaceId, inner: usize) -> usize {
        self.alive[space].chunks(inner).filter(|chunk| chunk.iter().any(|alive| *alive)).count()
    }

    /// Returns the size of a piece after the cut. The size of a digit is the number of its kept values for each kept
    /// value of the digits outside it: blocks that lose different indices, but equally many, give the correct size.
    pub fn piece_size(&self, piece: &Piece) -> Dim {
        match piece {
            Piece::Fixed(size) => size.clone(),
            Piece::Part { space, inner, extent } => {
                let outside = self.distinct(*space, inner * extent);
                let with = self.distinct(*space, *inner);
                Dim::from(i64::try_from(with.checked_div(outside).unwrap_or(0)).unwrap_or(i64::MAX))
            }
        }
    }

    /// Whether every digit of a value's axes keeps equally many values in every block that keeps any, so that
    /// [`Kept::piece_size`] is its size.
    pub fn is_even(&self, layout: &Layout) -> bool {
        layout.axes.iter().flatten().all(|piece| match piece {
            Piece::Fixed(_) => true,
            Piece::Part { space, inner, extent } => {
                let left = |block: &[bool]| block.chunks(*inner).filter(|chunk| chunk.contains(&true)).count();
                let mut sizes = self.alive[*space].chunks(inner * extent).map(left).filter(|left| *left > 0);
                let first = sizes.next();
                sizes.all(|size| Some(size) == first)
            }
        })
    }

    /// Returns the size of an axis after the cut.
    pub fn axis_size(&self, axis: &Axis) -> Dim {
        axis.iter().fold(Dim::from(1), |size, piece| &size * &self.piece_size(piece))
    }

    /// Whether an axis loses indices.
    pub fn shrinks(&self, axis: &Axis) -> bool {
        axis.iter().any(|piece| match piece {
            Piece::Fixed(_) => false,
            Piece::Part { space, .. } => self.alive[*space].iter().any(|alive| !alive),
        })
    }

    /// Returns the kept indices of an axis in ascending order; `None` if it loses nothing or its size is not static.
    pub fn axis_indices(&self, axis: &Axis) -> Option<Vec<usize>> {
        if !self.shrinks(axis) || space::axis_size(axis)? > space::LONGEST_AXIS {
            return None;
        }
        let mut alive = vec![true];
        for piece in axis {
            let digit: Vec<bool> = match piece {
                Piece::Fixed(size) => vec![true; usize::try_from(size.as_const()?).ok()?],
                Piece::Part { space, inner, extent } => {
                    let mut digit = vec![false; *extent];
                    for (k, alive) in self.alive[*space].iter().enumerate() {
                        digit[(k / inner) % extent] |= alive;
                    }
                    digit
                }
            };
            alive = alive.iter().flat_map(|outer| digit.iter().map(move |inner| *outer && *inner)).collect();
        }
        Some(alive.iter().enumerate().filter(|(_, alive)| **alive).map(|(at, _)| at).collect())
    }

    /// Returns the sizes of a value after the cut.
    pub fn shape(&self, layout: &Layout) -> Vec<Dim> {
        layout.axes.iter().map(|axis| self.axis_size(axis)).collect()
    }
}
