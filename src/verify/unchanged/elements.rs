//! The elements of a constant of the pruned file, compared with the kept elements of the original's.

use crate::error::Error;
use crate::graph::model::Model;
use crate::onnx::floats::Floats;
use crate::onnx::{DataType, TensorProto};
use crate::operator::reference::KeptAxes;

/// Maximum difference of weights that the graph computes, relative to the largest element. Another CPU computes them in
/// another order.
const COMPUTED: f64 = 1e-5;

/// The result of a comparison.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// The elements are the same.
    Same,
    /// A difference, in words.
    Differs(String),
    /// The element type has no size in bytes.
    Unknown,
}

/// Compares `found` with the indices of `expected` that `axes` keeps. A `computed` constant may differ by rounding.
///
/// # Errors
/// A tensor can't be read.
pub(super) fn difference(
    (model, expected): (&Model, &TensorProto),
    axes: &KeptAxes,
    (pruned, found): (&Model, &TensorProto),
    computed: bool,
) -> Result<Comparison, Error> {
    if expected.data_type != found.data_type {
        let (expected, found) = (expected.element_type().spec_name(), found.element_type().spec_name());
        return Ok(Comparison::Differs(format!("expected elements of {expected}, found {found}")));
    }
    let size = |(axis, size): (usize, &i64)| axes.get(&axis).map_or(*size, |kept| kept.len() as i64);
    let dims: Vec<i64> = expected.dims.iter().enumerate().map(size).collect();
    if dims != found.dims {
        return Ok(Comparison::Differs(format!("expected shape {dims:?}, found {:?}", found.dims)));
    }
    let dtype = expected.element_type();
    if dtype == DataType::String {
        let is_same = axes.is_empty() && expected.string_data == found.string_data;
        return Ok(if is_same { Comparison::Same } else { Comparison::Differs("its strings differ".to_owned()) });
    }
    let (expected_bytes, found_bytes) = (model.tensor_bytes(expected)?, pruned.tensor_bytes(found)?);
    if axes.is_empty() && expected_bytes == found_bytes {
        return Ok(Comparison::Same);
    }
    let Some(element) = dtype.byte_size() else {
        let text = "its bytes differ".to_owned();
        return Ok(if axes.is_empty() { Comparison::Differs(text) } else { Comparison::Unknown });
    };
    let sizes: Vec<usize> = expected.dims.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
    let Some(places) = Places::new(&sizes, axes, element) else {
        return Ok(Comparison::Differs("the plan names an axis or an index that does not exist".to_owned()));
    };
    if places.whole() != expected_bytes.len() || places.kept(0) != found_bytes.len() {
        return Ok(Comparison::Differs("the number of its bytes does not match its shape".to_owned()));
    }
    let tolerance = if computed { COMPUTED * largest(dtype, &expected_bytes) } else { 0.0 };
    let differs = |a: &[u8], b: &[u8]| {
        let (Some(a), Some(b)) = (Floats::of(dtype, a), Floats::of(dtype, b)) else { return true };
        tolerance == 0.0 || a.to_f64().iter().zip(b.to_f64()).any(|(a, b)| (a - b).abs() > tolerance)
    };
    let mut at = 0;
    let first = places.first(0, 0, &mut |start, length| {
        let (a, b) = (&expected_bytes[start..start + length], &found_bytes[at..at + length]);
        let place = (a != b).then(|| a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(0) / element * element);
        let place =
            place.filter(|place| computed || differs(&a[*place..*place + element], &b[*place..*place + element]));
        let place = if computed && place.is_some() {
            (0..length).step_by(element).find(|i| differs(&a[*i..i + element], &b[*i..i + element]))
        } else {
            place
        };
        let result = place.map(|place| (start + place, at + place));
        at += length;
        result
    });
    let Some((expected_at, found_at)) = first else { return Ok(Comparison::Same) };
    let show = |bytes: &[u8]| match Floats::of(dtype, bytes) {
        Some(floats) => floats.to_f64().first().map(|number| format!("{number:e}")),
        None => None,
    };
    let indices = indices(found_at / element, &found.dims);
    let numbers =
        show(&expected_bytes[expected_at..expected_at + element]).zip(show(&found_bytes[found_at..found_at + element]));
    Ok(Comparison::Differs(match numbers {
        Some((expected, found)) => format!("element {indices:?}: expected {expected}, found {found}"),
        None => format!("element {indices:?} differs"),
    }))
}

fn largest(dtype: DataType, bytes: &[u8]) -> f64 {
    let numbers = Floats::of(dtype, bytes).map(Floats::to_f64).unwrap_or_default();
    numbers.iter().filter(|number| number.is_finite()).fold(0.0, |largest, number| largest.max(number.abs()))
}

fn indices(mut at: usize, dims: &[i64]) -> Vec<usize> {
    let mut indices = vec![0; dims.len()];
    for (index, size) in indices.iter_mut().zip(dims).rev() {
        let size = usize::try_from(*size).unwrap_or(1).max(1);
        *index = at % size;
        at /= size;
    }
    indices
}

/// The positions of the kept elements of a tensor.
struct Places {
    /// For every axis up to the last that lost indices: its size, and the runs of neighbouring kept indices, as first
    /// index and count.
    axes: Vec<(usize, Vec<(usize, usize)>)>,
    /// Size in bytes of the contiguous elements below those axes.
    block: usize,
}

impl Places {
    fn new(sizes: &[usize], kept: &KeptAxes, element: usize) -> Option<Self> {
        let count = kept.keys().next_back().map_or(0, |last| last + 1);
        let mut axes = Vec::new();
        for (axis, size) in sizes.get(..count)?.iter().enumerate() {
            let mut runs: Vec<(usize, usize)> = Vec::new();
            match kept.get(&axis) {
                None => runs.push((0, *size)),
                Some(indices) => {
                    for index in indices {
                        if index >= size {
                            return None;
                        }
                        match runs.last_mut() {
                            Some((start, length)) if *start + *length == *index => *length += 1,
                            _ => runs.push((*index, 1)),
                        }
                    }
                }
            }
            axes.push((*size, runs));
        }
        let block = sizes[count..].iter().try_fold(element, |bytes, size| bytes.checked_mul(*size))?;
        Some(Self { axes, block })
    }

    /// Returns the number of bytes of the tensor.
    fn whole(&self) -> usize {
        self.axes.iter().fold(self.block, |bytes, (size, _)| bytes.saturating_mul(*size))
    }

    /// Returns the number of kept bytes below one index of the axes before `axis`.
    fn kept(&self, axis: usize) -> usize {
        let counts = self.axes[axis..].iter().map(|(_, runs)| runs.iter().map(|(_, length)| length).sum::<usize>());
        counts.fold(self.block, usize::saturating_mul)
    }

    /// Calls `compare` with the start and length in bytes of every kept run in order, until it returns a result.
    fn first<T>(&self, axis: usize, start: usize, compare: &mut dyn FnMut(usize, usize) -> Option<T>) -> Option<T> {
        let Some((_, runs)) = self.axes.get(axis) else { return compare(start, self.block) };
        let stride: usize = self.axes[axis + 1..].iter().fold(self.block, |bytes, (size, _)| bytes * size);
        if axis + 1 == self.axes.len() {
            return runs.iter().find_map(|(first, length)| compare(start + first * stride, length * stride));
        }
        let indices = runs.iter().flat_map(|(first, length)| *first..first + length);
        indices.into_iter().find_map(|index| self.first(axis + 1, start + index * stride, compare))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use prost::Message;

    use super::*;
    use crate::gradient::value_info;
    use crate::load::from_bytes;
    use crate::onnx::{DataType, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};

    fn compare(expected: &TensorProto, axes: &KeptAxes, found: &TensorProto, computed: bool) -> Comparison {
        let node = NodeProto {
            op_type: "Identity".to_owned(),
            input: vec!["x".to_owned()],
            output: vec!["y".to_owned()],
            ..NodeProto::default()
        };
        let input = vec![value_info("x", DataType::Float, &[1])];
        let graph = GraphProto { node: vec![node], input, ..GraphProto::default() };
        let opset_import = vec![OperatorSetIdProto { version: 17, ..OperatorSetIdProto::default() }];
        let model = ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() };
        let model = from_bytes(Path::new("m.onnx"), model.encode_to_vec().into()).unwrap();
        difference((&model, expected), axes, (&model, found), computed).unwrap()
    }

    #[test]
    fn kept_elements_are_compared_bit_for_bit() {
        let whole = TensorProto::of_floats("w", &(0..12).map(|i| i as f32).collect::<Vec<_>>(), &[3, 2, 2]);
        let kept = KeptAxes::from([(0, vec![0, 2]), (2, vec![1])]);
        let right = TensorProto::of_floats("w", &[1.0, 3.0, 9.0, 11.0], &[2, 2, 1]);
        assert_eq!(compare(&whole, &kept, &right, false), Comparison::Same);
        assert_eq!(compare(&whole, &KeptAxes::new(), &whole, false), Comparison::Same);
        let wrong = TensorProto::of_floats("w", &[1.0, 3.0, 9.000001, 11.0], &[2, 2, 1]);
        let Comparison::Differs(text) = compare(&whole, &kept, &wrong, false) else { panic!() };
        assert!(text.contains("[1, 0, 0]"), "{text}");
        assert_eq!(compare(&whole, &kept, &wrong, true), Comparison::Same);
        let Comparison::Differs(text) = compare(&whole, &kept, &whole, false) else { panic!() };
        assert!(text.contains("expected shape [2, 2, 1]"), "{text}");
        let negative = TensorProto::of_floats("w", &[-0.0], &[1]);
        let zero = TensorProto::of_floats("w", &[0.0], &[1]);
        assert!(matches!(compare(&zero, &KeptAxes::new(), &negative, false), Comparison::Differs(_)));
    }
}
