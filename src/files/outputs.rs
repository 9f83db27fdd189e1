//! Outputs: complete beside their places first, then all in their places or none.

use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::identity::{Identity, parent};
use super::read::kind;
use super::temporary::{PREFIX, TemporaryFile, TemporaryFolder, undisturbed};
use crate::error::Error;

/// Bytes that are collected before they are written.
const BUFFER: usize = 1 << 20;

/// Outputs that are complete but not yet in their places; they disappear unless they are published.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    files: Vec<(Source, PathBuf)>,
}

/// Where an output lies for now.
#[derive(Debug)]
enum Source {
    File(TemporaryFile),
    /// In a folder that someone else holds.
    At(PathBuf),
    /// A folder that someone else holds.
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
    /// Writes an output beside its place.
    ///
    /// # Errors
    /// What the system or `content` says.
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

    /// Adds a file that is complete, on the file system of its place.
    pub(crate) fn add(&mut self, from: &Path, place: &Path) {
        self.files.push((Source::At(from.to_owned()), place.to_owned()));
    }

    /// Adds a folder that is complete, on the file system of its place. What is in the place goes with all that is in it.
    pub(super) fn add_folder(&mut self, from: &Path, place: &Path) {
        self.files.push((Source::Folder(from.to_owned()), place.to_owned()));
    }

    /// Moves all outputs to their places, in the order in which they were given; then removes `stale` files.
    ///
    /// # Errors
    /// Two outputs have one place, or one can't take its place: then all places are as they were.
    pub(crate) fn publish(self, stale: &[PathBuf]) -> Result<(), Error> {
        let identities: Vec<Identity> = self.files.iter().map(|(_, place)| Identity::of(place)).collect();
        for (at, (source, place)) in self.files.iter().enumerate() {
            if !matches!(source, Source::Folder(_)) {
                refuse_special(place)?;
            }
            if identities[..at].iter().any(|other| other.is_same(&identities[at])) {
                return Err(Error::usage("two outputs would be this one file").in_file(place));
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
                // One that stays does no harm.
                let _ = std::fs::remove_file(path);
            }
            Ok(())
        })
    }
}

/// A place that an output has taken.
struct Taken {
    place: PathBuf,
    /// What was there before, under a hidden name beside it.
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

    /// Puts back what was there before.
    fn restore(&self) {
        // Nothing more can be done about what can't be put back: it is under its hidden name.
        if let Some(before) = &self.before
            && std::fs::rename(before, &self.place).is_ok()
        {
            // Renaming a file to another name of itself does nothing, so that both are left.
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

/// Removes a file or a folder; what can't be removed stays.
fn remove(path: &Path) {
    let is_folder = path.symlink_metadata().is_ok_and(|found| found.is_dir());
    let _ = if is_folder { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

/// Gives a file a second, hidden name beside its own; where the file system has no second names, and to a folder, another
/// name.
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

/// What the system said of a file that can't be written, and what can be done about it; or what was wrong with a tensor
/// that was to be written.
pub(crate) fn unwritable(path: &Path, error: std::io::Error) -> Error {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let error = match error.downcast::<Error>() {
        Ok(of_tensor) => return of_tensor.in_file(path),
        Err(error) => without_path(error),
    };
    let hint = match error.kind() {
        StorageFull | QuotaExceeded => "free some space or write to another disk",
        FileTooLarge => "raise the limit of file sizes (ulimit -f) or write to another file system",
        _ => "check that the folder exists and can be written to",
    };
    Error::io(path, format!("can't be written: {error}")).hint(hint).caused_by(error)
}

/// What the system said, without the path of a temporary file that was put after it: nobody knows that.
fn without_path(error: std::io::Error) -> std::io::Error {
    match error.to_string().split_once(" at path ") {
        Some((said, path)) if path.contains(PREFIX) => std::io::Error::new(error.kind(), said),
        _ => error,
    }
}

/// Refuses a path that is no place for a file: the rename that ends all writing would put one in the place of
/// `/dev/null`.
fn refuse_special(path: &Path) -> Result<(), Error> {
    let fail = |found: &str| Err(Error::io(path, format!("expected a path for a file, found {found}")));
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
        // Standard output by a name of its own: not even a link to a file may be replaced there.
        Ok(data) if data.is_symlink() && is_of_system(parent(path)) => fail("a link of the system"),
        // What the folder lacks is said of it.
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

/// Makes sure that a file can be written at a path, as far as can be known without writing it.
///
/// # Errors
/// The path is a folder or a device, or lies in a folder that is not there or can't be written to.
pub(crate) fn check_output(path: &Path) -> Result<(), Error> {
    refuse_special(path)?;
    let folder = parent(path);
    if !folder.is_dir() {
        let text = format!("can't be written: there is no folder {}", folder.display());
        return Err(Error::io(path, text).hint("check that the folder exists and can be written to"));
    }
    TemporaryFile::inside(folder, |_| Ok(())).map(drop).map_err(|error| unwritable(path, error))
}

/// As [`check_output`], of files in a folder that is made where there is none.
///
/// # Errors
/// As [`check_output`]; something else in the place of the folder.
pub(crate) fn check_output_folder(folder: &Path, files: &[PathBuf]) -> Result<(), Error> {
    if folder.is_dir() {
        return files.iter().try_for_each(|file| check_output(file));
    }
    if let Ok(found) = folder.symlink_metadata() {
        let found = if found.is_symlink() {
            "a link to nothing"
        } else if found.is_file() {
            "a file"
        } else {
            kind(found.file_type())
        };
        return Err(Error::io(folder, format!("expected a folder, found {found}")));
    }
    let above = parent(folder);
    if !above.is_dir() {
        let text = format!("can't be written: there is no folder {}", above.display());
        return Err(Error::io(folder, text).hint("check that the folder it lies in exists and can be written to"));
    }
    TemporaryFolder::inside(above).map(drop).map_err(|error| unwritable(folder, error))
}

/// Writes bytes beside their place and renames them into it.
///
/// # Errors
/// The place can't be written; nothing is left behind then.
pub fn write_file(path: &Path, content: &[u8]) -> Result<(), Error> {
    refuse_special(path)?;
    let mut outputs = Outputs::default();
    outputs.write(path, |file| file.write_all(content)).map_err(|error| unwritable(path, error))?;
    outputs.publish(&[])
}

/// Whether two paths lead to one file, or to one place where there is none.
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
            // The system's error has it before.
            assert!(error.to_string().contains(".onnx-diffprune"), "{error}");
            let told = unwritable(&place, error);
            assert!(told.to_string().contains("slim: can't be written: No such file"), "{told}");
            assert!(!told.to_string().contains(".onnx-diffprune"), "{told}");
        }
    }

    /// Outputs `new`, `old` and `away/last` in a folder in which `old` is there before.
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
    fn all_outputs_take_their_places_and_stale_files_go() {
        let folder = tempfile::tempdir().unwrap();
        let outputs = outputs(folder.path());
        assert_eq!(content(folder.path()).iter().filter(|(name, _)| !name.starts_with('.')).count(), 1);
        std::fs::write(folder.path().join("stale"), "").unwrap();
        outputs.publish(&[folder.path().join("stale"), folder.path().join("gone")]).unwrap();
        assert_eq!(content(folder.path()), named(&[("new", "after"), ("old", "after")]));
        assert_eq!(content(&folder.path().join("away")), named(&[("last", "after")]));
    }

    #[test]
    fn where_one_fails_all_places_are_as_they_were() {
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
    fn links_are_replaced_and_put_back_as_links() {
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
    fn outputs_that_are_dropped_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let outputs = outputs(folder.path());
        drop(outputs);
        assert_eq!(content(folder.path()), named(&[("old", "before")]));
        let mut outputs = Outputs::default();
        assert!(outputs.write(&folder.path().join("x"), |_| Err(std::io::Error::other("no"))).is_err());
        let twice = folder.path().join("twice");
        outputs.write(&twice, |_| Ok(())).unwrap();
        outputs.write(&folder.path().join("./twice"), |_| Ok(())).unwrap();
        assert!(outputs.publish(&[]).unwrap_err().to_string().contains("one file"));
        assert_eq!(content(folder.path()), named(&[("old", "before")]));
    }
}
