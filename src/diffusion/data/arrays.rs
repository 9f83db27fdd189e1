//! Samples in array files.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::text;
use crate::array::{Array, ArrayData, ElementType};
use crate::error::Error;
use crate::npz;

/// Samples of the network's sizes.
pub(super) struct Rows {
    /// The values as the file has them, row by row.
    pub(super) values: Vec<f32>,
    /// The number of rows.
    pub(super) count: usize,
    /// Whether the file has bytes.
    pub(super) is_bytes: bool,
}

/// Names that the array of samples may have in a file with several.
const NAMES: [&str; 8] = ["samples", "sample", "images", "latents", "x0", "data", "x", "arr_0"];

/// The sizes of the array of samples in a file.
pub(in crate::diffusion) fn array_dims(path: &Path, input: &str) -> Result<Vec<usize>, Error> {
    Ok(read_array(path, input)?.dims)
}

/// Reads the array of samples from a `.npy`, `.npz` or `.safetensors` file.
fn read_array(path: &Path, input: &str) -> Result<Array, Error> {
    let mut arrays = match path.extension().map(|kind| kind.to_string_lossy().to_ascii_lowercase()).as_deref() {
        Some("safetensors") => read_safetensors(path)?,
        Some("npy" | "npz") => {
            npz::read(path).map_err(|error| Error::unreadable(path, error.to_string()).caused_by(error))?
        }
        _ if !path.exists() => return Err(Error::unreadable(path, "does not exist")),
        _ => {
            return Err(Error::unreadable(
                path,
                "expected a folder of images or a file .npy, .npz or .safetensors of samples",
            ));
        }
    };
    let at = pick(&arrays, input).ok_or_else(|| {
        let names: Vec<&str> = arrays.iter().map(|(name, _)| name.as_str()).collect();
        Error::unreadable(path, format!("expected one array, or one named {input:?}, found {}", names.join(", ")))
    })?;
    Ok(arrays.swap_remove(at).1)
}

/// Reads samples of these sizes.
pub(super) fn read(path: &Path, input: &str, sizes: &[usize]) -> Result<Rows, Error> {
    let array = read_array(path, input)?;
    let dims = &array.dims;
    let unexpected = || {
        Error::unreadable(
            path,
            format!("expected samples of {} (the network's), found an array of {dims:?}", text(sizes)),
        )
        .hint("symbolic sizes of the network are set with --size NAME=N")
    };
    let values: Vec<f32> = match &array.data {
        ArrayData::F32(values) => values.clone(),
        other => other.to_f64().into_iter().map(|value| value as f32).collect(),
    };
    let count = dims.first().copied().unwrap_or(0);
    let is_bytes = array.element_type() == ElementType::U8;
    // One channel may be left out, and channels may come last, as image libraries have them.
    let without_channel = sizes.first() == Some(&1) && dims.len() == sizes.len() && dims.get(1..) == sizes.get(1..);
    if dims.get(1..) == Some(sizes) || without_channel {
        return Ok(Rows { values, count, is_bytes });
    }
    match (dims.as_slice(), sizes) {
        (&[_, a, b, c], &[channels, height, width]) if [a, b, c] == [height, width, channels] => {
            let pixels = height * width;
            let at = |place: usize| {
                let (row, rest) = (place / (channels * pixels), place % (channels * pixels));
                values[row * channels * pixels + (rest % pixels) * channels + rest / pixels]
            };
            Ok(Rows { values: (0..values.len()).map(at).collect(), count, is_bytes })
        }
        _ => Err(unexpected()),
    }
}

/// The place of the samples among the arrays of a file.
fn pick(arrays: &[(String, Array)], input: &str) -> Option<usize> {
    if arrays.len() == 1 {
        return Some(0);
    }
    let named = |name: &str| arrays.iter().position(|(found, _)| found == name);
    named(input).or_else(|| NAMES.into_iter().find_map(named))
}

fn read_safetensors(path: &Path) -> Result<Vec<(String, Array)>, Error> {
    let fail = |text: String| Error::unreadable(path, text);
    let bytes = std::fs::read(path).map_err(|error| fail(format!("can't be read: {error}")).caused_by(error))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| fail(format!("not a readable safetensors file: {error}")).caused_by(error))?;
    let mut arrays = Vec::new();
    for (name, tensor) in file.tensors() {
        let data = match tensor.dtype() {
            Dtype::F32 => ArrayData::F32(bytemuck::pod_collect_to_vec(tensor.data())),
            Dtype::F64 => ArrayData::F64(bytemuck::pod_collect_to_vec(tensor.data())),
            Dtype::F16 => ArrayData::F16(bytemuck::pod_collect_to_vec(tensor.data())),
            Dtype::BF16 => ArrayData::BF16(bytemuck::pod_collect_to_vec(tensor.data())),
            Dtype::U8 => ArrayData::U8(tensor.data().to_vec()),
            // Other types are no samples; a file may have them beside.
            _ => continue,
        };
        let array =
            Array::new(tensor.shape().to_vec(), data).map_err(|error| fail(format!("tensor {name:?}: {error}")))?;
        arrays.push((name, array));
    }
    // The file's own order is that of a hash table.
    arrays.sort_by(|a, b| a.0.cmp(&b.0));
    if arrays.is_empty() {
        return Err(fail("expected a tensor of floats or bytes, found none".to_owned()));
    }
    Ok(arrays)
}
