//! The elements of a `.npy` file: from bytes to values, and from column-major to row-major order.

use half::{bf16, f16};

use crate::array::{Array, ArrayData, ElementType};

/// Decodes the values in `bytes`. The length must be a multiple of the element size.
pub(super) fn decode(element_type: ElementType, bytes: &[u8], big_endian: bool) -> ArrayData {
    macro_rules! values {
        ($kind:ty, $variant:ident) => {
            ArrayData::$variant(
                bytes
                    .as_chunks::<{ size_of::<$kind>() }>()
                    .0
                    .iter()
                    .map(
                        |&chunk| {
                            if big_endian { <$kind>::from_be_bytes(chunk) } else { <$kind>::from_le_bytes(chunk) }
                        },
                    )
                    .collect(),
            )
        };
    }
    match element_type {
        ElementType::F32 => values!(f32, F32),
        ElementType::F64 => values!(f64, F64),
        ElementType::F16 => values!(f16, F16),
        ElementType::BF16 => values!(bf16, BF16),
        ElementType::I64 => values!(i64, I64),
        ElementType::I32 => values!(i32, I32),
        ElementType::I16 => values!(i16, I16),
        ElementType::I8 => values!(i8, I8),
        ElementType::U8 => ArrayData::U8(bytes.to_vec()),
        ElementType::U16 => values!(u16, U16),
        ElementType::U32 => values!(u32, U32),
        ElementType::U64 => values!(u64, U64),
        ElementType::Bool => ArrayData::Bool(bytes.iter().map(|&byte| byte != 0).collect()),
    }
}

/// Converts elements in column-major order (first axis fastest) to an array in row-major order.
pub(super) fn to_row_major(dims: Vec<usize>, data: &ArrayData) -> Array {
    let order = row_major_positions(&dims, data.len());
    macro_rules! reordered {
        ($($variant:ident),*) => {
            match data {
                $(ArrayData::$variant(values) => ArrayData::$variant(
                    order.iter().filter_map(|&position| values.get(position).copied()).collect(),
                ),)*
            }
        };
    }
    let data = reordered!(F32, F64, F16, BF16, I64, I32, I16, I8, U8, U16, U32, U64, Bool);
    Array { dims, data }
}

/// Returns, for each element in row-major order, its position in column-major order.
fn row_major_positions(dims: &[usize], count: usize) -> Vec<usize> {
    let mut strides = Vec::with_capacity(dims.len());
    let mut stride = 1;
    for &dim in dims {
        strides.push(stride);
        stride *= dim;
    }
    (0..count)
        .map(|index| {
            let mut rest = index;
            let mut position = 0;
            for (&dim, &stride) in dims.iter().zip(&strides).rev() {
                position += rest % dim * stride;
                rest /= dim;
            }
            position
        })
        .collect()
}
