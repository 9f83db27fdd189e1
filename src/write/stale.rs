//! External data that is no longer used after a model is replaced.

use std::path::{Path, PathBuf};

use crate::files::{is_same_file, parent};
use crate::graph::located::named_data_files;

/// Returns the data files in the folder of the model at `path` that only this model uses, except `needed` ones: they
/// would be left over when another file replaces the model.
///
/// A file is kept if another model in the folder uses it, or might use it because that model can't be read. Files that
/// are not regular, such as links into a cache, are kept too.
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
