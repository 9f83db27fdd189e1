//! Folders of the hub's cache: `models--owner--name` with `snapshots/REVISION`, whose files are links to `blobs`.

use std::path::{Path, PathBuf};

use super::names;
use crate::error::Error;
use crate::files::read_text;

/// Bytes of the name of a revision, at most.
const MOST_NAME: u64 = 1 << 10;

/// The folder of the snapshot, where the folder of a repository in the cache is given; else the folder itself.
///
/// # Errors
/// No folder; several snapshots of which none is the main one.
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
            Err(Error::usage(text).in_file(&snapshots).hint("name the folder of the snapshot that is meant"))
        }
    }
}
