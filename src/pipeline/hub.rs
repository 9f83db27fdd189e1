//! Folders of the Hugging Face cache: `models--owner--name` with `snapshots/REVISION`, whose files are links to
//! `blobs`.

use std::path::{Path, PathBuf};

use super::names;
use crate::error::Error;
use crate::files::read_text;

/// Maximum length of a revision's name in bytes.
const MOST_NAME: u64 = 1 << 10;

/// Returns the folder of the snapshot if the folder of a repository in the cache is given, else the folder itself.
///
/// # Errors
/// The path is not a folder, or there are several snapshots and none is the main one.
pub(super) fn snapshot(folder: &Path) -> Result<PathBuf, Error> {
    if !folder.is_dir() {
        return Err(Error::unreadable(folder, "expected the folder of a pipeline, found no folder"));
    }
    let snapshots = folder.join("snapshots");
    if folder.join("model_index.json").exists() || !snapshots.is_dir() {
        return Ok(folder.to_owned());
    }
    let main = folder.join("refs/main");
    if main.is_file() {
        let named = snapshots.join(read_text(&main, MOST_NAME)?.trim());
        if named.is_dir() {
            return Ok(named);
        }
    }
    match names(&snapshots)?.as_slice() {
        [one] => Ok(snapshots.join(one)),
        found => {
            let text = format!("expected one snapshot in the cache, found {}", found.len());
            Err(Error::usage(text).in_file(&snapshots).hint("give the folder of one snapshot"))
        }
    }
}
