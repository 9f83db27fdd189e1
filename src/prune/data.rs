//! What callers of the library read apart from models.

use std::path::Path;

use crate::array::Array;
use crate::error::Error;

/// The arrays of a `.npz` file, or the one of a `.npy` file, by name.
///
/// # Errors
/// The file can't be read or is no file of NumPy's.
pub fn read_npz(path: &Path) -> Result<Vec<(String, Array)>, Error> {
    crate::npz::read(path).map_err(|error| Error::unreadable(path, error.to_string()).caused_by(error))
}

/// The version of a library of ONNX Runtime and the execution providers that it was built with.
///
/// # Errors
/// The file is no library of ONNX Runtime, or one that is too old.
pub fn library_providers(library: &Path) -> Result<(String, Vec<String>), Error> {
    Ok(crate::runtime::library_providers(library)?)
}
