//! Output files: first written completely to temporary files next to their destination, then all of them moved there,
//! or none.

use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::identity::{Identity, parent};
use super::read::kind;
use super::temporary::{PREFIX, TemporaryFile, TemporaryFolder, undisturbed};
use crate::error::Error;

/// Size of the write buffer in bytes.
const BUFFER: usize = 1 << 20;

/// Outputs that are complete but not at their destination yet. They are deleted unless they are published.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    files: Vec<(Source, PathBuf)>,
}

/// The current location of an output.
#[derive(Debug)]
enum Source {
    File(TemporaryFile),
    /// A file in a folder that the caller owns.
    At(PathBuf),
    /// A folder that the caller owns.
    Folder(PathBuf),
}

impl Source {
    fn path(&self) -> &Path {
        match self {
            Source::File(file) => file.path(),
            Source::At(path) | Source::Folder(path) => path,
        }
    }
}

impl Outputs {
    /// Writes an output to a temporary file next to its destination.
    ///
    /// # Errors
    /// The system or `content` returns an error.
    pub(crate) fn write(
        &mut self,
        place: &Path,
        content: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let file = TemporaryFile::inside(parent(place), |file| {
            let mut writer = BufWriter::with_capacity(BUFFER, file);
            content(&mut writer)?;
            writer.flush()
        })?;
        self.files.push((Source::File(file), place.to_owned()));
        Ok(())
    }

    /// Adds a complete file on the file system of its destination.
    pub(crate) fn add(&mut self, from: &Path, place: &Path) {
        self.files.push((Source::At(from.to_owned()), place.to_owned()));
    }

    /// Adds a complete folder on the file system of its destination. It replaces the destination with everything in it.
    pub(super) fn add_folder(&mut self, from: &Path, place: &Path) {
        self.files.push((Source::Folder(from.to_owned()), place.to_owned()));
    }

    /// Moves all outputs to their destinations, in the order in which they were added. Then removes the `stale` files.
    ///
    /// # Errors
    /// Two outputs have the same destination, or one can't be moved. Then all destinations remain unchanged.
    pub(crate) fn publish(self, stale: &[PathBuf]) -> Result<(), Error> {
        let identities: Vec<Identity> = self.files.iter().map(|(_, place)| Identity::of(place)).collect();
        for (at, (source, place)) in self.files.iter().enumerate() {
            if !matches!(source, Source::Folder(_)) {
                refuse_special(place)?;
            }
            if identities[..at].iter().any(|other| other.is_same(&identities[at])) {
                return Err(
                    Error::usage("two outputs have this same path; choose another path for one of them").in_file(place)
                );
            }
        }
        undisturbed(|| {
            let mut done = Vec::new();
            for (source, place) in &self.files {
                match Taken::take(source.path(), place) {
                    Ok(taken) => done.push(taken),
                    Err(error) => {
                        done.into_iter().rev().for_each(Taken::undo);
                        return Err(unwritable(place, error));
                    }
                }
            }
            done.into_iter().for_each(Taken::settle);
            for path in stale {
                // A stale file that can't be removed does no harm.
                let _ = std::fs::remove_file(path);
            }
            Ok(())
        })
    }
}

/// A destination to which an output was moved.
struct Taken {
    place: PathBuf,
    /// The earlier content, under a hidden name next to it. `None`: there was none.
    before: Option<PathBuf>,
}

impl Taken {
    fn take(from: &Path, place: &Path) -> std::io::Result<Self> {
        let before = if place.symlink_metadata().is_ok() { Some(set_aside(place)?) } else { None };
        let taken = Self { place: place.to_owned(), before };
        match std::fs::rename(from, place) {
            Ok(()) => Ok(taken),
            Err(error) => {
                taken.restore();
                Err(error)
            }
        }
    }

    /// Restores the earlier content.
    fn restore(&self) {
        // If this fails, nothing more can be done. The earlier content remains under its hidden name.
        if let Some(before) = &self.before
            && std::fs::rename(before, &self.place).is_ok()
        {
            // Renaming a file to another hard link of itself does nothing, so both names remain.
            let _ = std::fs::remove_file(before);
        }
    }

    fn undo(self) {
        match self.before {
            Some(_) => self.restore(),
            None => remove(&self.place),
        }
    }

    fn settle(self) {
        if let Some(before) = self.before {
            remove(&before);
        }
    }
}

/// Removes a file or a folder, and ignores errors.
fn remove(path: &Path) {
    let is_folder = path.symlink_metadata().is_ok_and(|found| found.is_dir());
    let _ = if is_folder { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

/// Creates a hidden hard link to a file next to it. Renames the file instead if the file system has no hard links, or
/// if it is a folder.
fn set_aside(path: &Path) -> std::io::Result<PathBuf> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".onnx-diffprune-").suffix(".old");
    let linked = builder.make_in(parent(path), |to| std::fs::hard_link(path, to));
    let (_, name) = match linked {
        Ok(named) => named.into_parts(),
        Err(_) => builder.make_in(parent(path), |to| std::fs::rename(path, to))?.into_parts(),
    };
    name.keep().map_err(|error| error.error)
}

/// Converts the system's error for a file that can't be written, and adds a hint. An error of a tensor that was to be
/// written is passed on.
pub(crate) fn unwritable(path: &Path, error: std::io::Error) -> Error {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let error = match error.downcast::<Error>() {
        Ok(of_tensor) => return of_tensor.in_file(path),
        Err(error) => without_path(error),
    };
    let hint = match error.kind() {
        StorageFull | QuotaExceeded => "free some space or write to another disk",
        FileTooLarge => "raise the limit of file sizes (ulimit -f) or write to another file system",
        _ => "check that the folder exists and that you may write to it",
    };
    Error::io(path, format!("can't be written: {error}")).hint(hint).caused_by(error)
}

/// Removes the path of a temporary file from the system's error, because it means nothing to the user.
fn without_path(error: std::io::Error) -> std::io::Error {
    match error.to_string().split_once(" at path ") {
        Some((said, path)) if path.contains(PREFIX) => std::io::Error::new(error.kind(), said),
        _ => error,
    }
}

/// Rejects a path that is not one of a regular file. Without this check, the final rename would replace `/dev/null`.
fn refuse_special(path: &Path) -> Result<(), Error> {
    let fail = |found: &str| {
        Err(Error::io(path, format!("expected a path for a file, found {found}")).hint("choose another path"))
    };
    let ends_as_folder =
        path.as_os_str().as_encoded_bytes().last().is_some_and(|last| std::path::is_separator(char::from(*last)));
    if path.is_dir() || ends_as_folder {
        return fail("a folder");
    }
    if path.file_name().is_none() {
        return fail(&format!("{:?}", path.display().to_string()));
    }
    match path.metadata() {
        Ok(data) if !data.is_file() => return fail(kind(data.file_type())),
        Ok(_) | Err(_) => {}
    }
    match path.symlink_metadata() {
        // A system link to standard output, such as `/dev/stdout`. Not even a link to a file may be replaced there.
        Ok(data) if data.is_symlink() && is_of_system(parent(path)) => fail("a system link"),
        // Errors of the folder are reported with the folder.
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(unwritable(path, error))
        }
        _ => Ok(()),
    }
}

fn is_of_system(folder: &Path) -> bool {
    let real = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    real == Path::new("/dev") || real.starts_with("/proc") || real.starts_with("/sys")
}

/// Checks that a file can be written to a path, as far as possible without writing it.
///
/// # Errors
/// The path is a folder or a device, or is in a folder that does not exist or can't be written to.
pub(crate) fn check_output(path: &Path) -> Result<(), Error> {
    refuse_special(path)?;
    let folder = parent(path);
    if !folder.is_dir() {
        let text = format!("can't be written: there is no folder {}", folder.display());
        return Err(Error::io(path, text).hint("create the folder, or choose another path"));
    }
    TemporaryFile::inside(folder, |_| Ok(())).map(drop).map_err(|error| unwritable(path, error))
}

/// Like [`check_output`], for files in a folder that is created if it does not exist.
///
/// # Errors
/// As for [`check_output`], or `folder` is not a folder.
pub(crate) fn check_output_folder(folder: &Path, files: &[PathBuf]) -> Result<(), Error> {
    if folder.is_dir() {
        return files.iter().try_for_each(|file| check_output(file));
    }
    if let Ok(found) = folder.symlink_metadata() {
        let found = if found.is_symlink() {
            "a broken link"
        } else if found.is_file() {
            "a file"
        } else {
            kind(found.file_type())
        };
        return Err(Error::io(folder, format!("expected a folder, found {found}")).hint("choose another path"));
    }
    let above = parent(folder);
    if !above.is_dir() {
        let text = format!("can't be written: there is no folder {}", above.display());
        return Err(Error::io(folder, text).hint("create the folder, or choose another path"));
    }
    TemporaryFolder::inside(above).map(drop).map_err(|error| unwritable(folder, error))
}

/// Writes bytes to a temporary file and renames it to its destination.
///
/// # Errors
/// The destination can't be written. No file is left behind.
pub fn write_file(path: &Path, content: &[u8]) -> Result<(), Error> {
    refuse_special(path)?;
    let mut outputs = Outputs::default();
    outputs.write(path, |file| file.write_all(content)).map_err(|error| unwritable(path, error))?;
    outputs.publish(&[])
}

/// Returns whether two paths are the same file, or the same location if there is none.
pub(crate) fn is_same_file(a: &Path, b: &Path) -> bool {
    Identity::of(a).is_same(&Identity::of(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(folder: &Path) -> Vec<(String, String)> {
        let entries = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<(String, String)> = entries
            .filter(|path| path.is_file())
            .map(|path| {
                (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(path).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    fn named(files: &[(&str, &str)]) -> Vec<(String, String)> {
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn errors_name_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("none/slim");
        for error in [
            TemporaryFolder::inside(parent(&place)).map(drop).unwrap_err(),
            TemporaryFile::inside(parent(&place), |_| Ok(())).map(drop).unwrap_err(),
        ] {
            // The system's error contains the name.
            assert!(error.to_string().contains(".onnx-diffprune"), "{error}");
            let converted = unwritable(&place, error);
            assert!(converted.to_string().contains("slim: can't be written: No such file"), "{converted}");
            assert!(!converted.to_string().contains(".onnx-diffprune"), "{converted}");
        }
    }

    /// Writes the outputs `new`, `old` and `away/last` for a folder in which `old` exists before.
    fn outputs(folder: &Path) -> Outputs {
        std::fs::create_dir(folder.join("away")).unwrap();
        std::fs::write(folder.join("old"), "before").unwrap();
        let mut outputs = Outputs::default();
        for name in ["new", "old", "away/last"] {
            outputs.write(&folder.join(name), |file| file.write_all(b"after")).unwrap();
        }
        outputs
    }

    #[test]
    fn all_outputs_are_published_and_stale_files_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let outputs = outputs(folder.path());
        assert_eq!(content(folder.path()).iter().filter(|(name, _)| !name.starts_with('.')).count(), 1);
        std::fs::write(folder.path().join("stale"), "").unwrap();
        outputs.publish(&[folder.path().join("stale"), folder.path().join("gone")]).unwrap();
        assert_eq!(content(folder.path()), named(&[("new", "after"), ("old", "after")]));
        assert_eq!(content(&folder.path().join("away")), named(&[("last", "after")]));
    }

    #[test]
    fn if_one_output_fails_no_destination_changes() {
        let folder = tempfile::tempdir().unwrap();
        let outputs = outputs(folder.path());
        std::fs::write(folder.path().join("stale"), "").unwrap();
        std::fs::remove_dir_all(folder.path().join("away")).unwrap();
        let error = outputs.publish(&[folder.path().join("stale")]).unwrap_err();
        assert!(error.to_string().contains("away/last: can't be written"), "{error}");
        assert_eq!(content(folder.path()), named(&[("old", "before"), ("stale", "")]));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_replaced_and_restored_as_links() {
        let folder = tempfile::tempdir().unwrap();
        let (link, target) = (folder.path().join("link"), folder.path().join("target"));
        std::fs::write(&target, "before").unwrap();
        std::os::unix::fs::symlink("target", &link).unwrap();
        std::fs::create_dir(folder.path().join("away")).unwrap();
        let staged = || {
            let mut outputs = Outputs::default();
            outputs.write(&link, |file| file.write_all(b"after")).unwrap();
            outputs
        };
        let mut outputs = staged();
        outputs.write(&folder.path().join("away/last"), |_| Ok(())).unwrap();
        std::fs::remove_dir_all(folder.path().join("away")).unwrap();
        outputs.publish(&[]).unwrap_err();
        assert_eq!(link.read_link().unwrap(), Path::new("target"));
        staged().publish(&[]).unwrap();
        assert_eq!(content(folder.path()), named(&[("link", "after"), ("target", "before")]));
    }

    #[test]
    fn outputs_that_are_dropped_leave_no_files() {
        let folder = tempfile::tempdir().unwrap();
        let outputs = outputs(folder.path());
        drop(outputs);
        assert_eq!(content(folder.path()), named(&[("old", "before")]));
        let mut outputs = Outputs::default();
        assert!(outputs.write(&folder.path().join("x"), |_| Err(std::io::Error::other("no"))).is_err());
        let twice = folder.path().join("twice");
        outputs.write(&twice, |_| Ok(())).unwrap();
        outputs.write(&folder.path().join("./twice"), |_| Ok(())).unwrap();
        assert!(outputs.publish(&[]).unwrap_err().to_string().contains("two outputs"));
        assert_eq!(content(folder.path()), named(&[("old", "before")]));
    }
}
