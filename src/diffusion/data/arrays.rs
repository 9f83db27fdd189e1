//! Files of arrays. Only their headers are read until an array is needed.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use crate::array::ElementType;
use crate::error::Error;
use crate::files::map;
use crate::npz::{ArrayFile, NpzError, StoredArray};
use crate::runtime::check_memory;

/// Names by which the array of samples is recognised in a file with several arrays.
const NAMES: [&str; 8] = ["samples", "sample", "images", "latents", "x0", "data", "x", "arr_0"];

/// The extensions of files of arrays.
const KINDS: [&str; 3] = ["npy", "npz", "safetensors"];

/// Returns whether the extension is that of a file of arrays.
pub(super) fn is_array_file(path: &Path) -> bool {
    kind(path).is_some_and(|kind| KINDS.contains(&kind.as_str()))
}

fn kind(path: &Path) -> Option<String> {
    path.extension().map(|kind| kind.to_string_lossy().to_ascii_lowercase())
}

/// An open file of arrays.
#[derive(Debug)]
pub(super) struct ArraysOfFile {
    path: PathBuf,
    form: Form,
}

#[derive(Debug)]
enum Form {
    NumPy(ArrayFile),
    Safetensors(Vec<Tensor>),
}

/// A tensor of a safetensors file, or its type if arrays do not support it.
#[derive(Debug)]
struct Tensor {
    name: String,
    array: Result<StoredArray, Dtype>,
}

impl ArraysOfFile {
    /// Opens a `.npy`, `.npz` or `.safetensors` file.
    ///
    /// # Errors
    /// The file can't be read or is none of these.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let form = match kind(path).as_deref() {
            Some("safetensors") => Form::Safetensors(tensors(path)?),
            Some("npy" | "npz") => Form::NumPy(ArrayFile::map(path).map_err(|error| failed(path, error))?),
            _ if !path.exists() => return Err(Error::unreadable(path, "does not exist")),
            _ => {
                return Err(Error::unreadable(
                    path,
                    "expected a folder of images, or a .npy, .npz or .safetensors file of samples",
                ));
            }
        };
        Ok(Self { path: path.to_owned(), form })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the names of the arrays. The single array of a `.npy` file has the name of its file.
    pub(super) fn names(&self) -> Vec<&str> {
        match &self.form {
            Form::NumPy(file) => file.entries().iter().map(|entry| entry.name()).collect(),
            Form::Safetensors(tensors) => tensors.iter().map(|tensor| tensor.name.as_str()).collect(),
        }
    }

    /// Returns the shape and element type of the array with this index among the names.
    ///
    /// # Errors
    /// Its header can't be read, or its element type is not supported.
    pub(super) fn header(&self, at: usize) -> Result<(&[usize], ElementType), Error> {
        match &self.form {
            Form::NumPy(file) => {
                let entry = &file.entries()[at];
                let header = entry.dims().and_then(|dims| Ok((dims, entry.element_type()?)));
                header.map_err(|error| failed(&self.path, error))
            }
            Form::Safetensors(tensors) => {
                let array = tensors[at].array().map_err(|error| error.in_file(&self.path))?;
                Ok((array.dims(), array.element_type()))
            }
        }
    }

    /// Returns the index of the array of samples: the array named like the network's input, else the only array of
    /// floats or bytes, else the array with a usual name.
    ///
    /// # Errors
    /// There is no such array.
    pub(super) fn place_of_samples(&self, input: &str) -> Result<usize, Error> {
        let names = self.names();
        let named = |name: &str| names.iter().position(|found| *found == name);
        let can_be = |at: &usize| {
            let is_sample = |element_type: ElementType| element_type.is_float() || element_type == ElementType::U8;
            // An array with an unreadable header is a candidate: the error is reported when it is chosen.
            self.header(*at).map_or(matches!(self.form, Form::NumPy(_)), |(_, element_type)| is_sample(element_type))
        };
        let candidates: Vec<usize> = (0..names.len()).filter(can_be).collect();
        let only = match (candidates.as_slice(), names.len()) {
            (&[only], _) => Some(only),
            ([], 1) => Some(0),
            _ => None,
        };
        named(input).or(only).or_else(|| NAMES.into_iter().find_map(named)).ok_or_else(|| {
            let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            Error::unreadable(
                &self.path,
                format!("expected a single array of samples, or one named {input:?}, found {found}"),
            )
        })
    }

    /// Returns the array with this index among the names: mapped from the file, or read completely if it can't be
    /// mapped.
    ///
    /// # Errors
    /// The array can't be read, or there is no memory for it.
    pub(super) fn array(&mut self, at: usize) -> Result<StoredArray, Error> {
        match &mut self.form {
            Form::Safetensors(tensors) => tensors[at].array().cloned().map_err(|error| error.in_file(&self.path)),
            Form::NumPy(file) => {
                if !file.is_in_place(at) {
                    let entry = &file.entries()[at];
                    let bytes = entry.byte_count().map_err(|error| failed(&self.path, error))?;
                    // The memory holds its bytes, its elements, and the elements in row-major order.
                    check_memory(bytes.saturating_mul(3)).map_err(|text| {
                        Error::unreadable(&self.path, format!("array {:?} can't be read: {text}", entry.name()))
                            .hint("save it with numpy.save in row-major order, so that single rows can be read")
                    })?;
                }
                file.stored(at).map_err(|error| failed(&self.path, error))
            }
        }
    }
}

impl Tensor {
    fn array(&self) -> Result<&StoredArray, Error> {
        self.array.as_ref().map_err(|dtype| {
            let name = &self.name;
            Error::usage(format!("tensor {name:?}: expected floats, integers or booleans, found {dtype:?}"))
                .of_kind(crate::error::ErrorKind::Unreadable)
        })
    }
}

fn failed(path: &Path, error: NpzError) -> Error {
    Error::unreadable(path, error.to_string()).caused_by(error)
}

/// Maps a safetensors file and returns its tensors, sorted by name.
fn tensors(path: &Path) -> Result<Vec<Tensor>, Error> {
    let bytes =
        map(path).map_err(|error| Error::unreadable(path, format!("can't be read: {error}")).caused_by(error))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| {
        Error::unreadable(path, format!("not a readable safetensors file: {error}")).caused_by(error)
    })?;
    let mut tensors: Vec<Tensor> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let stored = |element_type| {
                let data = bytes.slice_ref(view.data());
                StoredArray::new(view.shape().to_vec(), element_type, false, data)
            };
            let array = element_type(view.dtype()).and_then(stored).ok_or(view.dtype());
            Tensor { name, array }
        })
        .collect();
    // The order in the file is arbitrary: it comes from a hash table.
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

fn element_type(dtype: Dtype) -> Option<ElementType> {
    Some(match dtype {
        Dtype::F32 => ElementType::F32,
        Dtype::F64 => ElementType::F64,
        Dtype::F16 => ElementType::F16,
        Dtype::BF16 => ElementType::BF16,
        Dtype::I64 => ElementType::I64,
        Dtype::I32 => ElementType::I32,
        Dtype::I16 => ElementType::I16,
        Dtype::I8 => ElementType::I8,
        Dtype::U8 => ElementType::U8,
        Dtype::U16 => ElementType::U16,
        Dtype::U32 => ElementType::U32,
        Dtype::U64 => ElementType::U64,
        Dtype::BOOL => ElementType::Bool,
        _ => return None,
    })
}
