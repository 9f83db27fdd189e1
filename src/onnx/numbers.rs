//! The elements of tensors of any numbers, decoded: integers and floating point types of eight bits too.

use super::DataType;
use super::floats::Floats;

/// The elements of little-endian, row-major data, rounded to float32; `None` for types that hold no numbers, and for
/// those of which several share a byte.
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

/// A floating point format of eight bits.
/// Source: <https://onnx.ai/onnx/technical/float8.html>.
#[derive(Clone, Copy)]
struct EightBits {
    /// Bits of the mantissa.
    mantissa: u32,
    /// What the exponent is stored with.
    bias: i32,
    special: Special,
}

/// How a format writes what is not finite.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Special {
    /// Ones throughout are not a number; nothing is infinite.
    LastIsNan,
    /// What would be minus zero is not a number; nothing is infinite.
    NegativeZeroIsNan,
    /// As IEEE 754: the largest exponent.
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
    fn eight_bit_floats_are_those_of_the_specification() {
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
    fn integers_are_numbers_and_words_are_none() {
        assert_eq!(numbers(DataType::Int8, &[0xFF, 0x7F]).unwrap(), [-1.0, 127.0]);
        assert_eq!(numbers(DataType::Uint8, &[0xFF]).unwrap(), [255.0]);
        assert_eq!(numbers(DataType::Int16, &[0xFE, 0xFF]).unwrap(), [-2.0]);
        assert_eq!(numbers(DataType::Int32, &[0xFE, 0xFF, 0xFF, 0xFF]).unwrap(), [-2.0]);
        assert!(numbers(DataType::String, &[0]).is_none() && numbers(DataType::Int4, &[0]).is_none());
    }
}
