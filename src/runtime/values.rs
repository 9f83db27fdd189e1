//! Conversion between arrays and the tensors of `ort`.

use ort::value::{DynTensor, DynValue, DynValueRef, Tensor, TensorElementType, TensorRef, ValueType};

use super::error::{RuntimeError, plain};
use crate::array::{Array, ArrayData, ElementType, each_type};

/// Returns the element type for one of `ort`. `None`: arrays do not support it.
pub(super) fn element_type(of: TensorElementType) -> Option<ElementType> {
    Some(match of {
        TensorElementType::Float32 => ElementType::F32,
        TensorElementType::Float64 => ElementType::F64,
        TensorElementType::Float16 => ElementType::F16,
        TensorElementType::Bfloat16 => ElementType::BF16,
        TensorElementType::Int64 => ElementType::I64,
        TensorElementType::Int32 => ElementType::I32,
        TensorElementType::Int16 => ElementType::I16,
        TensorElementType::Int8 => ElementType::I8,
        TensorElementType::Uint8 => ElementType::U8,
        TensorElementType::Uint16 => ElementType::U16,
        TensorElementType::Uint32 => ElementType::U32,
        TensorElementType::Uint64 => ElementType::U64,
        TensorElementType::Bool => ElementType::Bool,
        _ => return None,
    })
}

/// Returns a tensor with the elements of the array, without copying them.
pub(super) fn borrow<'a>(name: &str, array: &'a Array) -> Result<DynValueRef<'a>, RuntimeError> {
    each_type!(&array.data, values => {
        TensorRef::from_array_view((array.dims.clone(), values.as_slice())).map(|tensor| tensor.into_dyn())
    })
    .map_err(|error| RuntimeError::RunFailed { message: format!("input {name:?}: {}", plain(&error)) })
}

/// Returns a tensor with a copy of the array's elements.
pub(super) fn owned(name: &str, array: &Array) -> Result<DynTensor, RuntimeError> {
    each_type!(&array.data, values => {
        Tensor::from_array((array.dims.clone(), values.clone())).map(|tensor| tensor.upcast())
    })
    .map_err(|error| RuntimeError::RunFailed { message: format!("input {name:?}: {}", plain(&error)) })
}

/// Returns an array with a copy of the tensor's elements.
pub(super) fn to_array(name: &str, value: &DynValue) -> Result<Array, RuntimeError> {
    let unsupported = || RuntimeError::UnsupportedType { name: name.to_owned(), found: value.dtype().to_string() };
    let ValueType::Tensor { ty, .. } = value.dtype() else {
        return Err(unsupported());
    };
    macro_rules! extract {
        ($variant:ident, $kind:ty) => {{
            let (shape, values) = value
                .try_extract_tensor::<$kind>()
                .map_err(|error| RuntimeError::RunFailed { message: format!("output {name:?}: {}", plain(&error)) })?;
            // The dimensions of a computed tensor are never negative.
            let dims = shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).collect();
            Ok(Array { dims, data: ArrayData::$variant(values.to_vec()) })
        }};
    }
    match element_type(*ty).ok_or_else(unsupported)? {
        ElementType::F32 => extract!(F32, f32),
        ElementType::F64 => extract!(F64, f64),
        ElementType::F16 => extract!(F16, half::f16),
        ElementType::BF16 => extract!(BF16, half::bf16),
        ElementType::I64 => extract!(I64, i64),
        ElementType::I32 => extract!(I32, i32),
        ElementType::I16 => extract!(I16, i16),
        ElementType::I8 => extract!(I8, i8),
        ElementType::U8 => extract!(U8, u8),
        ElementType::U16 => extract!(U16, u16),
        ElementType::U32 => extract!(U32, u32),
        ElementType::U64 => extract!(U64, u64),
        ElementType::Bool => extract!(Bool, bool),
    }
}
