//! Temporary files and folders: gone when they are dropped, and when a signal ends the process.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tempfile::{Builder, TempDir, TempPath};

/// What the names of temporary files and folders begin with.
const PREFIX: &str = ".onnx-diffprune-";

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
#[derive(Debug)]
pub(crate) struct TemporaryFolder {
    folder: Option<TempDir>,
    path: PathBuf,
}

impl TemporaryFolder {
    /// A hidden folder in another one.
    pub(crate) fn inside(folder: &Path) -> std::io::Result<Self> {
        Self::made(|| Builder::new().prefix(PREFIX).tempdir_in(folder))
    }

    /// A folder where the system has its temporary ones.
    pub(crate) fn anywhere() -> std::io::Result<Self> {
        Self::made(|| Builder::new().prefix(PREFIX.trim_start_matches('.')).tempdir())
    }

    fn made(make: impl FnOnce() -> std::io::Result<TempDir>) -> std::io::Result<Self> {
        let (folder, path) = noted(Kind::Folder, make, TempDir::path)?;
        Ok(Self { folder: Some(folder), path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let mut open = open();
        drop(self.folder.take());
        open.remove(&self.path);
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
