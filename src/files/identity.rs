//! The identity of files: whether two paths are the same file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Maximum number of links that are followed from a path before they count as a cycle.
const MOST_LINKS: usize = 40;

/// Returns the parent folder of a path, or `.`.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The system's identifier of a file.
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

/// A folder and a name in it: the location of a file that exists or may be created.
type Place = (FileId, OsString);

fn place(path: &Path) -> Option<Place> {
    let name = path.file_name()?;
    // On these systems, file names that differ only in case are the same.
    let name = if cfg!(any(windows, target_os = "macos")) { name.to_ascii_lowercase() } else { name.to_owned() };
    Some((file_id(parent(path))?, name))
}

/// The identity of a path: the existing file, or the location if there is none yet, independent of symbolic links, hard
/// links and detours in the path.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    file: Option<FileId>,
    /// The location of the path, and those of all links on the way.
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

    /// Returns whether the file exists.
    pub(super) fn exists(&self) -> bool {
        self.file.is_some()
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.file.is_some() && self.file == other.file) || self.places.iter().any(|place| other.places.contains(place))
    }
}
