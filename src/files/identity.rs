//! When two paths are one file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Links that are followed from a path before they count as a circle.
const MOST_LINKS: usize = 40;

/// The folder that a path lies in.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What the system knows a file by.
#[cfg(unix)]
type FileId = (u64, u64);
#[cfg(not(unix))]
type FileId = PathBuf;

#[cfg(unix)]
fn file_id(path: &Path) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;
    path.metadata().ok().map(|data| (data.dev(), data.ino()))
}

#[cfg(not(unix))]
fn file_id(path: &Path) -> Option<FileId> {
    path.canonicalize().ok()
}

/// A folder and a name in it: where a file is or would be.
type Place = (FileId, OsString);

fn place(path: &Path) -> Option<Place> {
    let name = path.file_name()?;
    // Where names differ by more than their case.
    let name = if cfg!(any(windows, target_os = "macos")) { name.to_ascii_lowercase() } else { name.to_owned() };
    Some((file_id(parent(path))?, name))
}

/// What makes two paths one file: the file itself, or the place where there is none yet, by whatever links, hard links
/// and detours a path leads there.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    file: Option<FileId>,
    /// That of the path, and those that it links to.
    places: Vec<Place>,
}

impl Identity {
    pub(super) fn of(path: &Path) -> Self {
        let mut places = Vec::new();
        let mut at: PathBuf = path.to_owned();
        for _ in 0..MOST_LINKS {
            places.extend(place(&at));
            match at.read_link() {
                Ok(target) => at = parent(&at).join(target),
                Err(_) => break,
            }
        }
        Self { file: file_id(path), places }
    }

    /// Whether there is a file.
    pub(super) fn exists(&self) -> bool {
        self.file.is_some()
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.file.is_some() && self.file == other.file) || self.places.iter().any(|place| other.places.contains(place))
    }
}
