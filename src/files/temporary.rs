//! Temporary files and folders. They are removed when they are dropped, and when a signal ends the process.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tempfile::{Builder, TempDir, TempPath};

/// The prefix of the names of temporary files and folders.
pub(super) const PREFIX: &str = ".onnx-diffprune-";

/// Number of attempts to remove a folder in which another thread still creates files, and the pause between two
/// attempts.
const ATTEMPTS: usize = 50;
const PAUSE: Duration = Duration::from_millis(4);

/// How a temporary file or folder is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    /// A folder with everything in it.
    Folder,
    /// A folder, only if it is empty.
    EmptyFolder,
}

type Open = BTreeMap<PathBuf, Kind>;

/// All temporary files and folders that this process created and did not remove yet.
static OPEN: Mutex<Open> = Mutex::new(Open::new());

fn open() -> MutexGuard<'static, Open> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Creates something temporary and registers it. Both happen as one step with respect to [`end`].
fn noted<T>(
    kind: Kind,
    make: impl FnOnce() -> std::io::Result<T>,
    path: impl FnOnce(&T) -> &Path,
) -> std::io::Result<(T, PathBuf)> {
    let mut open = open();
    let made = make()?;
    let path = std::path::absolute(path(&made))?;
    open.insert(path.clone(), kind);
    Ok((made, path))
}

/// A guard returned by [`end`]: while it exists, no temporary file is created and no output is moved to its
/// destination.
#[derive(Debug)]
#[must_use = "temporary files may be created again after this is dropped"]
pub struct Ending(#[expect(dead_code, reason = "held, not read")] MutexGuard<'static, Open>);

/// Removes all temporary files and folders of this process, for a program that is about to end, for example on a
/// signal.
///
/// Outputs that are being moved to their destinations are all moved first. While the result exists, threads that create
/// or remove temporary files or publish outputs wait.
pub fn end() -> Ending {
    let mut open = open();
    for (path, kind) in std::mem::take(&mut *open) {
        remove(&path, kind);
    }
    Ending(open)
}

/// Removes a temporary file or folder. Errors are ignored, because the process ends.
fn remove(path: &Path, kind: Kind) {
    let _ = match kind {
        Kind::File => std::fs::remove_file(path),
        Kind::EmptyFolder => std::fs::remove_dir(path),
        Kind::Folder => {
            for _ in 0..ATTEMPTS {
                if std::fs::remove_dir_all(path).is_ok() || !path.exists() {
                    return;
                }
                std::thread::sleep(PAUSE);
            }
            Ok(())
        }
    };
}

/// Runs `work` as one step with respect to [`end`], which waits until it is done.
pub(super) fn undisturbed<T>(work: impl FnOnce() -> T) -> T {
    let _open = open();
    work()
}

/// A temporary folder that is removed with everything in it.
///
/// A lock file in it shows other runs that it is in use. If a run was killed, the lock is released but the folder
/// remains: the next run removes it.
#[derive(Debug)]
pub(crate) struct TemporaryFolder {
    folder: Option<TempDir>,
    lock: Option<File>,
    path: PathBuf,
}

impl TemporaryFolder {
    /// Creates a hidden folder in another folder.
    pub(crate) fn inside(folder: &Path) -> std::io::Result<Self> {
        Self::made(folder, PREFIX)
    }

    /// Creates a folder in the system's folder for temporary files.
    pub(crate) fn anywhere() -> std::io::Result<Self> {
        Self::made(&std::env::temp_dir(), PREFIX.trim_start_matches('.'))
    }

    fn made(place: &Path, prefix: &str) -> std::io::Result<Self> {
        remove_abandoned(place, prefix);
        let (folder, path) = noted(Kind::Folder, || Builder::new().prefix(prefix).tempdir_in(place), TempDir::path)?;
        // Some network file systems have no locks. There, the only drawback is that an abandoned folder is not
        // recognised.
        let lock = lock(&path).ok();
        Ok(Self { folder: Some(folder), lock, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Creates a new file in it.
    pub(crate) fn create(&self, name: &str) -> std::io::Result<File> {
        File::create_new(self.path.join(name))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let mut open = open();
        drop(self.lock.take());
        drop(self.folder.take());
        open.remove(&self.path);
    }
}

/// Returns the path of a temporary folder's lock file. No other file in it has this name.
fn lock_path(folder: &Path) -> Option<PathBuf> {
    let mut name = folder.file_name()?.to_owned();
    name.push(".lock");
    Some(folder.join(name))
}

/// Locks a temporary folder. The lock file gets its name only after it is locked, so that no other run finds it
/// unlocked.
fn lock(folder: &Path) -> std::io::Result<File> {
    let path = lock_path(folder).ok_or(std::io::ErrorKind::InvalidInput)?;
    let before = path.with_extension("new");
    let file = File::create(&before)?;
    file.try_lock().map_err(std::io::Error::from)?;
    std::fs::rename(before, path)?;
    Ok(file)
}

/// Removes temporary folders of runs that no longer exist. Ignores folders that are in use, have no lock, or can't be
/// removed.
fn remove_abandoned(place: &Path, prefix: &str) {
    for entry in place.read_dir().into_iter().flatten().flatten() {
        let path = entry.path();
        let is_named_so = entry.file_name().to_string_lossy().starts_with(prefix);
        if !is_named_so || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let lock = lock_path(&path).and_then(|path| File::open(path).ok());
        if lock.is_some_and(|lock| lock.try_lock().is_ok()) {
            remove(&path, Kind::Folder);
        }
    }
}

/// A file that is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct TemporaryFile {
    file: Option<TempPath>,
    path: PathBuf,
}

impl TemporaryFile {
    /// Creates a hidden file in a folder, with the default permissions of the user's files, and writes its content.
    pub(crate) fn inside(
        folder: &Path,
        content: impl FnOnce(&mut File) -> std::io::Result<()>,
    ) -> std::io::Result<Self> {
        let mut builder = Builder::new();
        builder.prefix(PREFIX).suffix(".tmp");
        #[cfg(unix)]
        {
            // Temporary files are private by default, but an output should be as readable as any file.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let (named, path) = noted(Kind::File, || builder.tempfile_in(folder), |file| file.path())?;
        // On Windows, nobody can read or rename a file that is open for writing here.
        let (mut file, named) = named.into_parts();
        let made = Self { file: Some(named), path };
        content(&mut file)?;
        Ok(made)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let mut open = open();
        drop(self.file.take());
        open.remove(&self.path);
    }
}

/// A new folder that is removed when dropped if it is empty.
#[derive(Debug)]
pub(crate) struct NewFolder(PathBuf);

impl NewFolder {
    /// Creates a folder. Returns `None` if it exists already.
    pub(crate) fn at(path: &Path) -> std::io::Result<Option<Self>> {
        if path.is_dir() {
            return Ok(None);
        }
        let (_, path) = noted(Kind::EmptyFolder, || std::fs::create_dir(path).map(|()| path), |path| path)?;
        Ok(Some(Self(path)))
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        let mut open = open();
        remove(&self.0, Kind::EmptyFolder);
        open.remove(&self.0);
    }
}
