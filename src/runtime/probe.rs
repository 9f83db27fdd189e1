//! Checks that a file is an ONNX Runtime of a version that `ort` can use, before `ort` loads it.

use std::ffi::{CStr, c_char};
use std::path::Path;

use super::error::RuntimeError;
use super::preload::loader_message;

/// The oldest supported minor version of ONNX Runtime 1.
pub const MINIMUM_VERSION: u32 = ort::sys::ORT_API_VERSION;

/// Loads the library and returns the version that it reports, or an error with the reason why it can't be used.
///
/// The file must exist. It is loaded by its absolute path, so that the loader does not search for it.
pub fn probe(path: &Path) -> Result<String, RuntimeError> {
    let refused = |reason: String| RuntimeError::LibraryRefused { path: path.to_owned(), reason };
    if !path.is_file() {
        return Err(refused("there is no such file".to_owned()));
    }
    let path = std::path::absolute(path).map_err(|error| refused(error.to_string()))?;
    read_version(&path).map_err(refused)
}

/// Returns the version of the library if it provides the required API.
#[expect(unsafe_code, reason = "asking a C library for its version")]
fn read_version(path: &Path) -> Result<String, String> {
    // SAFETY: loading runs the library's initialisers. The user named this file or a package manager put it where ONNX
    // Runtime belongs, which is the trust that any use of the library needs.
    let library = unsafe { libloading::Library::new(path) }
        .map_err(|error| format!("it cannot be loaded: {}", loader_message(&error)))?;
    // SAFETY: a symbol of this name has this type in every library that follows ONNX Runtime's C API, and nobody else
    // uses the name.
    let base = unsafe { library.get::<unsafe extern "system" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase") }
        .map_err(|_| "it is not an ONNX Runtime library (no symbol OrtGetApiBase)".to_owned())?;
    // SAFETY: the function takes nothing and returns a pointer to a static table, or null.
    let Some(base) = (unsafe { base().as_ref() }) else {
        return Err("it provides no API".to_owned());
    };
    // SAFETY: the table's functions are valid as long as the library is loaded; the version is a static C string.
    let version = unsafe {
        let version: *const c_char = (base.GetVersionString)();
        if version.is_null() {
            return Err("it reports no version".to_owned());
        }
        CStr::from_ptr(version).to_string_lossy().into_owned()
    };
    // The version is compared first, because the library prints to standard error when asked for an API that it lacks.
    let minor = minor_version(&version).ok_or_else(|| format!("it reports the version {version:?}"))?;
    if minor < MINIMUM_VERSION {
        // Unloading a library that has started threads is not safe, so it is kept.
        std::mem::forget(library);
        return Err(format!("its version is {version}, but at least 1.{MINIMUM_VERSION} is required"));
    }
    // SAFETY: as above; the result is a pointer to a static table, or null.
    let missing = unsafe { (base.GetApi)(MINIMUM_VERSION).is_null() };
    std::mem::forget(library);
    if missing {
        return Err(format!("version {version} does not provide the API of version 1.{MINIMUM_VERSION}"));
    }
    Ok(version)
}

/// Returns the version of a library that is not in use, and the execution providers that it was built with.
///
/// # Errors
/// As [`probe`].
pub fn library_providers(path: &Path) -> Result<(String, Vec<String>), RuntimeError> {
    let version = probe(path)?;
    let refused = |reason: String| RuntimeError::LibraryRefused { path: path.to_owned(), reason };
    Ok((version, providers_of(path).map_err(refused)?))
}

/// Returns the providers of a library that [`probe`] has accepted.
#[expect(unsafe_code, reason = "asking a C library for its providers")]
fn providers_of(path: &Path) -> Result<Vec<String>, String> {
    // SAFETY: as in `read_version`, which has already loaded it.
    let library = unsafe { libloading::Library::new(path) }
        .map_err(|error| format!("it cannot be loaded: {}", loader_message(&error)))?;
    // SAFETY: as in `read_version`.
    let base = unsafe { library.get::<unsafe extern "system" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase") }
        .map_err(|error| error.to_string())?;
    // SAFETY: both calls return pointers to static tables, or null; the version was checked. The library is not unloaded.
    let api = unsafe { base().as_ref().and_then(|base| (base.GetApi)(MINIMUM_VERSION).as_ref()) };
    let providers = api.map(providers_by);
    std::mem::forget(library);
    providers.ok_or_else(|| "it provides no API".to_owned())
}

/// Returns the minor number of a version that begins with `1.`.
pub(super) fn minor_version(version: &str) -> Option<u32> {
    let mut parts = version.split('.');
    match (parts.next(), parts.next()) {
        (Some("1"), Some(minor)) => minor.parse().ok(),
        _ => None,
    }
}

/// Returns the names of the execution providers that the library loaded by `ort` was built with.
pub(super) fn available_providers() -> Vec<String> {
    providers_by(ort::api())
}

/// Returns the names of the execution providers that the API of a library reports.
#[expect(unsafe_code, reason = "ort offers no list of the available providers")]
fn providers_by(api: &ort::sys::OrtApi) -> Vec<String> {
    let mut names: *mut *mut c_char = std::ptr::null_mut();
    let mut count = 0;
    // SAFETY: both pointers are valid for writing.
    let status = unsafe { (api.GetAvailableProviders)(&mut names, &mut count) };
    if !status.0.is_null() {
        // SAFETY: a status that is not null is released once, by the library that created it.
        unsafe { (api.ReleaseStatus)(status.0) };
        return Vec::new();
    }
    if names.is_null() {
        return Vec::new();
    }
    let providers = (0..usize::try_from(count).unwrap_or(0))
        // SAFETY: the library wrote `count` pointers to C strings, which live until they are released below.
        .map(|index| unsafe { CStr::from_ptr(*names.add(index)).to_string_lossy().into_owned() })
        .collect();
    // SAFETY: these are the pointer and the count that the library returned. A failure to release is only a leak.
    let _ = unsafe { (api.ReleaseAvailableProviders)(names, count) };
    providers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed() {
        assert_eq!(minor_version("1.31.1"), Some(31));
        assert_eq!(minor_version("1.17.0-dev"), Some(17));
        assert_eq!(minor_version("2.0"), None);
        assert_eq!(minor_version("nonsense"), None);
    }

    #[test]
    fn a_file_that_is_not_a_library_is_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libonnxruntime.so");
        assert!(probe(&path).unwrap_err().to_string().contains("no such file"));
        std::fs::write(&path, "not a library").unwrap();
        assert!(probe(&path).unwrap_err().to_string().contains("cannot be loaded"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn another_library_is_rejected() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let Some(libc) =
            maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("libc"))
        else {
            eprintln!("skipped: statically linked");
            return;
        };
        assert!(probe(Path::new(libc)).unwrap_err().to_string().contains("OrtGetApiBase"));
    }
}
