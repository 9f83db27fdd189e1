//! How the axes of a value are composed of index spaces.
//!
//! An axis is a product of pieces, outermost first. A [`Piece::Part`] is a digit of the mixed-radix index of a
//! [space](super::space): after `[B, 512, L]` is reshaped to `[B, 8, 64, L]`, axis 1 is the digit `(k / 64) % 8` and
//! axis 2 the digit `k % 64` of the same 512 indices. Because a reshape keeps digits instead of making new indices at
//! once, a group norm written as Reshape → InstanceNormalization → Reshape can lose different offsets in every group,
//! which no product of two independent axes could express.

use crate::graph::dim::Dim;

/// Index of an index space.
pub type SpaceId = usize;

/// A factor of an axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Indices that are always kept: batch, spatial positions, sequence positions, axes of unknown size.
    Fixed(Dim),
    /// The digit `(k / inner) % extent` of the index `k` of a space.
    Part {
        /// The index space.
        space: SpaceId,
        /// Number of consecutive indices that share one value of the digit.
        inner: usize,
        /// Number of values of the digit.
        extent: usize,
    },
}

impl Piece {
    /// Returns the space of which it is a digit; `None` if it never shrinks.
    pub fn space(&self) -> Option<SpaceId> {
        match self {
            Piece::Fixed(_) => None,
            Piece::Part { space, .. } => Some(*space),
        }
    }

    /// Returns the number of values.
    pub fn size(&self) -> Dim {
        match self {
            Piece::Fixed(size) => size.clone(),
            Piece::Part { extent, .. } => Dim::from(i64::try_from(*extent).unwrap_or(i64::MAX)),
        }
    }

    /// Divides the piece into an outer one of `outer` values and the inner rest; `None` if that does not come out
    /// even.
    pub fn cut(&self, outer: &Dim) -> Option<(Piece, Piece)> {
        match self {
            Piece::Fixed(size) => {
                let rest = size.div_exact(outer)?;
                Some((Piece::Fixed(outer.clone()), Piece::Fixed(rest)))
            }
            Piece::Part { space, inner, extent } => {
                let outer = usize::try_from(outer.as_const()?).ok().filter(|outer| *outer > 0)?;
                let rest = extent.is_multiple_of(outer).then(|| extent / outer)?;
                Some((
                    Piece::Part { space: *space, inner: inner * rest, extent: outer },
                    Piece::Part { space: *space, inner: *inner, extent: rest },
                ))
            }
        }
    }
}

/// The pieces of one axis, outermost first; none for an axis of size one.
pub type Axis = Vec<Piece>;

/// The pieces of every axis of a value.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Layout {
    /// One entry per axis.
    pub axes: Vec<Axis>,
}

impl Layout {
    /// Makes a layout of axes that never shrink.
    pub fn fixed(shape: &[Dim]) -> Self {
        Self { axes: shape.iter().map(fixed_axis).collect() }
    }

    /// Whether no axis can shrink.
    pub fn is_fixed(&self) -> bool {
        self.axes.iter().flatten().all(|piece| matches!(piece, Piece::Fixed(_)))
    }

    /// Returns the number of axes.
    pub fn rank(&self) -> usize {
        self.axes.len()
    }
}

/// Returns the pieces of an axis that never shrinks.
pub fn fixed_axis(size: &Dim) -> Axis {
    if size.is(1) { Vec::new() } else { vec![Piece::Fixed(size.clone())] }
}

/// Appends a piece to an axis; adjacent digits of one space are merged.
pub fn push_piece(axis: &mut Axis, piece: Piece) {
    if piece.size().is(1) {
        return;
    }
    match (axis.last_mut(), &piece) {
        (
            Some(Piece::Part { space: a, inner: outer_inner, extent: outer_extent }),
            Piece::Part { space: b, inner, extent },
        ) if a == b && *outer_inner == inner * extent => {
            *outer_extent *= extent;
            *outer_inner = *inner;
        }
        _ => axis.push(piece),
    }
}

/// Computes the axes after a reshape of `axes` to `shape`; `None` if a new border falls unevenly within a piece.
///
/// One size of the new shape may be opaque (not comparable to the pieces): it gets the pieces that its neighbours
/// leave. Several sizes may be opaque if none of the pieces between their neighbours can shrink.
pub fn reshape(axes: &[Axis], shape: &[Dim]) -> Option<Vec<Axis>> {
    let mut pieces: std::collections::VecDeque<Piece> = axes.iter().flatten().cloned().collect();
    let mut front = Vec::with_capacity(shape.len());
    let mut at = 0;
    while at < shape.len() {
        let Some(axis) = take_front(&mut pieces, &shape[at]) else {
            break;
        };
        front.push(axis);
        at += 1;
    }
    if at == shape.len() {
        return pieces.is_empty().then_some(front);
    }
    let mut back = Vec::new();
    let mut end = shape.len();
    while end > at + 1 {
        let saved = pieces.clone();
        let Some(axis) = take_back(&mut pieces, &shape[end - 1]) else {
            pieces = saved;
            break;
        };
        back.push(axis);
        end -= 1;
    }
    if end > at + 1 {
        // Several sizes could not be matched, such as a batch of 2 that an exporter froze: harmless if none of the
        // remaining pieces can shrink.
        if pieces.iter().any(|piece| matches!(piece, Piece::Part { .. })) {
            return None;
        }
        front.extend(shape[at..end].iter().map(fixed_axis));
        front.extend(back.into_iter().rev());
        return Some(front);
    }
    // The remaining pieces belong to the one size that could not be matched.
    let mut middle = Axis::new();
    for piece in pieces {
        push_piece(&mut middle, piece);
    }
    let size = crate::graph::dim::product(middle.iter().map(Piece::size).collect::<Vec<_>>().iter());
    if let (Some(a), Some(b)) = (size.as_const(), shape[at].as_const())
        && a != b
    {
        return None;
    }
    front.push(middle);
    front.extend(back.into_iter().rev());
    Some(front)
}

fn take_front(pieces: &mut std::collections::VecDeque<Piece>, size: &Dim) -> Option<Axis> {
    let saved = pieces.clone();
    let mut axis = Axis::new();
    let mut need = size.clone();
    while !need.is(1) {
        let Some(piece) = pieces.pop_front() else {
            *pieces = saved;
            return None;
        };
        if let Some(rest) = need.div_exact(&piece.size()) {
            need = rest;
            push_piece(&mut axis, piece);
        } else if let Some((outer, inner)) = piece.cut(&need) {
            push_piece(&mut axis, outer);
            pieces.push_front(inner);
            need = Dim::from(1);
        } else {
            *pieces = saved;
            return None;
        }
    }
    Some(axis)
}

fn take_back(pieces: &mut std::collections::VecDeque<Piece>, size: &Dim) -> Option<Axis> {
    let mut taken = Vec::new();
    let mut need = size.clone();
    while !need.is(1) {
        let piece = pieces.pop_back()?;
        if let Some(rest) = need.div_exact(&piece.size()) {
            need = rest;
            taken.push(piece);
        } else {
            let outer = piece.size().div_exact(&need)?;
            let (outer, inner) = piece.cut(&outer)?;
            taken.push(inner);
            pieces.push_back(outer);
            need = Dim::from(1);
        }
    }
    let mut axis = Axis::new();
    for piece in taken.into_iter().rev() {
        push_piece(&mut axis, piece);
    }
    Some(axis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(space: SpaceId, extent: usize) -> Axis {
        vec![Piece::Part { space, inner: 1, extent }]
    }

    #[test]
    fn a_group_norm_reshape_divides_the_channels_and_the_reshape_back_restores_them() {
        let (b, h, w) = (Dim::symbol("B"), Dim::symbol("H"), Dim::symbol("W"));
        let axes = vec![fixed_axis(&b), whole(0, 64), fixed_axis(&h), fixed_axis(&w)];
        let rest = &(&Dim::from(2) * &h) * &w;
        let grouped = reshape(&axes, &[b.clone(), Dim::from(32), rest]).expect("even");
        assert_eq!(grouped[1], vec![Piece::Part { space: 0, inner: 2, extent: 32 }]);
        assert_eq!(grouped[2][0], Piece::Part { space: 0, inner: 1, extent: 2 });
        let back = reshape(&grouped, &[b.clone(), Dim::from(64), h.clone(), w.clone()]).expect("even");
        assert_eq!(back, axes);
    }

    #[test]
    fn one_opaque_size_gets_the_remaining_pieces() {
        let b = Dim::symbol("B");
        let axes = vec![fixed_axis(&b), whole(0, 64), fixed_axis(&Dim::symbol("L"))];
        let reshaped = reshape(&axes, &[b, Dim::symbol("unknown"), Dim::from(8), Dim::symbol("L")]).expect("even");
        assert_eq!(reshaped[1], vec![Piece::Part { space: 0, inner: 8, extent: 8 }]);
        assert_eq!(reshaped[2], vec![Piece::Part { space: 0, inner: 1, extent: 8 }]);
    }

    #[test]
    fn uneven_borders_are_refused() {
        assert_eq!(reshape(&[whole(0, 6), whole(1, 4)], &[Dim::from(4), Dim::from(6)]), None);
    }
}
