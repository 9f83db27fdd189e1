//! The elements of tensors of any numeric type, decoded and encoded, including integers and 8-bit floating-point types.

use super::floats::Floats;
use super::{DataType, TensorProto};

/// Decodes the elements of little-endian, row-major data, rounded to float32. Returns `None` for types that are not
/// numeric and for types of less than a byte.
pub(crate) fn numbers(dtype: DataType, bytes: &[u8]) -> Option<Vec<f32>> {
    fn each<const N: usize>(bytes: &[u8], of: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| of(*chunk)).collect()
    }
    if let Some(floats) = Floats::of(dtype, bytes) {
        return Some(floats.to_f32());
    }
    let eight = |form: EightBits| each(bytes, |[byte]| form.decode(byte));
    Some(match dtype {
        DataType::Int8 => each(bytes, |[byte]| f32::from(byte.cast_signed())),
        DataType::Uint8 | DataType::Bool => each(bytes, |[byte]| f32::from(byte)),
        DataType::Int16 => each(bytes, |chunk| f32::from(i16::from_le_bytes(chunk))),
        DataType::Uint16 => each(bytes, |chunk| f32::from(u16::from_le_bytes(chunk))),
        DataType::Int32 => each(bytes, |chunk| i32::from_le_bytes(chunk) as f32),
        DataType::Uint32 => each(bytes, |chunk| u32::from_le_bytes(chunk) as f32),
        DataType::Float8e4m3fn => eight(EightBits { mantissa: 3, bias: 7, special: Special::LastIsNan }),
        DataType::Float8e4m3fnuz => eight(EightBits { mantissa: 3, bias: 8, special: Special::NegativeZeroIsNan }),
        DataType::Float8e5m2 => eight(EightBits { mantissa: 2, bias: 15, special: Special::Infinity }),
        DataType::Float8e5m2fnuz => eight(EightBits { mantissa: 2, bias: 16, special: Special::NegativeZeroIsNan }),
        _ => return None,
    })
}

/// Like [`numbers`], but also decodes types with two elements per byte, the first in the lower half. There are `count`
/// elements.
pub(crate) fn packed_numbers(dtype: DataType, bytes: &[u8], count: usize) -> Option<Vec<f32>> {
    let of: fn(u8) -> f32 = match dtype {
        DataType::Uint4 => |half| f32::from(half),
        DataType::Int4 => |half| f32::from((half << 4).cast_signed() >> 4),
        _ => return numbers(dtype, bytes),
    };
    Some(bytes.iter().flat_map(|byte| [byte & 0xF, byte >> 4]).take(count).map(of).collect())
}

/// Creates a tensor of these numbers, each rounded to the nearest value of the type. Returns `None` for types that are
/// not numeric.
pub(crate) fn rounded(name: &str, dtype: DataType, values: &[f32], dims: &[i64]) -> Option<TensorProto> {
    // ONNX rounds halves to the nearest even number.
    let whole = |value: &f32| value.round_ties_even();
    let raw = match dtype {
        DataType::Int8 => values.iter().map(|value| (whole(value) as i8).cast_unsigned()).collect(),
        DataType::Uint8 => values.iter().map(|value| whole(value) as u8).collect(),
        DataType::Int16 => values.iter().flat_map(|value| (whole(value) as i16).to_le_bytes()).collect(),
        DataType::Uint16 => values.iter().flat_map(|value| (whole(value) as u16).to_le_bytes()).collect(),
        DataType::Int32 => values.iter().flat_map(|value| (whole(value) as i32).to_le_bytes()).collect(),
        DataType::Int4 | DataType::Uint4 => {
            let (low, high) = if dtype == DataType::Int4 { (-8.0, 7.0) } else { (0.0, 15.0) };
            let half = |value: &f32| (whole(value).clamp(low, high) as i8).cast_unsigned() & 0xF;
            values.chunks(2).map(|pair| half(&pair[0]) | pair.get(1).map_or(0, half) << 4).collect()
        }
        DataType::Float8e4m3fn | DataType::Float8e4m3fnuz | DataType::Float8e5m2 | DataType::Float8e5m2fnuz => {
            let mut codes: Vec<(f32, u8)> = (0..=u8::MAX)
                .filter_map(|code| Some((numbers(dtype, &[code])?.first().copied()?, code)))
                .filter(|(value, code)| value.is_finite() && !(*value == 0.0 && *code != 0))
                .collect();
            codes.sort_by(|a, b| a.0.total_cmp(&b.0));
            values.iter().map(|value| nearest(&codes, *value)).collect()
        }
        _ => {
            let doubles: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
            return TensorProto::of_numbers(name, dtype, &doubles, dims);
        }
    };
    Some(TensorProto::of_raw(name, dtype, dims, raw))
}

/// Returns the code of the nearest of `codes`, which are in ascending order. In a tie, returns the even code.
fn nearest(codes: &[(f32, u8)], value: f32) -> u8 {
    let after = codes.partition_point(|(code, _)| *code < value).min(codes.len() - 1);
    let before = after.saturating_sub(1);
    let (low, high) = (codes[before], codes[after]);
    let (below, above) = ((value - low.0).abs(), (high.0 - value).abs());
    if above < below || above == below && high.1 & 1 == 0 { high.1 } else { low.1 }
}

/// An 8-bit floating-point format. Source: <https://onnx.ai/onnx/technical/float8.html>.
#[derive(Clone, Copy)]
struct EightBits {
    /// Bits of the mantissa.
    mantissa: u32,
    /// The bias of the exponent.
    bias: i32,
    special: Special,
}

/// The encoding of values that are not finite.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Special {
    /// All ones is NaN. There are no infinities.
    LastIsNan,
    /// The code of minus zero is NaN. There are no infinities.
    NegativeZeroIsNan,
    /// As in IEEE 754: the largest exponent.
    Infinity,
}

impl EightBits {
    fn decode(self, byte: u8) -> f32 {
        let (magnitude, negative) = (u32::from(byte & 0x7F), byte & 0x80 != 0);
        let (exponent, fraction) = (magnitude >> self.mantissa, magnitude & ((1 << self.mantissa) - 1));
        let value = match self.special {
            Special::LastIsNan if magnitude == 0x7F => f32::NAN,
            Special::NegativeZeroIsNan if byte == 0x80 => f32::NAN,
            Special::Infinity if exponent == 0x7F >> self.mantissa => {
                if fraction == 0 {
                    f32::INFINITY
                } else {
                    f32::NAN
                }
            }
            _ => {
                let (whole, power) = if exponent == 0 { (0, 1) } else { (1 << self.mantissa, exponent.cast_signed()) };
                (fraction + whole) as f32 * f32::powi(2.0, power - self.bias - self.mantissa.cast_signed())
            }
        };
        if negative { -value } else { value }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn eight_bit_floats_match_the_specification() {
        let of = |dtype: DataType, bytes: &[u8]| numbers(dtype, bytes).unwrap();
        assert_eq!(of(DataType::Float8e4m3fn, &[0x38, 0x7E, 0x01, 0xB8]), [1.0, 448.0, f32::powi(2.0, -9), -1.0]);
        assert!(of(DataType::Float8e4m3fn, &[0x7F])[0].is_nan());
        assert_eq!(of(DataType::Float8e4m3fnuz, &[0x40, 0x7F, 0x01]), [1.0, 240.0, f32::powi(2.0, -10)]);
        assert!(of(DataType::Float8e4m3fnuz, &[0x80])[0].is_nan());
        assert_eq!(
            of(DataType::Float8e5m2, &[0x3C, 0x7B, 0x7C, 0x01]),
            [1.0, 57_344.0, f32::INFINITY, f32::powi(2.0, -16)]
        );
        assert_eq!(of(DataType::Float8e5m2fnuz, &[0x40, 0x7F, 0x01]), [1.0, 57_344.0, f32::powi(2.0, -17)]);
    }

    #[test]
    fn every_number_of_a_type_survives_encoding_and_decoding() {
        for dtype in [
            DataType::Int8,
            DataType::Uint8,
            DataType::Float8e4m3fn,
            DataType::Float8e4m3fnuz,
            DataType::Float8e5m2,
            DataType::Float8e5m2fnuz,
        ] {
            let all: Vec<u8> = (0..=u8::MAX).collect();
            let finite: Vec<f32> =
                numbers(dtype, &all).unwrap().into_iter().filter(|value| value.is_finite()).collect();
            let tensor = rounded("w", dtype, &finite, &[finite.len() as i64]).unwrap();
            assert_eq!(numbers(dtype, &tensor.raw_data).unwrap(), finite, "{dtype:?}");
        }
        for (dtype, low) in [(DataType::Int4, -8), (DataType::Uint4, 0)] {
            let all: Vec<f32> = (low..low + 15).map(|value| value as f32).collect();
            let tensor = rounded("w", dtype, &all, &[15]).unwrap();
            assert_eq!(tensor.raw_data.len(), 8);
            assert_eq!(packed_numbers(dtype, &tensor.raw_data, 15).unwrap(), all);
        }
    }

    #[test]
    fn numbers_are_rounded_to_the_type_and_clamped_to_its_range() {
        let of = |dtype: DataType, values: &[f32]| {
            let tensor = rounded("w", dtype, values, &[values.len() as i64]).unwrap();
            packed_numbers(dtype, &tensor.raw_data, values.len()).unwrap()
        };
        assert_eq!(of(DataType::Int8, &[0.5, 1.5, -2.6, 300.0, -300.0]), [0.0, 2.0, -3.0, 127.0, -128.0]);
        assert_eq!(of(DataType::Uint8, &[-4.0, 300.0]), [0.0, 255.0]);
        assert_eq!(of(DataType::Int4, &[7.6, -9.0, 0.4]), [7.0, -8.0, 0.0]);
        assert_eq!(of(DataType::Float8e4m3fn, &[1.06, 1.0625, 1e9, -1e9]), [1.0, 1.0, 448.0, -448.0]);
    }

    #[test]
    fn integers_are_decoded_and_strings_are_not() {
        assert_eq!(numbers(DataType::Int8, &[0xFF, 0x7F]).unwrap(), [-1.0, 127.0]);
        assert_eq!(numbers(DataType::Uint8, &[0xFF]).unwrap(), [255.0]);
        assert_eq!(numbers(DataType::Int16, &[0xFE, 0xFF]).unwrap(), [-2.0]);
        assert_eq!(numbers(DataType::Int32, &[0xFE, 0xFF, 0xFF, 0xFF]).unwrap(), [-2.0]);
        assert!(numbers(DataType::String, &[0]).is_none() && numbers(DataType::Int4, &[0]).is_none());
    }
}
