//! NumPy's `.npy` and `.npz` files: what is read becomes an [`Array`], and arrays are written so that NumPy reads them.
//!
//! The header is parsed here, since half precision and `bfloat16` are needed and arrays of any element type go into one
//! file. NumPy has no `bfloat16`; the `ml_dtypes` package stores it as two opaque bytes (`V2`), and so does this module.

use std::fs::File;
use std::io::{Cursor, Read, Write};
use std::path::Path;

use crate::array::{Array, SizeMismatch};
use crate::files::Outputs;

mod elements;
mod header;

use elements::decode;
use header::Header;

/// Why a file of arrays could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NpzError {
    /// The file system refused.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The archive around the arrays is damaged or uses a feature that NumPy does not use.
    #[error("not a readable .npz archive: {0}")]
    Archive(#[from] zip::result::ZipError),
    /// An array in the file is not a `.npy` array that can be read.
    #[error("array {name:?}: {reason}")]
    Malformed {
        /// The name of the array, empty for a lone `.npy`.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// An array to be written has more or fewer elements than its dimensions hold.
    #[error("array {name:?}: {source}")]
    Size {
        /// The name of the array.
        name: String,
        /// What disagrees.
        source: SizeMismatch,
    },
}

/// Arrays above this many bytes are refused, since a damaged header would otherwise ask for all memory.
const BYTE_LIMIT: u64 = 1 << 36;

/// Reads all arrays of a `.npz` file, in the order in which they are stored, or the one array of a `.npy` file under
/// the file's own name without the extension.
pub fn read(path: &Path) -> Result<Vec<(String, Array)>, NpzError> {
    let mut file = File::open(path)?;
    let mut magic = [0; 6];
    let length = file.read(&mut magic)?;
    if magic[..length] == *header::MAGIC {
        let mut bytes = magic.to_vec();
        file.read_to_end(&mut bytes)?;
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let array = from_npy(&bytes).map_err(|reason| NpzError::Malformed { name: name.clone(), reason })?;
        return Ok(vec![(name, array)]);
    }
    read_archive(zip::ZipArchive::new(file)?)
}

/// Reads all arrays of a `.npz` archive in memory.
pub fn read_bytes(bytes: &[u8]) -> Result<Vec<(String, Array)>, NpzError> {
    read_archive(zip::ZipArchive::new(Cursor::new(bytes))?)
}

/// Reads every member of an open archive.
fn read_archive<R: Read + std::io::Seek>(mut archive: zip::ZipArchive<R>) -> Result<Vec<(String, Array)>, NpzError> {
    let mut arrays = Vec::with_capacity(archive.len());
    for index in 0..archive.len() {
        let member = archive.by_index(index)?;
        let name = member.name().strip_suffix(".npy").unwrap_or(member.name()).to_owned();
        let mut bytes = Vec::new();
        // The size in the directory is only a claim: what is read is limited, not what is announced.
        member.take(BYTE_LIMIT).read_to_end(&mut bytes)?;
        let array = from_npy(&bytes).map_err(|reason| NpzError::Malformed { name: name.clone(), reason })?;
        arrays.push((name, array));
    }
    Ok(arrays)
}

/// Writes the arrays as a `.npz` file.
///
/// The file is complete under its name or not there at all: it is written beside `path` and then renamed.
pub fn write<'a>(path: &Path, arrays: impl IntoIterator<Item = (&'a str, &'a Array)>) -> Result<(), NpzError> {
    let bytes = to_bytes(arrays)?;
    let mut outputs = Outputs::default();
    outputs.write(path, |file| file.write_all(&bytes))?;
    outputs.publish(&[]).map_err(|error| NpzError::Io(std::io::Error::other(error)))
}

/// The bytes of a `.npz` archive with the arrays. Equal arrays give equal bytes: no time of writing is stored.
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

/// The array of which these are the bytes of a `.npy` file; the error says in words what is wrong.
pub fn from_npy(bytes: &[u8]) -> Result<Array, String> {
    let (header, data) = Header::parse(bytes)?;
    let count = crate::array::element_count(&header.dims).ok_or("the shape overflows")?;
    let expected = count.checked_mul(header.element_type.byte_count()).ok_or("the shape overflows")?;
    let data = data
        .get(..expected)
        .ok_or_else(|| format!("the shape {:?} needs {expected} bytes, {} are there", header.dims, data.len()))?;
    let data = decode(header.element_type, data, header.big_endian);
    if header.fortran_order && header.dims.len() > 1 {
        return Ok(elements::to_row_major(header.dims, &data));
    }
    Array::new(header.dims, data).map_err(|error| error.to_string())
}

/// The bytes of a `.npy` file with the array.
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
