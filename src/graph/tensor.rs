//! The elements of a tensor as bytes, from whichever field of the file stores them.

use std::borrow::Cow;

use super::dim::Dim;
use super::fact::Known;
use crate::onnx::floats::Floats;
use crate::onnx::{DataType, TensorProto};

/// Returns the size of a tensor's elements in bytes. `None`: the type has no fixed size.
///
/// # Errors
/// A negative size, or a size in bytes beyond `u64`.
pub(crate) fn byte_length(tensor: &TensorProto) -> Result<Option<u64>, String> {
    let dims = &tensor.dims;
    let mut count = 1_u64;
    for size in dims {
        let size = u64::try_from(*size).map_err(|_| format!("its shape {dims:?} has the negative size {size}"))?;
        count = count.checked_mul(size).ok_or_else(|| format!("its shape {dims:?} has too many elements"))?;
    }
    let Some(bits) = tensor.element_type().bit_size() else {
        return Ok(None);
    };
    let total = count.checked_mul(bits).ok_or_else(|| format!("its shape {dims:?} has too many elements"))?;
    Ok(Some(total.div_ceil(8)))
}

/// Returns how many bytes of a tensor the model file itself stores.
pub(crate) fn stored_length(tensor: &TensorProto) -> u64 {
    if !tensor.raw_data.is_empty() {
        return tensor.raw_data.len() as u64;
    }
    let (count, bytes) = match tensor.element_type() {
        DataType::Float | DataType::Complex64 => (tensor.float_data.len(), 4),
        DataType::Double | DataType::Complex128 => (tensor.double_data.len(), 8),
        DataType::Int64 => (tensor.int64_data.len(), 8),
        DataType::Uint64 => (tensor.uint64_data.len(), 8),
        DataType::Uint32 => (tensor.uint64_data.len(), 4),
        // An entry holds one element, or one byte of packed elements.
        other => (tensor.int32_data.len(), other.byte_size().unwrap_or(1)),
    };
    count as u64 * bytes as u64
}

/// Returns the size of one element in bytes, for types that fill whole bytes.
///
/// # Errors
/// Strings, types of less than a byte, and unknown types.
pub fn element_size(tensor: &TensorProto) -> Result<usize, String> {
    let dtype = tensor.element_type();
    dtype.byte_size().ok_or_else(|| match dtype {
        DataType::Undefined => format!("element type {} is not known", tensor.data_type),
        other => format!("element type {} can't be sliced", other.spec_name()),
    })
}

/// Returns a typed field as little-endian bytes, without a copy if memory is little-endian.
fn cast<T: bytemuck::NoUninit>(values: &[T], bytes: impl Fn(&T) -> Vec<u8>) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(values.iter().flat_map(bytes).collect())
    }
}

/// Returns the elements of a tensor that is not external, little-endian and row-major.
pub(crate) fn stored_bytes(tensor: &TensorProto) -> Cow<'_, [u8]> {
    if !tensor.raw_data.is_empty() {
        return Cow::Borrowed(&tensor.raw_data);
    }
    match tensor.element_type() {
        DataType::Float | DataType::Complex64 => cast(&tensor.float_data, |value| value.to_le_bytes().to_vec()),
        DataType::Double | DataType::Complex128 => cast(&tensor.double_data, |value| value.to_le_bytes().to_vec()),
        DataType::Int64 => cast(&tensor.int64_data, |value| value.to_le_bytes().to_vec()),
        DataType::Uint64 => cast(&tensor.uint64_data, |value| value.to_le_bytes().to_vec()),
        DataType::Int32 => cast(&tensor.int32_data, |value| value.to_le_bytes().to_vec()),
        DataType::Uint32 => narrow(&tensor.uint64_data, |value| value.to_le_bytes(), 4),
        other => narrow(&tensor.int32_data, |value| value.to_le_bytes(), other.byte_size().unwrap_or(1)),
    }
}

/// Returns the low bytes of every entry: typed fields store small types as one element per entry.
fn narrow<T, const N: usize>(values: &[T], bytes: impl Fn(&T) -> [u8; N], size: usize) -> Cow<'static, [u8]> {
    let mut result = Vec::with_capacity(values.len() * size);
    for value in values {
        result.extend_from_slice(&bytes(value)[..size.min(N)]);
    }
    Cow::Owned(result)
}

/// Decodes the elements of little-endian raw data, for the types that shape arithmetic uses.
pub fn elements(dtype: DataType, bytes: &[u8]) -> Option<Known> {
    fn each<const N: usize, T>(bytes: &[u8], of: impl Fn([u8; N]) -> T) -> Vec<T> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| of(*chunk)).collect()
    }
    if let Some(floats) = Floats::of(dtype, bytes) {
        return Some(Known::Floats(floats.to_f64()));
    }
    Some(match dtype {
        DataType::Int64 => Known::Ints(each(bytes, |b| Dim::from(i64::from_le_bytes(b)))),
        DataType::Int32 => Known::Ints(each(bytes, |b| Dim::from(i64::from(i32::from_le_bytes(b))))),
        DataType::Bool | DataType::Uint8 => Known::Ints(each::<1, _>(bytes, |b| Dim::from(i64::from(b[0])))),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn of(data_type: DataType, dims: &[i64]) -> TensorProto {
        TensorProto { data_type: data_type as i32, dims: dims.to_vec(), ..TensorProto::default() }
    }

    #[test]
    fn typed_fields_have_the_same_bytes_as_raw_data() {
        let floats = TensorProto { float_data: vec![1.5, -2.0], ..of(DataType::Float, &[2]) };
        assert_eq!(*stored_bytes(&floats), [1.5_f32.to_le_bytes(), (-2.0_f32).to_le_bytes()].concat());
        let halves = TensorProto { int32_data: vec![0x3c00, 0xc000], ..of(DataType::Float16, &[2]) };
        assert_eq!(*stored_bytes(&halves), [0x00, 0x3c, 0x00, 0xc0]);
        let bytes = TensorProto { int32_data: vec![-1, 7], ..of(DataType::Int8, &[2]) };
        assert_eq!(*stored_bytes(&bytes), [0xff, 7]);
        let ints = TensorProto { int64_data: vec![-1], ..of(DataType::Int64, &[1]) };
        assert_eq!(*stored_bytes(&ints), [0xff; 8]);
        let unsigned = TensorProto { uint64_data: vec![u64::from(u32::MAX)], ..of(DataType::Uint32, &[1]) };
        assert_eq!(*stored_bytes(&unsigned), [0xff; 4]);
        let doubles = TensorProto { double_data: vec![0.5], ..of(DataType::Double, &[]) };
        assert_eq!(*stored_bytes(&doubles), 0.5_f64.to_le_bytes());
        for tensor in [floats, halves, bytes, ints, unsigned, doubles] {
            assert_eq!(byte_length(&tensor).unwrap(), Some(stored_length(&tensor)));
        }
    }

    #[test]
    fn packed_types_round_up_to_whole_bytes() {
        assert_eq!(byte_length(&of(DataType::Int4, &[3])).unwrap(), Some(2));
        assert_eq!(byte_length(&of(DataType::Uint2, &[5])).unwrap(), Some(2));
    }

    #[test]
    fn negative_and_overflowing_shapes_are_errors() {
        assert!(byte_length(&of(DataType::Float, &[2, -1])).unwrap_err().contains("negative size -1"));
        assert!(byte_length(&of(DataType::Float, &[i64::MAX, i64::MAX])).unwrap_err().contains("too many"));
    }
}
