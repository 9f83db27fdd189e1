//! Dense arrays as they go into and come out of a model: dimensions, and elements of one of the types that networks use.
//!
//! Elements are in row-major order, and their number is the product of the dimensions ([`Array::new`] checks it).

use std::fmt;

use half::{bf16, f16};

/// The type of the elements of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ElementType {
    /// 32-bit floating point.
    F32,
    /// 64-bit floating point.
    F64,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a 32-bit float.
    BF16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed 16-bit integer.
    I16,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 8-bit integer.
    U8,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 64-bit integer.
    U64,
    /// Truth value, one byte each.
    Bool,
}

impl ElementType {
    /// Whether this is one of the floating-point types.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::BF16)
    }

    /// The number of bytes that an element takes.
    pub fn byte_count(self) -> usize {
        match self {
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    /// Its number in `TensorProto.DataType`.
    pub(crate) fn to_onnx(self) -> i32 {
        match self {
            Self::F32 => 1,
            Self::U8 => 2,
            Self::I8 => 3,
            Self::U16 => 4,
            Self::I16 => 5,
            Self::I32 => 6,
            Self::I64 => 7,
            Self::Bool => 9,
            Self::F16 => 10,
            Self::F64 => 11,
            Self::U32 => 12,
            Self::U64 => 13,
            Self::BF16 => 16,
        }
    }

    /// The type of which this is the number in ONNX's `TensorProto.DataType`, if arrays can hold it.
    pub fn from_onnx(code: i32) -> Option<Self> {
        Some(match code {
            1 => Self::F32,
            2 => Self::U8,
            3 => Self::I8,
            4 => Self::U16,
            5 => Self::I16,
            6 => Self::I32,
            7 => Self::I64,
            9 => Self::Bool,
            10 => Self::F16,
            11 => Self::F64,
            12 => Self::U32,
            13 => Self::U64,
            16 => Self::BF16,
            _ => return None,
        })
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
            Self::I64 => "int64",
            Self::I32 => "int32",
            Self::I16 => "int16",
            Self::I8 => "int8",
            Self::U8 => "uint8",
            Self::U16 => "uint16",
            Self::U32 => "uint32",
            Self::U64 => "uint64",
            Self::Bool => "bool",
        })
    }
}

/// The elements of an array.
#[derive(Clone, Debug, PartialEq)]
pub enum ArrayData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// Half-precision floats.
    F16(Vec<f16>),
    /// `bfloat16` elements.
    BF16(Vec<bf16>),
    /// Signed 64-bit integers.
    I64(Vec<i64>),
    /// Signed 32-bit integers.
    I32(Vec<i32>),
    /// Signed 16-bit integers.
    I16(Vec<i16>),
    /// Signed 8-bit integers.
    I8(Vec<i8>),
    /// Unsigned 8-bit integers.
    U8(Vec<u8>),
    /// Unsigned 16-bit integers.
    U16(Vec<u16>),
    /// Unsigned 32-bit integers.
    U32(Vec<u32>),
    /// Unsigned 64-bit integers.
    U64(Vec<u64>),
    /// Truth values.
    Bool(Vec<bool>),
}

/// Evaluates `$body` with `$values` bound to the vector inside `$data`, whatever its element type.
macro_rules! each_type {
    ($data:expr, $values:ident => $body:expr) => {
        match $data {
            $crate::array::ArrayData::F32($values) => $body,
            $crate::array::ArrayData::F64($values) => $body,
            $crate::array::ArrayData::F16($values) => $body,
            $crate::array::ArrayData::BF16($values) => $body,
            $crate::array::ArrayData::I64($values) => $body,
            $crate::array::ArrayData::I32($values) => $body,
            $crate::array::ArrayData::I16($values) => $body,
            $crate::array::ArrayData::I8($values) => $body,
            $crate::array::ArrayData::U8($values) => $body,
            $crate::array::ArrayData::U16($values) => $body,
            $crate::array::ArrayData::U32($values) => $body,
            $crate::array::ArrayData::U64($values) => $body,
            $crate::array::ArrayData::Bool($values) => $body,
        }
    };
}
pub(crate) use each_type;

impl ArrayData {
    /// The type of the elements.
    pub fn element_type(&self) -> ElementType {
        match self {
            Self::F32(_) => ElementType::F32,
            Self::F64(_) => ElementType::F64,
            Self::F16(_) => ElementType::F16,
            Self::BF16(_) => ElementType::BF16,
            Self::I64(_) => ElementType::I64,
            Self::I32(_) => ElementType::I32,
            Self::I16(_) => ElementType::I16,
            Self::I8(_) => ElementType::I8,
            Self::U8(_) => ElementType::U8,
            Self::U16(_) => ElementType::U16,
            Self::U32(_) => ElementType::U32,
            Self::U64(_) => ElementType::U64,
            Self::Bool(_) => ElementType::Bool,
        }
    }

    /// The elements in runs of `length`, of which some are chosen.
    fn runs(&self, chosen: &[usize], length: usize) -> Self {
        macro_rules! chosen_of {
            ($values:expr, $kind:ident) => {
                Self::$kind(chosen.iter().flat_map(|run| &$values[run * length..(run + 1) * length]).copied().collect())
            };
        }
        match self {
            Self::F32(values) => chosen_of!(values, F32),
            Self::F64(values) => chosen_of!(values, F64),
            Self::F16(values) => chosen_of!(values, F16),
            Self::BF16(values) => chosen_of!(values, BF16),
            Self::I64(values) => chosen_of!(values, I64),
            Self::I32(values) => chosen_of!(values, I32),
            Self::I16(values) => chosen_of!(values, I16),
            Self::I8(values) => chosen_of!(values, I8),
            Self::U8(values) => chosen_of!(values, U8),
            Self::U16(values) => chosen_of!(values, U16),
            Self::U32(values) => chosen_of!(values, U32),
            Self::U64(values) => chosen_of!(values, U64),
            Self::Bool(values) => chosen_of!(values, Bool),
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        each_type!(self, values => values.len())
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values converted to `element_type`, rounded to the nearest that it has; integers saturate, and everything
    /// that is not zero is true.
    pub fn from_f64(element_type: ElementType, values: &[f64]) -> Self {
        fn map<T>(values: &[f64], convert: impl Fn(f64) -> T) -> Vec<T> {
            values.iter().map(|&value| convert(value)).collect()
        }
        match element_type {
            ElementType::F32 => Self::F32(map(values, |v| v as f32)),
            ElementType::F64 => Self::F64(values.to_vec()),
            ElementType::F16 => Self::F16(map(values, f16::from_f64)),
            ElementType::BF16 => Self::BF16(map(values, bf16::from_f64)),
            ElementType::I64 => Self::I64(map(values, |v| v.round() as i64)),
            ElementType::I32 => Self::I32(map(values, |v| v.round() as i32)),
            ElementType::I16 => Self::I16(map(values, |v| v.round() as i16)),
            ElementType::I8 => Self::I8(map(values, |v| v.round() as i8)),
            ElementType::U8 => Self::U8(map(values, |v| v.round() as u8)),
            ElementType::U16 => Self::U16(map(values, |v| v.round() as u16)),
            ElementType::U32 => Self::U32(map(values, |v| v.round() as u32)),
            ElementType::U64 => Self::U64(map(values, |v| v.round() as u64)),
            ElementType::Bool => Self::Bool(map(values, |v| v != 0.0)),
        }
    }

    /// The values as 64-bit floats; true is 1. Only integers beyond 2^53 lose precision.
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Self::F32(values) => values.iter().map(|&v| v.into()).collect(),
            Self::F64(values) => values.clone(),
            Self::F16(values) => values.iter().map(|&v| v.to_f64()).collect(),
            Self::BF16(values) => values.iter().map(|&v| v.to_f64()).collect(),
            Self::I64(values) => values.iter().map(|&v| v as f64).collect(),
            Self::I32(values) => values.iter().map(|&v| v.into()).collect(),
            Self::I16(values) => values.iter().map(|&v| v.into()).collect(),
            Self::I8(values) => values.iter().map(|&v| v.into()).collect(),
            Self::U8(values) => values.iter().map(|&v| v.into()).collect(),
            Self::U16(values) => values.iter().map(|&v| v.into()).collect(),
            Self::U32(values) => values.iter().map(|&v| v.into()).collect(),
            Self::U64(values) => values.iter().map(|&v| v as f64).collect(),
            Self::Bool(values) => values.iter().map(|&v| f64::from(u8::from(v))).collect(),
        }
    }

    /// Appends the elements to `bytes`, little-endian.
    pub(crate) fn append_bytes(&self, bytes: &mut Vec<u8>) {
        bytes.reserve(self.len() * self.element_type().byte_count());
        each_type!(self, values => values.iter().for_each(|value| value.append(bytes)));
    }
}

/// One element as little-endian bytes.
trait ToBytes {
    /// Appends the element to `bytes`.
    fn append(&self, bytes: &mut Vec<u8>);
}

macro_rules! to_bytes {
    ($($kind:ty),*) => {
        $(impl ToBytes for $kind {
            fn append(&self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }
        })*
    };
}
to_bytes!(f32, f64, f16, bf16, i64, i32, i16, i8, u8, u16, u32, u64);

impl ToBytes for bool {
    fn append(&self, bytes: &mut Vec<u8>) {
        bytes.push(u8::from(*self));
    }
}

/// A dense array.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The sizes of the axes; none for a scalar.
    pub dims: Vec<usize>,
    /// The elements in row-major order.
    pub data: ArrayData,
}

/// The number of elements does not agree with the dimensions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("dimensions {dims:?} do not hold {element_count} elements")]
pub struct SizeMismatch {
    /// The dimensions that were given.
    pub dims: Vec<usize>,
    /// The number of elements that were given.
    pub element_count: usize,
}

impl Array {
    /// An array of these dimensions, if they hold exactly as many elements as `data` has.
    pub fn new(dims: Vec<usize>, data: ArrayData) -> Result<Self, SizeMismatch> {
        match element_count(&dims) {
            Some(count) if count == data.len() => Ok(Self { dims, data }),
            _ => Err(SizeMismatch { dims, element_count: data.len() }),
        }
    }

    /// An array with the values converted to `element_type` (see [`ArrayData::from_f64`]).
    pub fn from_f64(element_type: ElementType, dims: Vec<usize>, values: &[f64]) -> Result<Self, SizeMismatch> {
        Self::new(dims, ArrayData::from_f64(element_type, values))
    }

    /// The type of the elements.
    pub fn element_type(&self) -> ElementType {
        self.data.element_type()
    }

    /// The elements as 64-bit floats, which is what comparisons are made in.
    pub fn to_f64(&self) -> Vec<f64> {
        self.data.to_f64()
    }

    /// Some rows, the indices of the first axis, in the order that is asked for; those that do not exist are left out.
    pub fn rows(&self, chosen: &[usize]) -> Self {
        let count = self.dims.first().copied().unwrap_or(0);
        let chosen: Vec<usize> = chosen.iter().copied().filter(|row| *row < count).collect();
        let row = self.data.len().checked_div(count).unwrap_or(0);
        let mut dims = self.dims.clone();
        if let Some(first) = dims.first_mut() {
            *first = chosen.len();
        }
        Self { dims, data: self.data.runs(&chosen, row) }
    }

    /// The same values in another element type.
    pub fn cast(&self, element_type: ElementType) -> Self {
        if element_type == self.element_type() {
            return self.clone();
        }
        Self { dims: self.dims.clone(), data: ArrayData::from_f64(element_type, &self.to_f64()) }
    }
}

/// The product of the dimensions, unless it overflows.
pub(crate) fn element_count(dims: &[usize]) -> Option<usize> {
    // A zero anywhere means no elements, even where the other sizes alone would overflow.
    if dims.contains(&0) {
        return Some(0);
    }
    dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_element_count_must_agree_with_the_dimensions() {
        assert!(Array::new(vec![2, 3], ArrayData::F32(vec![0.0; 6])).is_ok());
        assert!(Array::new(vec![], ArrayData::I64(vec![7])).is_ok());
        assert!(Array::new(vec![0, usize::MAX, 4], ArrayData::F32(vec![])).is_ok());
        assert!(Array::new(vec![2, 3], ArrayData::F32(vec![0.0; 5])).is_err());
        assert!(Array::new(vec![usize::MAX, 2], ArrayData::F32(vec![])).is_err());
    }

    #[test]
    fn conversions_round_and_saturate() {
        let halves = ArrayData::from_f64(ElementType::F16, &[1.0, 65504.0, 1e9]);
        assert_eq!(halves.to_f64(), [1.0, 65504.0, f64::INFINITY]);
        assert_eq!(ArrayData::from_f64(ElementType::U8, &[-3.0, 2.6, 300.0]), ArrayData::U8(vec![0, 3, 255]));
        assert_eq!(ArrayData::from_f64(ElementType::Bool, &[0.0, -2.0]).to_f64(), [0.0, 1.0]);
        let array = Array::from_f64(ElementType::F32, vec![2], &[1.5, -2.0]).unwrap();
        assert_eq!(array.cast(ElementType::BF16).cast(ElementType::F32), array);
    }
}
