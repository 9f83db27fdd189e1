//! The elements of floating-point tensors: decoding from the bytes of a file, and encoding.

use half::{bf16, f16};

use super::{DataType, TensorProto};

/// Encoded elements of a floating-point type, little-endian and row-major.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Floats<'a> {
    F32(&'a [[u8; 4]]),
    F64(&'a [[u8; 8]]),
    F16(&'a [[u8; 2]]),
    Bf16(&'a [[u8; 2]]),
}

/// Evaluates `$body` with `$elements` bound to the encoded elements of `$floats`, and `$decode` to the function that
/// decodes one element to float32. A loop in `$body` is compiled once for every type.
macro_rules! each_float {
    ($floats:expr, $elements:ident, $decode:ident => $body:expr) => {{
        use $crate::onnx::floats::{Floats, of_bf16, of_f16, of_f32, of_f64};
        match $floats {
            Floats::F32($elements) => {
                let $decode = of_f32;
                $body
            }
            Floats::F64($elements) => {
                let $decode = of_f64;
                $body
            }
            Floats::F16($elements) => {
                let $decode = of_f16;
                $body
            }
            Floats::Bf16($elements) => {
                let $decode = of_bf16;
                $body
            }
        }
    }};
}
pub(crate) use each_float;

#[inline(always)]
pub(crate) fn of_f32(bytes: [u8; 4]) -> f32 {
    f32::from_le_bytes(bytes)
}

/// Decodes a float64, rounded to the nearest float32.
#[inline(always)]
pub(crate) fn of_f64(bytes: [u8; 8]) -> f32 {
    f64::from_le_bytes(bytes) as f32
}

/// Decodes a float16 in steps that the compiler can vectorise. The `half` crate checks the features of the CPU at every
/// element.
#[inline(always)]
pub(crate) fn of_f16(bytes: [u8; 2]) -> f32 {
    let half = u32::from(u16::from_le_bytes(bytes));
    // Shifts the mantissa to its position in a float32. The exponent is then 112 too small, also for subnormal numbers.
    let finite = f32::from_bits((half & 0x7FFF) << 13) * f32::from_bits((112 + 127) << 23);
    let special = if half & 0x7C00 == 0x7C00 { 0xFF << 23 } else { 0 };
    f32::from_bits(finite.to_bits() | special | (half & 0x8000) << 16)
}

#[inline(always)]
pub(crate) fn of_bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

impl<'a> Floats<'a> {
    /// Interprets bytes as elements of `dtype`. Returns `None` if that is not a floating-point type that a weight may
    /// have. Trailing bytes that do not fill an element are ignored.
    pub(crate) fn of(dtype: DataType, bytes: &'a [u8]) -> Option<Self> {
        Some(match dtype {
            DataType::Float => Self::F32(bytes.as_chunks().0),
            DataType::Double => Self::F64(bytes.as_chunks().0),
            DataType::Float16 => Self::F16(bytes.as_chunks().0),
            DataType::Bfloat16 => Self::Bf16(bytes.as_chunks().0),
            _ => return None,
        })
    }

    /// Returns the numbers in single precision. Double precision is rounded.
    pub(crate) fn to_f32(self) -> Vec<f32> {
        each_float!(self, elements, decode => elements.iter().map(|bytes| decode(*bytes)).collect())
    }

    /// Returns the numbers in double precision.
    pub(crate) fn to_f64(self) -> Vec<f64> {
        if let Self::F64(elements) = self {
            return elements.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        }
        each_float!(self, elements, decode => elements.iter().map(|bytes| f64::from(decode(*bytes))).collect())
    }
}

impl TensorProto {
    /// Creates a float16 tensor. Values are rounded to the nearest.
    pub(crate) fn of_halves(name: &str, values: &[f32], dims: &[i64]) -> Self {
        let raw = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        Self::of_raw(name, DataType::Float16, dims, raw)
    }

    /// Creates a tensor of a floating-point type. Returns `None` for other types. For float16 and bfloat16, values are
    /// rounded to float32 first.
    pub(crate) fn of_numbers(name: &str, dtype: DataType, values: &[f64], dims: &[i64]) -> Option<Self> {
        let single = || values.iter().map(|value| *value as f32);
        Some(match dtype {
            DataType::Float => Self::of_floats(name, &single().collect::<Vec<_>>(), dims),
            DataType::Double => {
                Self::of_raw(name, dtype, dims, values.iter().flat_map(|value| value.to_le_bytes()).collect())
            }
            DataType::Float16 => Self::of_halves(name, &single().collect::<Vec<_>>(), dims),
            DataType::Bfloat16 => {
                let raw = single().flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect();
                Self::of_raw(name, dtype, dims, raw)
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn numbers_survive_encoding_and_decoding_in_every_type() {
        let values = [1.5, -2.0, 0.0, 65_504.0, f64::INFINITY];
        for dtype in [DataType::Float, DataType::Double, DataType::Float16] {
            let tensor = TensorProto::of_numbers("w", dtype, &values, &[5]).unwrap();
            assert_eq!(tensor.element_type(), dtype);
            let floats = Floats::of(dtype, &tensor.raw_data).unwrap();
            assert_eq!(floats.to_f64(), values);
            assert_eq!(floats.to_f32(), values.map(|value| value as f32));
        }
        let tensor = TensorProto::of_numbers("w", DataType::Bfloat16, &[1.0, 257.0], &[2]).unwrap();
        assert_eq!(*tensor.raw_data, [0x80, 0x3F, 0x80, 0x43]);
        assert_eq!(Floats::of(DataType::Bfloat16, &tensor.raw_data).unwrap().to_f32(), [1.0, 256.0]);
    }

    #[test]
    fn every_half_precision_number_is_decoded_as_by_the_half_crate() {
        for bits in 0..=u16::MAX {
            let bytes = bits.to_le_bytes();
            let pairs =
                [(of_f16(bytes), f16::from_bits(bits).to_f32()), (of_bf16(bytes), bf16::from_bits(bits).to_f32())];
            for (found, expected) in pairs {
                assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{bits:#x}");
            }
        }
    }

    #[test]
    fn only_double_precision_is_rounded() {
        let bytes = 0.1_f64.to_le_bytes();
        let floats = Floats::of(DataType::Double, &bytes).unwrap();
        assert_eq!((floats.to_f64(), floats.to_f32()), (vec![0.1], vec![0.1_f32]));
        assert!(Floats::of(DataType::Int8, &bytes).is_none());
        assert!(TensorProto::of_numbers("w", DataType::Int8, &[1.0], &[1]).is_none());
    }
}
