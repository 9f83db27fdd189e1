//! Loading the libraries that an execution provider needs before ONNX Runtime loads the provider.
//!
//! If CUDA, cuDNN and TensorRT are installed as Python packages, the dynamic loader does not search their folders.
//! The loader finds a library that is already loaded by its name, wherever it came from. The needs of a provider are
//! listed in its file ([`super::elf`]), so any version of CUDA works, and missing libraries can be named.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::elf;
use super::search_paths::sorted_entries;

/// Loads the libraries that `library` needs, directly and indirectly, dependencies first and visible to all
/// (`RTLD_GLOBAL`); `library` itself is not loaded. Libraries are loaded from `folders`, or else from where the system's
/// loader finds them. Returns the files that were loaded from `folders`.
///
/// # Errors
/// A library is not found or can't be loaded; the error names it and the library that needs it.
pub(super) fn preload_needs_of(library: &Path, folders: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    let mut loader = Loader { folders, seen: BTreeSet::new(), loaded: Vec::new() };
    loader.load_needs_of(library)?;
    loader.load_opened_late();
    Ok(loader.loaded)
}

/// Libraries that newer providers open when a node first needs them, so that their files do not declare them. These are
/// what `onnxruntime.preload_dlls()` of the Python package loads besides the declared ones.
const OPENED_LATE: [&str; 3] = ["libcudnn", "libcufft", "libnvrtc"];

struct Loader<'a> {
    folders: &'a [PathBuf],
    /// Names of libraries that were handled.
    seen: BTreeSet<String>,
    loaded: Vec<PathBuf>,
}

impl Loader<'_> {
    fn load_needs_of(&mut self, library: &Path) -> Result<(), String> {
        let needs = elf::needed(library).map_err(|reason| format!("{} can't be read: {reason}", library.display()))?;
        for name in needs {
            self.load(&name, &file_name(library))?;
        }
        Ok(())
    }

    /// Loads the library of this name and everything that it needs.
    fn load(&mut self, name: &str, needed_by: &str) -> Result<(), String> {
        // ONNX Runtime loads its own libraries.
        if name.starts_with("libonnxruntime") || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file()) else {
            return open_global(Path::new(name)).map_err(|reason| self.missing(name, needed_by, &reason));
        };
        self.load_needs_of(&path)?;
        open_global(&path)
            .map_err(|reason| format!("{} (needed by {needed_by}) can't be loaded: {reason}", path.display()))?;
        self.load_companions(&path, name);
        self.loaded.push(path);
        Ok(())
    }

    /// Loads the parts that a library opens itself when it needs them, such as `libcudnn_cnn.so.9` of `libcudnn.so.9` and
    /// `libnvrtc-builtins.so.13.0` of `libnvrtc.so.13`. Its file does not declare them; a failure is left to the library.
    fn load_companions(&mut self, path: &Path, name: &str) {
        let (Some(folder), Some(stem)) = (path.parent(), name.split(".so").next()) else { return };
        for companion in sorted_entries(folder) {
            let name = file_name(&companion);
            let is_part = name.strip_prefix(stem).is_some_and(|rest| rest.starts_with(['_', '-']));
            if is_part && name.contains(".so.") && companion.is_file() {
                // A failure is ignored: see above.
                let _ = self.load(&name, stem);
            }
        }
    }

    /// Loads the libraries that may be opened later, if they exist: whether they are needed depends on the model.
    fn load_opened_late(&mut self) {
        for folder in self.folders {
            for name in sorted_entries(folder).iter().map(|file| file_name(file)) {
                let is_versioned = |family: &str| {
                    let version = name.strip_prefix(family).and_then(|rest| rest.strip_prefix(".so."));
                    version.is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit()))
                };
                if OPENED_LATE.iter().any(|family| is_versioned(family)) {
                    // A failure is ignored: see above.
                    let _ = self.load(&name, "the provider");
                }
            }
        }
    }

    fn missing(&self, name: &str, needed_by: &str, reason: &str) -> String {
        if name.starts_with("libcuda.so") {
            return format!(
                "{name} (needed by {needed_by}) can't be loaded: {reason}; it comes with the NVIDIA driver"
            );
        }
        let package = match name.starts_with("libnvinfer") || name.starts_with("libnvonnxparser") {
            true => "tensorrt",
            false => "onnxruntime-gpu[cuda,cudnn]",
        };
        let looked = match self.folders {
            [] => "no folders of Python packages with CUDA were found".to_owned(),
            folders => {
                let folders: BTreeSet<String> = folders.iter().map(|folder| summary(folder)).collect();
                format!("searched {}", folders.into_iter().collect::<Vec<_>>().join(", "))
            }
        };
        format!(
            "{name} (needed by {needed_by}) is missing: {reason}; {looked}, and the system's folders; run `pip install \
             '{package}'` in the environment of ONNX Runtime"
        )
    }
}

/// Returns the folder as text, or for one of the many packages of CUDA the pattern of all of them.
fn summary(folder: &Path) -> String {
    match folder.parent().and_then(Path::parent) {
        Some(packages) if packages.file_name().is_some_and(|name| name == "nvidia") => {
            packages.join("*").join("lib").display().to_string()
        }
        _ => folder.display().to_string(),
    }
}

/// Returns the loader's message. The error itself only states that loading failed.
pub(super) fn loader_message(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// Loads a library for the whole process; it is never unloaded.
#[cfg(unix)]
#[expect(unsafe_code, reason = "loading a library runs its initialisers")]
fn open_global(path: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the library comes from a package of CUDA or the system's folders, and the provider that the user asked for
    // would load the same one. It is never unloaded.
    let library =
        unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map_err(|error| loader_message(&error))?;
    std::mem::forget(library);
    Ok(())
}

#[cfg(not(unix))]
fn open_global(_: &Path) -> Result<(), String> {
    Err("libraries are loaded in advance on Linux only".to_owned())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn needs_of_this_program_are_found() {
        let program = std::env::current_exe().unwrap();
        assert_eq!(preload_needs_of(&program, &[]), Ok(Vec::new()));
    }

    #[test]
    fn a_missing_library_is_named_with_the_library_that_needs_it() {
        let folders = [PathBuf::from("/nonexistent/nvidia/cublas/lib")];
        let mut loader = Loader { folders: &folders, seen: BTreeSet::new(), loaded: Vec::new() };
        let error = loader.load("libcublasLt_not_there.so.12", "libonnxruntime_providers_cuda.so").unwrap_err();
        for part in
            ["libcublasLt_not_there.so.12", "providers_cuda.so) is missing", "/nonexistent/nvidia", "pip install"]
        {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(loader.load("libonnxruntime_providers_shared.so", "x"), Ok(()));
    }

    #[test]
    fn a_file_that_is_not_a_library_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("libcudart_broken.so.13"), "text").unwrap();
        let folders = [folder.path().to_owned()];
        let mut loader = Loader { folders: &folders, seen: BTreeSet::new(), loaded: Vec::new() };
        let error = loader.load("libcudart_broken.so.13", "provider").unwrap_err();
        assert!(error.contains("libcudart_broken.so.13 can't be read: it is not"), "{error}");
    }
}
