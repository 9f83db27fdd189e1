//! The choice of the ONNX Runtime library.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

use super::error::RuntimeError;
use super::probe::probe;
use super::search_paths::{Place, inside, library_in, searched};

/// The library that will be used.
#[derive(Clone, Debug, PartialEq)]
pub struct LibraryFound {
    /// The file, as an absolute path.
    pub path: PathBuf,
    /// How it was found, in words.
    pub how: &'static str,
    /// The version that it reports.
    pub version: String,
}

/// A file or folder that may be, or contain, a library.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The file or folder that is searched.
    pub place: PathBuf,
    /// Why it is searched, in words.
    pub how: &'static str,
    /// The library file there. `None`: there is none.
    pub library: Option<PathBuf>,
    /// Why the library there can't be used. `None`: it can, or it was not tested.
    pub refused: Option<String>,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.library.as_ref().unwrap_or(&self.place);
        write!(f, "{} ({})", place.display(), self.how)?;
        match (&self.library, &self.refused) {
            (Some(_), Some(reason)) => write!(f, ": {reason}"),
            (None, _) => write!(f, ": not found"),
            (Some(_), None) => Ok(()),
        }
    }
}

/// The text for a library that was given by an option.
const NAMED: &str = "named by --onnxruntime";
/// The text for a library that was given in the environment.
const IN_ENVIRONMENT: &str = "named by ORT_DYLIB_PATH";

/// Returns all candidates in the order of preference. Nothing is loaded.
///
/// A library that is given, by `explicit` or else by `ORT_DYLIB_PATH`, is the only candidate: falling back on another one
/// would hide a mistake in the path.
pub fn candidates(explicit: Option<&Path>) -> Vec<Candidate> {
    let environment = env::var_os("ORT_DYLIB_PATH").filter(|value| !value.is_empty()).map(PathBuf::from);
    let named = match (explicit, &environment) {
        (Some(path), _) => Some((path, NAMED)),
        (None, Some(path)) => Some((path.as_path(), IN_ENVIRONMENT)),
        (None, None) => None,
    };
    match named {
        Some((path, how)) => vec![named_candidate(path, how)],
        None => searched()
            .into_iter()
            .map(|Place { folder, how }| Candidate { library: library_in(&folder), place: folder, how, refused: None })
            .collect(),
    }
}

/// Returns the candidate for a path that the user gave: a file, a folder with the library, or the root of an environment
/// or of an unpacked release, which contain it in a subfolder.
fn named_candidate(path: &Path, how: &'static str) -> Candidate {
    let place = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let library =
        if place.is_file() { Some(place.clone()) } else { inside(&place).iter().find_map(|folder| library_in(folder)) };
    Candidate { place, how, library, refused: None }
}

/// Returns the first candidate that is an ONNX Runtime of a sufficient version.
///
/// Each library is loaded to find that out. The order is: `explicit` (a file or a folder), `ORT_DYLIB_PATH`, beside the
/// executable, the virtual environments `.venv*` of the current folder and those above it, the active Python
/// environment, the Python on the PATH, the user's Python packages, and the folders of the dynamic loader.
pub fn find_library(explicit: Option<&Path>) -> Result<LibraryFound, RuntimeError> {
    let mut candidates = candidates(explicit);
    for candidate in &mut candidates {
        let Some(library) = &candidate.library else {
            continue;
        };
        match probe(library) {
            Ok(version) => {
                return Ok(LibraryFound { path: library.clone(), how: candidate.how, version });
            }
            Err(RuntimeError::LibraryRefused { reason, .. }) => candidate.refused = Some(reason),
            Err(other) => return Err(other),
        }
    }
    match candidates.as_slice() {
        // For a library that was given, the error states what is wrong with it, not where it was searched.
        [candidate] if candidate.how == NAMED || candidate.how == IN_ENVIRONMENT => {
            let reason = candidate.refused.clone().unwrap_or_else(|| {
                if candidate.place.is_dir() {
                    "there is no libonnxruntime in this folder"
                } else {
                    "there is no such file"
                }
                .to_owned()
            });
            Err(RuntimeError::LibraryRefused {
                path: candidate.place.clone(),
                reason: format!("{reason} ({})", candidate.how),
            })
        }
        _ => Err(RuntimeError::LibraryMissing { candidates }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_library_is_the_only_candidate() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libonnxruntime.so.1.20.0");
        std::fs::write(&library, "").unwrap();
        let by_folder = candidates(Some(folder.path()));
        assert_eq!(by_folder.len(), 1);
        assert_eq!(by_folder[0].library.as_deref(), Some(library.as_path()));
        assert_eq!(candidates(Some(&library))[0].library.as_deref(), Some(library.as_path()));
    }

    #[test]
    fn an_environment_may_be_given_by_its_root() {
        let root = tempfile::tempdir().unwrap();
        let capi = root.path().join("lib/python3.12/site-packages/onnxruntime/capi");
        std::fs::create_dir_all(&capi).unwrap();
        std::fs::write(capi.join("libonnxruntime.so.1.31.1"), "").unwrap();
        assert_eq!(candidates(Some(root.path()))[0].library, Some(capi.join("libonnxruntime.so.1.31.1")));
    }

    #[test]
    fn errors_state_what_is_wrong_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let error = find_library(Some(&folder.path().join("absent.so"))).unwrap_err();
        assert!(error.to_string().contains("there is no such file (named by --onnxruntime)"), "{error}");
        let error = find_library(Some(folder.path())).unwrap_err();
        assert!(error.to_string().contains("no libonnxruntime in this folder"), "{error}");
        assert!(error.hint().unwrap().contains("pip install onnxruntime"));
        let error = RuntimeError::LibraryMissing {
            candidates: vec![Candidate { place: "/a".into(), how: "system libraries", library: None, refused: None }],
        };
        assert!(error.to_string().ends_with(":\n  /a (system libraries): not found"), "{error}");
    }
}
