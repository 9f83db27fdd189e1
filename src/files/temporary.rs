//! Temporary files and folders: gone when they are dropped, and when a signal ends the process.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tempfile::{Builder, TempDir, TempPath};

/// What the names of temporary files and folders begin with.
pub(super) const PREFIX: &str = ".onnx-diffprune-";

/// Tries to remove a folder in which another thread is still making files, and the pause between two.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(4);

/// How something temporary is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    /// With all that is in it.
    Folder,
    /// If nothing is in it.
    EmptyFolder,
}

type Open = BTreeMap<PathBuf, Kind>;

/// Everything temporary that this process has made and not yet removed.
static OPEN: Mutex<Open> = Mutex::new(Open::new());

fn open() -> MutexGuard<'static, Open> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes something temporary and notes it, in one step as [`end`] sees it.
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

/// What [`end`] returns: while it lives, nothing temporary is made and no output takes its place.
#[derive(Debug)]
#[must_use = "what is temporary may be made again once this is dropped"]
pub struct Ending(#[expect(dead_code, reason = "held, not read")] MutexGuard<'static, Open>);

/// Removes everything temporary that this process has made, for a program that is about to end: on a signal, say.
///
/// Outputs that are just taking their places do so first, all of them. As long as the result lives, threads that would
/// make something temporary, remove it or write an output wait.
pub fn end() -> Ending {
    let mut open = open();
    for (path, kind) in std::mem::take(&mut *open) {
        remove(&path, kind);
    }
    Ending(open)
}

/// What can't be removed stays; there is nobody left to tell.
fn remove(path: &Path, kind: Kind) {
    let _ = match kind {
        Kind::File => std::fs::remove_file(path),
        Kind::EmptyFolder => std::fs::remove_dir(path),
        Kind::Folder => {
            for _ in 0..TRIES {
                if std::fs::remove_dir_all(path).is_ok() || !path.exists() {
                    return;
                }
                std::thread::sleep(PAUSE);
            }
            Ok(())
        }
    };
}

/// Runs `work` as one step as [`end`] sees it: it comes before or after.
pub(super) fn undisturbed<T>(work: impl FnOnce() -> T) -> T {
    let _open = open();
    work()
}

/// A folder that disappears with all that is in it.
///
/// A lock in it tells other runs that somebody is at work. Where the system was asked to kill a run and gave it no time,
/// the lock is gone and the folder is not: the next run removes it.
#[derive(Debug)]
pub(crate) struct TemporaryFolder {
    folder: Option<TempDir>,
    lock: Option<File>,
    path: PathBuf,
}

impl TemporaryFolder {
    /// A hidden folder in another one.
    pub(crate) fn inside(folder: &Path) -> std::io::Result<Self> {
        Self::made(folder, PREFIX)
    }

    /// A folder where the system has its temporary ones.
    pub(crate) fn anywhere() -> std::io::Result<Self> {
        Self::made(&std::env::temp_dir(), PREFIX.trim_start_matches('.'))
    }

    fn made(place: &Path, prefix: &str) -> std::io::Result<Self> {
        remove_abandoned(place, prefix);
        let (folder, path) = noted(Kind::Folder, || Builder::new().prefix(prefix).tempdir_in(place), TempDir::path)?;
        // Without a lock, as on some file systems of a network, the folder is not known as abandoned, and that is all.
        let lock = lock(&path).ok();
        Ok(Self { folder: Some(folder), lock, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A new file in it.
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

/// Where the lock of a temporary folder is: under a name that nothing else in it has.
fn lock_path(folder: &Path) -> Option<PathBuf> {
    let mut name = folder.file_name()?.to_owned();
    name.push(".lock");
    Some(folder.join(name))
}

/// Locks a temporary folder. The lock has its name only once it is taken, so that no one finds it open.
fn lock(folder: &Path) -> std::io::Result<File> {
    let path = lock_path(folder).ok_or(std::io::ErrorKind::InvalidInput)?;
    let before = path.with_extension("new");
    let file = File::create(&before)?;
    file.try_lock().map_err(std::io::Error::from)?;
    std::fs::rename(before, path)?;
    Ok(file)
}

/// Removes temporary folders whose runs are gone; what can't be told or removed stays.
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

/// A file that disappears.
#[derive(Debug)]
pub(crate) struct TemporaryFile {
    file: Option<TempPath>,
    path: PathBuf,
}

impl TemporaryFile {
    /// A hidden file in a folder, with the permissions of any file that the user makes, and its content.
    pub(crate) fn inside(
        folder: &Path,
        content: impl FnOnce(&mut File) -> std::io::Result<()>,
    ) -> std::io::Result<Self> {
        let mut builder = Builder::new();
        builder.prefix(PREFIX).suffix(".tmp");
        #[cfg(unix)]
        {
            // Temporary files are private by default; an output is as readable as any file.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let (named, path) = noted(Kind::File, || builder.tempfile_in(folder), |file| file.path())?;
        // Nobody can read or rename a file on Windows that is open for writing here.
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

/// A folder that this process made and that goes again if nothing comes to lie in it.
#[derive(Debug)]
pub(crate) struct NewFolder(PathBuf);

impl NewFolder {
    /// Makes a folder where there is none.
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
