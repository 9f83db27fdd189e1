//! What callers of the library read apart from models.

use std::path::{Path, PathBuf};

use crate::array::Array;
use crate::error::Error;
use crate::npz::{ArrayFile, NpzError};

/// Bytes of a text that people write, at most.
const MOST_TEXT: u64 = 1 << 24;

/// The arrays of a `.npz` file, or the one of a `.npy` file, by name.
///
/// # Errors
/// The file can't be read, is no file of NumPy's, or takes more memory than there is.
pub fn read_npz(path: &Path) -> Result<Vec<(String, Array)>, Error> {
    let fail = |error: NpzError| Error::unreadable(path, error.to_string()).caused_by(error);
    let mut file = ArrayFile::open(path).map_err(fail)?;
    crate::inputs::check_size(&file).map_err(|error| error.in_file(path))?;
    file.read_all().map_err(fail)
}

/// The files that are read of a folder of clean samples: images, or files of arrays, in the order of their paths.
///
/// # Errors
/// A folder can't be read, or there are no such files.
pub fn sample_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    crate::diffusion::sample_files(folder)
}

/// The text of a file of a few megabytes at most, such as a configuration.
///
/// # Errors
/// The file can't be read, is no regular file, is larger, or is no text.
pub fn read_text(path: &Path) -> Result<String, Error> {
    crate::files::read_text(path, MOST_TEXT)
}

/// The version of a library of ONNX Runtime and the execution providers that it was built with.
///
/// # Errors
/// The file is no library of ONNX Runtime, or one that is too old.
pub fn library_providers(library: &Path) -> Result<(String, Vec<String>), Error> {
    Ok(crate::runtime::library_providers(library)?)
}
