//! Samples in array files.

use std::path::Path;

use bytes::Bytes;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::text;
use crate::array::{Array, ArrayData, ElementType};
use crate::error::Error;
use crate::files::map;
use crate::npz;
use crate::runtime::check_memory;

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

/// A file of samples, of which only the headers have been read.
enum Opened {
    Npz(npz::ArrayFile),
    Safetensors(Bytes),
}

/// The array of samples in a file.
struct Found {
    file: Opened,
    /// Its place among the arrays of the file.
    at: usize,
    name: String,
    dims: Vec<usize>,
    /// Bytes of its elements.
    bytes: u64,
}

/// The sizes of the array of samples in a file.
pub(in crate::diffusion) fn array_dims(path: &Path, input: &str) -> Result<Vec<usize>, Error> {
    Ok(find(path, input)?.dims)
}

/// Finds the array of samples in a `.npy`, `.npz` or `.safetensors` file.
fn find(path: &Path, input: &str) -> Result<Found, Error> {
    let fail = |error: npz::NpzError| Error::unreadable(path, error.to_string()).caused_by(error);
    let (file, names) = match path.extension().map(|kind| kind.to_string_lossy().to_ascii_lowercase()).as_deref() {
        Some("safetensors") => {
            let bytes = map(path)
                .map_err(|error| Error::unreadable(path, format!("can't be read: {error}")).caused_by(error))?;
            let names: Vec<String> = samples_of(path, &bytes)?.into_iter().map(|(name, _)| name).collect();
            (Opened::Safetensors(bytes), names)
        }
        Some("npy" | "npz") => {
            let file = npz::ArrayFile::open(path).map_err(fail)?;
            let names = file.entries().iter().map(|entry| entry.name().to_owned()).collect();
            (Opened::Npz(file), names)
        }
        _ if !path.exists() => return Err(Error::unreadable(path, "does not exist")),
        _ => {
            return Err(Error::unreadable(
                path,
                "expected a folder of images or a file .npy, .npz or .safetensors of samples",
            ));
        }
    };
    let at = pick(&names, input).ok_or_else(|| {
        Error::unreadable(path, format!("expected one array, or one named {input:?}, found {}", names.join(", ")))
    })?;
    let (dims, bytes) = match &file {
        Opened::Npz(file) => {
            let entry = &file.entries()[at];
            (entry.dims().map_err(fail)?.to_vec(), entry.byte_count().map_err(fail)?)
        }
        Opened::Safetensors(bytes) => {
            let (_, tensor) = samples_of(path, bytes)?.swap_remove(at);
            (tensor.shape().to_vec(), tensor.data().len() as u64)
        }
    };
    Ok(Found { file, at, name: names[at].clone(), dims, bytes })
}

impl Found {
    /// Reads the array.
    fn read(self, path: &Path) -> Result<Array, Error> {
        // As bytes, as elements and as float32.
        check_memory(self.bytes.saturating_mul(3)).map_err(|text| {
            let name = &self.name;
            Error::unreadable(path, format!("array {name:?} can't be read: {text}")).hint("give fewer samples at once")
        })?;
        match self.file {
            Opened::Npz(mut file) => {
                file.read(self.at).map_err(|error| Error::unreadable(path, error.to_string()).caused_by(error))
            }
            Opened::Safetensors(bytes) => {
                let (name, tensor) = samples_of(path, &bytes)?.swap_remove(self.at);
                let fail = |text: String| Error::unreadable(path, format!("tensor {name:?}: {text}"));
                let data = elements(&tensor).ok_or_else(|| fail("expected floats or bytes".to_owned()))?;
                Array::new(self.dims, data).map_err(|error| fail(error.to_string()))
            }
        }
    }
}

/// Reads samples of these sizes.
pub(super) fn read(path: &Path, input: &str, sizes: &[usize]) -> Result<Rows, Error> {
    let found = find(path, input)?;
    let dims = found.dims.clone();
    let count = dims.first().copied().unwrap_or(0);
    // One channel may be left out, and channels may come last, as image libraries have them.
    let without_channel = sizes.first() == Some(&1) && dims.len() == sizes.len() && dims.get(1..) == sizes.get(1..);
    let is_same = dims.get(1..) == Some(sizes) || without_channel;
    let channels_last = match (dims.as_slice(), sizes) {
        (&[_, a, b, c], &[channels, height, width]) => [a, b, c] == [height, width, channels],
        _ => false,
    };
    // Before any of it is read.
    if !is_same && !channels_last {
        let expected = text(sizes);
        let text = format!("expected samples of {expected} (the network's), found an array of {dims:?}");
        return Err(Error::unreadable(path, text).hint("symbolic sizes of the network are set with --size NAME=N"));
    }
    let array = found.read(path)?;
    let is_bytes = array.element_type() == ElementType::U8;
    let values: Vec<f32> = match array.data {
        ArrayData::F32(values) => values,
        _ => array.to_f64().into_iter().map(|value| value as f32).collect(),
    };
    match (is_same, sizes) {
        (false, &[channels, height, width]) => {
            let pixels = height * width;
            let at = |place: usize| {
                let (row, rest) = (place / (channels * pixels), place % (channels * pixels));
                values[row * channels * pixels + (rest % pixels) * channels + rest / pixels]
            };
            Ok(Rows { values: (0..values.len()).map(at).collect(), count, is_bytes })
        }
        _ => Ok(Rows { values, count, is_bytes }),
    }
}

/// The place of the samples among the arrays of a file.
fn pick(names: &[String], input: &str) -> Option<usize> {
    if names.len() == 1 {
        return Some(0);
    }
    let named = |name: &str| names.iter().position(|found| found == name);
    named(input).or_else(|| NAMES.into_iter().find_map(named))
}

/// The tensors of a safetensors file that can be samples, by name.
fn samples_of<'b>(path: &Path, bytes: &'b [u8]) -> Result<Vec<(String, TensorView<'b>)>, Error> {
    let fail = |text: String| Error::unreadable(path, text);
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| fail(format!("not a readable safetensors file: {error}")).caused_by(error))?;
    // A file may have tensors of other types beside.
    let is_known = |tensor: &TensorView<'_>| {
        matches!(tensor.dtype(), Dtype::F32 | Dtype::F64 | Dtype::F16 | Dtype::BF16 | Dtype::U8)
    };
    let mut tensors: Vec<_> = file.tensors().into_iter().filter(|(_, tensor)| is_known(tensor)).collect();
    // The file's own order is that of a hash table.
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    if tensors.is_empty() {
        return Err(fail("expected a tensor of floats or bytes, found none".to_owned()));
    }
    Ok(tensors)
}

fn elements(tensor: &TensorView<'_>) -> Option<ArrayData> {
    Some(match tensor.dtype() {
        Dtype::F32 => ArrayData::F32(bytemuck::pod_collect_to_vec(tensor.data())),
        Dtype::F64 => ArrayData::F64(bytemuck::pod_collect_to_vec(tensor.data())),
        Dtype::F16 => ArrayData::F16(bytemuck::pod_collect_to_vec(tensor.data())),
        Dtype::BF16 => ArrayData::BF16(bytemuck::pod_collect_to_vec(tensor.data())),
        Dtype::U8 => ArrayData::U8(tensor.data().to_vec()),
        _ => return None,
    })
}
