//! Grids of indices: integer tensors whose elements depend on their position along one axis only.
//!
//! Exporters write `x[:, 2:5] = v` as a ScatterND whose indices are such grids, one for every axis, expanded against
//! each other and joined along a last axis. A grid states the written positions without the sizes of the other axes,
//! which may be symbols.

use crate::graph::Node;
use crate::graph::ValueId;
use crate::graph::dim::Dim;
use crate::graph::fact::{Fact, Known, static_shape};
use crate::graph::facts::Facts;
use crate::operator::couple::space::LONGEST_AXIS;

/// Positions along an axis, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Positions {
    /// `start`, `start + step`, and so on; their number may be a symbol.
    Run {
        /// The first position.
        start: i64,
        /// The step from one position to the next.
        step: i64,
        /// The number of positions.
        count: Dim,
    },
    /// A list of positions.
    List(Vec<i64>),
}

impl Positions {
    /// Whether they are all positions of an axis of `size` indices, in ascending order.
    pub fn is_whole(&self, size: &Dim) -> bool {
        match self {
            Self::Run { start, step, count } => *start == 0 && (*step == 1 || count.is(1)) && count == size,
            Self::List(positions) => {
                size.is(positions.len() as i64) && positions.iter().copied().eq(0..positions.len() as i64)
            }
        }
    }

    /// Lists all positions; `None` if their number is not known.
    pub fn list(&self) -> Option<Vec<i64>> {
        match self {
            Self::Run { start, step, count } => {
                let count =
                    count.as_const().filter(|count| (0..=crate::graph::fact::KNOWN_LIMIT as i64).contains(count))?;
                Some((0..count).map(|at| start.saturating_add(at.saturating_mul(*step))).collect())
            }
            Self::List(positions) => Some(positions.clone()),
        }
    }

    /// Lists distinct positions of an axis of `size` indices, counted from the front; `None` if one repeats, lies
    /// outside the axis or is not known.
    pub fn distinct(&self, size: usize) -> Option<Vec<usize>> {
        if size > LONGEST_AXIS {
            return None;
        }
        let from_front =
            |position: i64| usize::try_from(if position < 0 { position + size as i64 } else { position }).ok();
        let positions: Vec<usize> = self.list()?.into_iter().map(from_front).collect::<Option<_>>()?;
        let mut is_taken = vec![false; size];
        for position in &positions {
            if std::mem::replace(is_taken.get_mut(*position)?, true) {
                return None;
            }
        }
        Some(positions)
    }
}

/// Integers that differ along at most one axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The axis along which they differ; `None` if all are equal.
    pub axis: Option<usize>,
    /// The integers along that axis.
    pub positions: Positions,
}

impl Column {
    /// Reads elements of this shape, in row-major order, as a column; `None` if they differ along several axes.
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
        let positions = match axis {
            None => vec![first],
            Some(axis) => {
                let inner: usize = shape[axis + 1..].iter().product();
                (0..shape[axis]).map(|at| elements[at * inner]).collect()
            }
        };
        Some(Self { axis, positions: Positions::List(positions) })
    }
}

/// Returns the known integers of a fact, and its sizes, if all are numbers.
fn elements(fact: &Fact) -> Option<(Vec<i64>, Vec<usize>)> {
    let shape = static_shape(fact.shape.as_ref()?)?;
    let known = fact.known.as_ref().and_then(Known::ints)?;
    Some((known.iter().map(Dim::as_const).collect::<Option<_>>()?, shape))
}

/// What is known of index tuples: one column for every entry of the last axis, or a single column if the value holds
/// no tuples.
pub type Grid = Vec<Column>;

/// The grids of all values so far.
pub type Grids = Vec<Option<Grid>>;

/// Returns the columns of the tuples along the last axis of a value.
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

/// Returns the single column of a value.
pub fn column(grids: &Grids, facts: &Facts, value: ValueId) -> Option<Column> {
    if let Some([column]) = grids.get(value)?.as_deref() {
        return Some(column.clone());
    }
    let (elements, shape) = elements(facts.values[value].as_ref()?)?;
    Column::of(&elements, &shape)
}

/// The interface of an operator that passes on a grid.
pub struct GridCx<'a> {
    pub(crate) node: &'a Node,
    pub(crate) facts: &'a Facts,
    pub(crate) grids: &'a Grids,
}

impl GridCx<'_> {
    /// Returns the single column of input `slot`.
    pub fn column(&self, slot: usize) -> Option<Column> {
        column(self.grids, self.facts, self.node.input(slot)?)
    }

    /// Returns the fact of input `slot`.
    pub fn fact(&self, slot: usize) -> Option<&Fact> {
        self.facts.values[self.node.input(slot)?].as_ref()
    }

    /// Returns the shape of input `slot`.
    pub fn shape(&self, slot: usize) -> Option<&[Dim]> {
        self.fact(slot)?.shape.as_deref()
    }

    /// Returns the shape of output 0.
    pub fn output_shape(&self) -> Option<&[Dim]> {
        self.facts.values[self.node.output(0)?].as_ref()?.shape.as_deref()
    }

    /// Returns the known integers of input `slot`.
    pub fn ints(&self, slot: usize) -> Option<&[Dim]> {
        self.fact(slot)?.known.as_ref().and_then(Known::ints)
    }

    /// Returns the column of input 0 if only axes of size one are added or removed between it and output 0.
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
        assert_eq!((column.axis, column.positions), (Some(1), Positions::List(vec![3, 5])));
        assert_eq!(Column::of(&[4, 4], &[2, 1]).expect("one value").axis, None);
        assert_eq!(Column::of(&[0, 1, 1, 2], &[2, 2]), None);
        assert_eq!(Column::of(&[], &[0, 2]), None);
    }

    #[test]
    fn a_run_is_compared_and_listed_even_if_its_length_is_a_symbol() {
        let size = Dim::symbol("N");
        let run = |start, count: &Dim| Positions::Run { start, step: 1, count: count.clone() };
        assert!(run(0, &size).is_whole(&size) && !run(1, &size).is_whole(&size));
        assert_eq!(run(0, &size).list(), None);
        assert_eq!(run(2, &Dim::from(3)).distinct(5), Some(vec![2, 3, 4]));
        assert_eq!(run(3, &Dim::from(3)).distinct(5), None);
        assert_eq!(Positions::List(vec![-1, 0]).distinct(3), Some(vec![2, 0]));
        assert_eq!(Positions::List(vec![-1, 2]).distinct(3), None);
    }
}
