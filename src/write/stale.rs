//! External data that nothing names once a model is replaced.

use std::path::{Path, PathBuf};

use crate::files::{is_same_file, parent};
use crate::graph::located::named_data_files;

/// The data files beside the model at `path` that it alone names, but for `needed` ones: what would be left over when
/// another file takes its place.
///
/// A file stays if any other model of the folder names it, or might: one that can't be read does. So does whatever is no
/// regular file, such as a link into a cache.
pub(super) fn stale_data(path: &Path, needed: &[PathBuf]) -> Vec<PathBuf> {
    let Some(named) = named_data_files(path) else { return Vec::new() };
    let is_plain = |file: &PathBuf| file.symlink_metadata().is_ok_and(|found| found.is_file());
    let is_needed = |file: &PathBuf| needed.iter().any(|other| is_same_file(file, other));
    let mut stale: Vec<PathBuf> = named.into_iter().filter(|file| is_plain(file) && !is_needed(file)).collect();
    if stale.is_empty() {
        return stale;
    }
    let Ok(entries) = parent(path).read_dir() else { return Vec::new() };
    for entry in entries {
        let Ok(other) = entry.map(|entry| entry.path()) else { return Vec::new() };
        let is_model = other.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("onnx"));
        if !is_model || is_same_file(&other, path) {
            continue;
        }
        let Some(named) = named_data_files(&other) else { return Vec::new() };
        stale.retain(|file| !named.iter().any(|other| is_same_file(file, other)));
    }
    stale
}
