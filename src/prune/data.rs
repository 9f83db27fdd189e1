//! Files other than models that callers of the library read.

use std::path::{Path, PathBuf};

use crate::array::Array;
use crate::error::Error;
use crate::npz::{ArrayFile, NpzError};

/// Maximum number of bytes of a text file that people write.
const MOST_TEXT: u64 = 1 << 24;

/// Reads the arrays of a `.npz` file, or the array of a `.npy` file, by name.
///
/// # Errors
/// Fails if the file can't be read, is not in NumPy's format, or needs more memory than is available.
pub fn read_npz(path: &Path) -> Result<Vec<(String, Array)>, Error> {
    let fail = |error: NpzError| Error::unreadable(path, error.to_string()).caused_by(error);
    let mut file = ArrayFile::open(path).map_err(fail)?;
    crate::inputs::check_size(&file).map_err(|error| error.in_file(path))?;
    file.read_all().map_err(fail)
}

/// Lists the files of a folder of clean samples that are read: images, or files of arrays, in the order of their paths.
///
/// # Errors
/// Fails if a folder can't be read, or if there are no such files.
pub fn sample_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    crate::diffusion::sample_files(folder)
}

/// Reads a text file of up to 16 MiB, such as a configuration.
///
/// # Errors
/// Fails if the file can't be read, is not a regular file, is larger, or is not text.
pub fn read_text(path: &Path) -> Result<String, Error> {
    crate::files::read_text(path, MOST_TEXT)
}

/// Returns the version of an ONNX Runtime library and the execution providers that it was built with.
///
/// # Errors
/// Fails if the file is not an ONNX Runtime library, or is too old.
pub fn library_providers(library: &Path) -> Result<(String, Vec<String>), Error> {
    Ok(crate::runtime::library_providers(library)?)
}
