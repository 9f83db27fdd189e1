//! Conversion between NumPy arrays and the library's arrays.

use half::{bf16, f16};
use ndarray::ArrayD;
use numpy::{
    Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArray, PyUntypedArrayMethods, ToPyArray,
};
use onnx_diffprune::data::{Array, ArrayData};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Returns the elements of an array of this type, in row-major order.
fn elements<T: Element + Copy>(array: &Bound<'_, PyAny>) -> PyResult<Vec<T>> {
    let array: PyReadonlyArrayDyn<'_, T> = array.extract()?;
    Ok(array.as_array().iter().copied().collect())
}

/// Copies a NumPy array into one of the library. Any memory layout is accepted, in native byte order.
pub(crate) fn array(name: &str, given: &Bound<'_, PyAny>) -> PyResult<Array> {
    let untyped = given
        .cast::<PyUntypedArray>()
        .map_err(|_| PyTypeError::new_err(format!("{name}: expected a NumPy array, found {}", given.get_type())))?;
    let dtype: String = untyped.dtype().getattr("name")?.extract()?;
    let data = match dtype.as_str() {
        "float32" => ArrayData::F32(elements(given)?),
        "float64" => ArrayData::F64(elements(given)?),
        "float16" => ArrayData::F16(elements::<f16>(given)?),
        // The type of ml_dtypes. NumPy only sees its bits.
        "bfloat16" => {
            let bits = given.call_method1("view", ("uint16",))?;
            ArrayData::BF16(elements::<u16>(&bits)?.into_iter().map(bf16::from_bits).collect())
        }
        "int64" => ArrayData::I64(elements(given)?),
        "int32" => ArrayData::I32(elements(given)?),
        "int16" => ArrayData::I16(elements(given)?),
        "int8" => ArrayData::I8(elements(given)?),
        "uint64" => ArrayData::U64(elements(given)?),
        "uint32" => ArrayData::U32(elements(given)?),
        "uint16" => ArrayData::U16(elements(given)?),
        "uint8" => ArrayData::U8(elements(given)?),
        "bool" => ArrayData::Bool(elements(given)?),
        other => {
            let text = format!(
                "{name}: expected an array of floats, integers or booleans, found dtype {other}: convert it with astype"
            );
            return Err(PyTypeError::new_err(text));
        }
    };
    Array::new(untyped.shape().to_vec(), data).map_err(|error| PyValueError::new_err(error.to_string()))
}

/// Converts arrays keyed by the names of a network's inputs.
pub(crate) fn named(given: Option<&Bound<'_, PyDict>>) -> PyResult<Option<Vec<(String, Array)>>> {
    let Some(given) = given else { return Ok(None) };
    let mut arrays = Vec::new();
    for (name, value) in given.iter() {
        let name: String = name.extract()?;
        let value = array(&name, &value)?;
        arrays.push((name, value));
    }
    Ok(Some(arrays))
}

fn shaped<'py, T: Element>(py: Python<'py>, dims: &[usize], values: Vec<T>) -> PyResult<Bound<'py, PyAny>> {
    let array = numpy::PyArray1::from_vec(py, values);
    Ok(array.reshape(dims.to_vec())?.into_any())
}

/// Converts an array of the library to NumPy. `bfloat16` becomes `float32`, which represents its values exactly.
pub(crate) fn numpy<'py>(py: Python<'py>, array: Array) -> PyResult<Bound<'py, PyAny>> {
    let dims = array.dims;
    match array.data {
        ArrayData::F32(values) => shaped(py, &dims, values),
        ArrayData::F64(values) => shaped(py, &dims, values),
        ArrayData::F16(values) => shaped(py, &dims, values),
        ArrayData::BF16(values) => shaped(py, &dims, values.into_iter().map(f32::from).collect()),
        ArrayData::I64(values) => shaped(py, &dims, values),
        ArrayData::I32(values) => shaped(py, &dims, values),
        ArrayData::I16(values) => shaped(py, &dims, values),
        ArrayData::I8(values) => shaped(py, &dims, values),
        ArrayData::U8(values) => shaped(py, &dims, values),
        ArrayData::U16(values) => shaped(py, &dims, values),
        ArrayData::U32(values) => shaped(py, &dims, values),
        ArrayData::U64(values) => shaped(py, &dims, values),
        ArrayData::Bool(values) => shaped(py, &dims, values),
    }
}

/// Converts several named arrays.
pub(crate) fn dict<'py>(py: Python<'py>, arrays: Vec<(String, Array)>) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, array) in arrays {
        dict.set_item(name, numpy(py, array)?)?;
    }
    Ok(dict)
}

/// Returns samples as a NumPy array.
pub(crate) fn samples<'py>(py: Python<'py>, values: &ArrayD<f32>) -> Bound<'py, PyArrayDyn<f32>> {
    values.to_pyarray(py)
}
