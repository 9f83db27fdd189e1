//! Grids of indices: integers of which each says where it lies along one axis.
//!
//! Exporters write `x[:, 2:5] = v` as a ScatterND whose indices are such grids, one for every axis, expanded against each
//! other and joined along a last axis. A grid tells the places without the sizes of the other axes, which may be symbols.

use crate::graph::Node;
use crate::graph::ValueId;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known, static_shape};
use crate::graph::facts::Facts;
use crate::operator::couple::space::LONGEST_AXIS;

/// Places along an axis, in the order in which they stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Places {
    /// `start`, `start + step`, and so on; the number of them may be a symbol.
    Run {
        /// The first.
        start: i64,
        /// From one to the next.
        step: i64,
        /// How many.
        count: Dim,
    },
    /// These.
    List(Vec<i64>),
}

impl Places {
    /// Whether they are all of an axis of `size` indices, in their order.
    pub fn is_whole(&self, size: &Dim) -> bool {
        match self {
            Self::Run { start, step, count } => *start == 0 && (*step == 1 || count.is(1)) && count == size,
            Self::List(places) => size.is(places.len() as i64) && places.iter().copied().eq(0..places.len() as i64),
        }
    }

    /// All of them; `None` where their number is not known.
    pub fn list(&self) -> Option<Vec<i64>> {
        match self {
            Self::Run { start, step, count } => {
                let count =
                    count.as_const().filter(|count| (0..=crate::graph::fact::KNOWN_LIMIT as i64).contains(count))?;
                Some((0..count).map(|at| start.saturating_add(at.saturating_mul(*step))).collect())
            }
            Self::List(places) => Some(places.clone()),
        }
    }

    /// Distinct places of an axis of `size` indices, counted from its front; `None` where they are not all of that.
    pub fn distinct(&self, size: usize) -> Option<Vec<usize>> {
        if size > LONGEST_AXIS {
            return None;
        }
        let from_front = |place: i64| usize::try_from(if place < 0 { place + size as i64 } else { place }).ok();
        let places: Vec<usize> = self.list()?.into_iter().map(from_front).collect::<Option<_>>()?;
        let mut is_taken = vec![false; size];
        for place in &places {
            if std::mem::replace(is_taken.get_mut(*place)?, true) {
                return None;
            }
        }
        Some(places)
    }
}

/// Integers that differ along one axis at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The axis along which they differ; none where all are one.
    pub axis: Option<usize>,
    /// What stands along it.
    pub places: Places,
}

impl Column {
    /// What elements of this shape, in their order, are; `None` where they differ along several axes.
    fn of(elements: &[i64], shape: &[usize]) -> Option<Self> {
        let first = *elements.first()?;
        let varies = |axis: usize| {
            let inner: usize = shape[axis + 1..].iter().product();
            elements
                .iter()
                .enumerate()
                .any(|(at, element)| !(at / inner).is_multiple_of(shape[axis]) && *element != elements[at - inner])
        };
        let mut axes = (0..shape.len()).filter(|axis| shape[*axis] > 1 && varies(*axis));
        let (axis, None) = (axes.next(), axes.next()) else { return None };
        let places = match axis {
            None => vec![first],
            Some(axis) => {
                let inner: usize = shape[axis + 1..].iter().product();
                (0..shape[axis]).map(|at| elements[at * inner]).collect()
            }
        };
        Some(Self { axis, places: Places::List(places) })
    }
}

/// Known integers of a fact with known sizes.
fn elements(fact: &Fact) -> Option<(Vec<i64>, Vec<usize>)> {
    let shape = static_shape(fact.shape.as_ref()?)?;
    let known = fact.known.as_ref().and_then(Known::ints)?;
    Some((known.iter().map(Dim::as_const).collect::<Option<_>>()?, shape))
}

/// What is known of index tuples: one column for every entry of the last axis, or one where the value is no tuple.
pub type Grid = Vec<Column>;

/// The grids of all values so far.
pub type Grids = Vec<Option<Grid>>;

/// The columns of the tuples along the last axis of a value.
pub fn tuples(grids: &Grids, facts: &Facts, value: ValueId) -> Option<Grid> {
    if let Some(grid) = grids.get(value)? {
        return Some(grid.clone());
    }
    let (elements, mut shape) = elements(facts.values[value].as_ref()?)?;
    let length = shape.pop()?;
    let column = |at: usize| {
        let own: Vec<i64> = elements.iter().skip(at).step_by(length).copied().collect();
        Column::of(&own, &shape)
    };
    (0..length).map(column).collect()
}

/// The one column of a value.
pub fn column(grids: &Grids, facts: &Facts, value: ValueId) -> Option<Column> {
    if let Some([column]) = grids.get(value)?.as_deref() {
        return Some(column.clone());
    }
    let (elements, shape) = elements(facts.values[value].as_ref()?)?;
    Column::of(&elements, &shape)
}

/// What an operator may ask that passes on a grid.
pub struct GridCx<'a> {
    pub(crate) node: &'a Node,
    pub(crate) facts: &'a Facts,
    pub(crate) grids: &'a Grids,
}

impl GridCx<'_> {
    /// The one column of input `slot`.
    pub fn column(&self, slot: usize) -> Option<Column> {
        column(self.grids, self.facts, self.node.input(slot)?)
    }

    /// The fact of input `slot`.
    pub fn fact(&self, slot: usize) -> Option<&Fact> {
        self.facts.values[self.node.input(slot)?].as_ref()
    }

    /// The shape of input `slot`.
    pub fn shape(&self, slot: usize) -> Option<&[Dim]> {
        self.fact(slot)?.shape.as_deref()
    }

    /// The shape of output 0.
    pub fn output_shape(&self) -> Option<&[Dim]> {
        self.facts.values[self.node.output(0)?].as_ref()?.shape.as_deref()
    }

    /// The known integers of input `slot`.
    pub fn ints(&self, slot: usize) -> Option<&[Dim]> {
        self.fact(slot)?.known.as_ref().and_then(Known::ints)
    }

    /// The column of input 0 where only axes of size one come or go between it and output 0.
    pub fn reshaped(&self) -> Option<Grid> {
        let column = self.column(0)?;
        let long = |shape: &[Dim]| -> Vec<usize> { (0..shape.len()).filter(|axis| !shape[*axis].is(1)).collect() };
        let (old, new) = (self.shape(0)?, self.output_shape()?);
        let (from, to) = (long(old), long(new));
        let is_same = from.len() == to.len() && from.iter().zip(&to).all(|(a, b)| old[*a] == new[*b]);
        let axis = match column.axis {
            Some(axis) => Some(*to.get(from.iter().position(|from| *from == axis)?)?),
            None => None,
        };
        is_same.then(|| vec![Column { axis, ..column }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_that_differ_along_one_axis_are_a_column() {
        let column = Column::of(&[3, 3, 5, 5], &[1, 2, 2]).expect("along axis 1");
        assert_eq!((column.axis, column.places), (Some(1), Places::List(vec![3, 5])));
        assert_eq!(Column::of(&[4, 4], &[2, 1]).expect("one value").axis, None);
        assert_eq!(Column::of(&[0, 1, 1, 2], &[2, 2]), None);
        assert_eq!(Column::of(&[], &[0, 2]), None);
    }

    #[test]
    fn places_are_told_without_their_number() {
        let size = Dim::symbol("N");
        let run = |start, count: &Dim| Places::Run { start, step: 1, count: count.clone() };
        assert!(run(0, &size).is_whole(&size) && !run(1, &size).is_whole(&size));
        assert_eq!(run(0, &size).list(), None);
        assert_eq!(run(2, &Dim::from(3)).distinct(5), Some(vec![2, 3, 4]));
        assert_eq!(run(3, &Dim::from(3)).distinct(5), None);
        assert_eq!(Places::List(vec![-1, 0]).distinct(3), Some(vec![2, 0]));
        assert_eq!(Places::List(vec![-1, 2]).distinct(3), None);
    }
}
