//! NumPy's `.npy` and `.npz` files: reads them as [`Array`]s, and writes arrays in a form that NumPy reads.
//!
//! The header is parsed here, since half precision and `bfloat16` are needed and one file holds arrays of different
//! element types. NumPy has no `bfloat16`; the `ml_dtypes` package stores it as two opaque bytes (`V2`), and so does
//! this module.

use std::io::{Cursor, Write};
use std::path::Path;

use crate::array::{Array, SizeMismatch};
use crate::files::Outputs;

mod elements;

mod file;

mod header;

mod stored;

pub use file::{ArrayFile, Entry};
pub use stored::{StoredArray, from_bytes};

/// Why a file of arrays could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NpzError {
    /// An error of the file system.
    #[error("can't be read: {0}")]
    Io(#[from] std::io::Error),
    /// The archive around the arrays is damaged or uses a feature that NumPy does not use.
    #[error("neither a .npy array nor a readable .npz archive: {0}")]
    Archive(#[from] zip::result::ZipError),
    /// An array in the file is not a `.npy` array that can be read.
    #[error("array {name:?}: {reason}")]
    Malformed {
        /// The name of the array; empty for a single `.npy`.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// An array to be written has more or fewer elements than its dimensions hold.
    #[error("array {name:?}: {source}")]
    Size {
        /// The name of the array.
        name: String,
        /// The sizes that disagree.
        source: SizeMismatch,
    },
}

/// Reads all arrays of a `.npz` file, in the order in which they are stored, or the array of a `.npy` file, named after
/// the file without its extension.
pub fn read(path: &Path) -> Result<Vec<(String, Array)>, NpzError> {
    ArrayFile::open(path)?.read_all()
}

/// Reads all arrays of a `.npz` archive in memory.
pub fn read_bytes(bytes: &[u8]) -> Result<Vec<(String, Array)>, NpzError> {
    ArrayFile::from_bytes(bytes.to_vec(), "")?.read_all()
}

/// Writes the arrays as a `.npz` file.
///
/// The file appears under its name only when it is complete: it is written next to `path` and then renamed.
pub fn write<'a>(path: &Path, arrays: impl IntoIterator<Item = (&'a str, &'a Array)>) -> Result<(), NpzError> {
    let bytes = to_bytes(arrays)?;
    let mut outputs = Outputs::default();
    outputs.write(path, |file| file.write_all(&bytes))?;
    outputs.publish(&[]).map_err(|error| NpzError::Io(std::io::Error::other(error)))
}

/// Returns a `.npz` archive with the arrays. Equal arrays produce equal bytes: no time is stored.
pub fn to_bytes<'a>(arrays: impl IntoIterator<Item = (&'a str, &'a Array)>) -> Result<Vec<u8>, NpzError> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, array) in arrays {
        let bytes = to_npy(array).map_err(|source| NpzError::Size { name: name.to_owned(), source })?;
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored)
            .last_modified_time(zip::DateTime::default())
            .large_file(bytes.len() as u64 > u64::from(u32::MAX / 2));
        archive.start_file(format!("{name}.npy"), options)?;
        archive.write_all(&bytes)?;
    }
    Ok(archive.finish()?.into_inner())
}

/// Returns a `.npy` file with the array.
pub fn to_npy(array: &Array) -> Result<Vec<u8>, SizeMismatch> {
    if crate::array::element_count(&array.dims) != Some(array.data.len()) {
        return Err(SizeMismatch { dims: array.dims.clone(), element_count: array.data.len() });
    }
    let mut bytes = header::to_bytes(array.element_type(), &array.dims);
    array.data.append_bytes(&mut bytes);
    Ok(bytes)
}

#[cfg(test)]
mod tests;
