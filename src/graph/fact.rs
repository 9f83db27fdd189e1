//! What is known of a value before inference: element type, shape, and the elements of small values that shape
//! arithmetic needs.

use crate::graph::dim::Dim;
use crate::onnx::DataType;

/// The elements of a value that are known before inference.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// Integers or booleans (0 and 1) in row-major order, possibly symbolic.
    Ints(Vec<Dim>),
    /// Floats in row-major order.
    Floats(Vec<f64>),
}

impl Known {
    /// Returns the integers. `None`: the elements are floats.
    pub fn ints(&self) -> Option<&[Dim]> {
        match self {
            Known::Ints(values) => Some(values),
            Known::Floats(_) => None,
        }
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        match self {
            Known::Ints(values) => values.len(),
            Known::Floats(values) => values.len(),
        }
    }

    /// Returns the number of elements. A symbolic element counts once for every part of its expression.
    fn parts(&self) -> usize {
        match self {
            Known::Ints(values) => values.iter().map(Dim::parts).sum(),
            Known::Floats(values) => values.len(),
        }
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Constant propagation does not track values with more elements than this.
pub const KNOWN_LIMIT: usize = 65_536;

/// Maximum total number of elements of all larger known values, so that a file of many small nodes can't exhaust the
/// memory.
pub const KNOWN_TOTAL: usize = 1 << 22;

/// What is known of one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// Element type.
    pub dtype: DataType,
    /// Sizes, outermost first. `None`: not even the rank is known.
    pub shape: Option<Vec<Dim>>,
    /// The elements, if they are known and shape arithmetic may need them.
    pub known: Option<Known>,
}

impl Fact {
    /// Returns a fact with known type and shape.
    pub fn new(dtype: DataType, shape: Vec<Dim>) -> Self {
        Self { dtype, shape: Some(shape), known: None }
    }

    /// Returns a fact with known type and unknown rank.
    pub fn unranked(dtype: DataType) -> Self {
        Self { dtype, shape: None, known: None }
    }

    /// Returns the fact of an int64 vector, the form that shape arithmetic uses.
    pub fn int_vector(values: Vec<Dim>) -> Self {
        let shape = vec![Dim::from(i64::try_from(values.len()).unwrap_or(i64::MAX))];
        Self { dtype: DataType::Int64, shape: Some(shape), known: Some(Known::Ints(values)) }
    }

    /// Returns the same fact with known elements. Drops them if there are too many or if they do not fill the shape.
    #[must_use]
    pub fn with_known(mut self, known: Option<Known>) -> Self {
        let count = self.shape.as_ref().and_then(|shape| crate::graph::dim::product(shape).as_const());
        let is_small = self.shape.as_deref().and_then(static_shape).is_some_and(|shape| is_trackable(&shape));
        let fits = |known: &Known| known.parts() <= KNOWN_LIMIT && count == i64::try_from(known.len()).ok();
        self.known = known.filter(|known| is_small && fits(known));
        self
    }

    /// Returns the rank, if it is known.
    pub fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }

    /// Returns whether the elements are floating-point numbers.
    pub fn is_float(&self) -> bool {
        is_float(self.dtype)
    }

    /// Returns the type and shape as messages print them, such as `float32[2, C, 16]`.
    pub fn describe(&self) -> String {
        let name = self.dtype.spec_name();
        match &self.shape {
            None => format!("{name}[unknown rank]"),
            Some(shape) => {
                let sizes: Vec<String> = shape.iter().map(Dim::to_string).collect();
                format!("{name}[{}]", sizes.join(", "))
            }
        }
    }
}

/// Returns whether this is a floating-point type that a weight may have.
pub fn is_float(dtype: DataType) -> bool {
    matches!(dtype, DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double)
}

/// Returns whether a value of this shape may have known elements: at most [`KNOWN_LIMIT`]. An empty value with
/// otherwise large sizes is rejected too, so that products of sizes stay small.
pub fn is_trackable(shape: &[usize]) -> bool {
    let count = shape.iter().try_fold(1usize, |count, size| count.checked_mul((*size).max(1)));
    count.is_some_and(|count| count <= KNOWN_LIMIT)
}

/// Takes the elements at `indices` along `axis` from known elements of shape `shape`.
pub fn take_along(known: &Known, shape: &[usize], axis: usize, indices: &[usize]) -> Option<Known> {
    let inner: usize = shape.get(axis + 1..)?.iter().product();
    let outer: usize = shape.get(..axis)?.iter().product();
    let size = *shape.get(axis)?;
    if !is_trackable(&[outer, indices.len(), inner]) {
        return None;
    }
    let positions = (0..outer)
        .flat_map(|o| indices.iter().flat_map(move |index| (0..inner).map(move |i| (o * size + index) * inner + i)));
    pick(known, positions)
}

/// Permutes the axes of known elements of shape `shape`. `perm[i]` is the old axis at the new position `i`.
pub fn permute(known: &Known, shape: &[usize], perm: &[usize]) -> Option<Known> {
    if !is_trackable(shape) {
        return None;
    }
    let count: usize = shape.iter().product();
    let stride = |axis: usize| -> usize { shape[axis + 1..].iter().product() };
    let sizes: Vec<usize> = perm.iter().map(|axis| shape.get(*axis).copied()).collect::<Option<_>>()?;
    let positions = (0..count).map(|mut at| {
        let mut position = 0;
        for (new, axis) in perm.iter().enumerate().rev() {
            position += (at % sizes[new]) * stride(*axis);
            at /= sizes[new];
        }
        position
    });
    pick(known, positions)
}

/// Broadcasts known elements of shape `from` to shape `to`. Returns `None` if `from` does not broadcast to `to`.
pub fn broadcast_to(known: &Known, from: &[usize], to: &[usize]) -> Option<Known> {
    let missing = to.len().checked_sub(from.len())?;
    if !is_trackable(to) {
        return None;
    }
    if from.iter().zip(&to[missing..]).any(|(size, wanted)| size != wanted && *size != 1) {
        return None;
    }
    let positions = (0..to.iter().product()).map(|mut at| {
        let (mut position, mut stride) = (0, 1);
        for (axis, size) in to.iter().enumerate().rev() {
            if let Some(own) = axis.checked_sub(missing).map(|axis| from[axis]) {
                position += (at % size).min(own - 1) * stride;
                stride *= own;
            }
            at /= size;
        }
        position
    });
    pick(known, positions)
}

/// Returns, for every element of a reduction over `axes`, the positions of the elements of shape `shape` that it
/// combines.
pub fn reduced_positions(shape: &[usize], axes: &[usize]) -> Vec<Vec<usize>> {
    let kept: usize = (0..shape.len()).filter(|axis| !axes.contains(axis)).map(|axis| shape[axis]).product();
    let mut places = vec![Vec::new(); kept];
    for at in 0..shape.iter().product() {
        let (mut rest, mut place, mut stride) = (at, 0, 1);
        for (axis, size) in shape.iter().enumerate().rev() {
            if !axes.contains(&axis) {
                place += (rest % size) * stride;
                stride *= size;
            }
            rest /= size;
        }
        places[place].push(at);
    }
    places
}

fn pick(known: &Known, mut positions: impl Iterator<Item = usize>) -> Option<Known> {
    match known {
        Known::Ints(values) => {
            positions.by_ref().map(|at| values.get(at).cloned()).collect::<Option<_>>().map(Known::Ints)
        }
        Known::Floats(values) => positions.map(|at| values.get(at).copied()).collect::<Option<_>>().map(Known::Floats),
    }
}

/// Returns the sizes of a shape as numbers, if none is symbolic.
pub fn static_shape(shape: &[Dim]) -> Option<Vec<usize>> {
    shape.iter().map(|size| usize::try_from(size.as_const()?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_elements_are_broadcast_and_reduced() {
        let known = Known::Floats(vec![1.0, 2.0]);
        let rows = broadcast_to(&known, &[2, 1], &[2, 3]);
        assert_eq!(rows, Some(Known::Floats(vec![1.0, 1.0, 1.0, 2.0, 2.0, 2.0])));
        let columns = broadcast_to(&known, &[2], &[3, 2]);
        assert_eq!(columns, Some(Known::Floats([1.0, 2.0].repeat(3))));
        assert_eq!(broadcast_to(&known, &[2], &[2, 3]), None);
        assert_eq!(reduced_positions(&[2, 3], &[0]), [[0, 3], [1, 4], [2, 5]]);
        assert_eq!(reduced_positions(&[2, 3], &[0, 1]), [[0, 1, 2, 3, 4, 5]]);
    }

    #[test]
    fn large_values_and_empty_values_with_large_sizes_are_not_tracked() {
        let known = Known::Floats(vec![1.0; 60_000]);
        assert_eq!(take_along(&known, &[1, 60_000], 0, &[0; 60_000]), None);
        assert_eq!(broadcast_to(&known, &[60_000, 1], &[60_000, 60_000]), None);
        let empty = |shape: &[i64]| {
            let shape = shape.iter().copied().map(Dim::from).collect();
            Fact::new(DataType::Int64, shape).with_known(Some(Known::Ints(Vec::new()))).known.is_some()
        };
        assert!(empty(&[0]) && empty(&[0, 4]));
        assert!(!empty(&[1 << 40, 0, 1 << 40]));
    }

    #[test]
    fn known_elements_are_taken_and_permuted_in_row_major_order() {
        let known = Known::Floats((0..6).map(f64::from).collect());
        let taken = take_along(&known, &[2, 3], 1, &[2, 0]);
        assert_eq!(taken, Some(Known::Floats(vec![2.0, 0.0, 5.0, 3.0])));
        let flipped = permute(&known, &[2, 3], &[1, 0]);
        assert_eq!(flipped, Some(Known::Floats(vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0])));
    }
}
