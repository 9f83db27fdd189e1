//! A folder as an output: built completely in a temporary folder, then moved to its destination as a whole.

use std::io::Write;
use std::path::{Component, Path, PathBuf};

use super::identity::parent;
use super::outputs::{Outputs, unwritable};
use super::read::{kind, open};
use super::temporary::TemporaryFolder;
use crate::error::Error;

/// An output folder under construction. It is deleted unless it is published.
#[derive(Debug)]
pub(crate) struct OutputFolder {
    temporary: TemporaryFolder,
    /// The folder that becomes the output.
    root: PathBuf,
    place: PathBuf,
}

impl OutputFolder {
    /// Creates an empty temporary folder next to `place`, the destination. An existing destination is replaced later if
    /// it is an empty folder, or a folder for which `is_own` returns that an earlier run wrote it.
    ///
    /// # Errors
    /// The destination is anything else, or its parent folder does not exist or can't be written to.
    pub(crate) fn beside(place: &Path, is_own: impl FnOnce(&Path) -> bool) -> Result<Self, Error> {
        let Some(Component::Normal(name)) = place.components().next_back() else {
            return Err(Error::io(place, "expected the path of an output folder, found a path without a name"));
        };
        if let Ok(found) = place.symlink_metadata() {
            let fail = |found: &str| {
                Error::io(place, format!("expected a path for a new folder, found {found}"))
                    .hint("choose another path, or remove what is there")
            };
            let is_empty = || place.read_dir().is_ok_and(|mut entries| entries.next().is_none());
            match found.file_type() {
                of if of.is_symlink() => return Err(fail("a link")),
                of if of.is_file() => return Err(fail("a file")),
                of if !of.is_dir() => return Err(fail(kind(of))),
                _ if is_empty() || is_own(place) => {}
                _ => return Err(fail("a folder that this tool did not write")),
            }
        }
        let above = parent(place);
        if !above.is_dir() {
            let text = format!("can't be written: there is no folder {}", above.display());
            return Err(Error::io(place, text).hint("create the folder, or choose another path"));
        }
        let fail = |error| unwritable(place, error);
        let temporary = TemporaryFolder::inside(above).map_err(fail)?;
        let root = temporary.path().join(name);
        std::fs::create_dir(&root).map_err(fail)?;
        Ok(Self { temporary, root, place: place.to_owned() })
    }

    /// Returns the current path of the folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns a folder next to it, on the same file system, that is deleted with it.
    pub(crate) fn room(&self) -> &Path {
        self.temporary.path()
    }

    /// Creates a folder in it, including parent folders.
    ///
    /// # Errors
    /// The folder can't be created.
    pub(crate) fn make_folder(&self, name: &Path) -> Result<(), Error> {
        std::fs::create_dir_all(self.root.join(name)).map_err(|error| unwritable(&self.place.join(name), error))
    }

    /// Copies the contents of a regular file into it. Links become files, and the copy gets the permissions of a new
    /// file.
    ///
    /// # Errors
    /// The file can't be read, or its copy can't be written.
    pub(crate) fn copy(&self, from: &Path, name: &Path) -> Result<(), Error> {
        let unreadable = |error: std::io::Error| Error::unreadable(from, format!("can't be read: {error}"));
        let (mut source, _) = open(from).map_err(unreadable)?;
        self.make_folder(parent(name))?;
        let fail = |error| unwritable(&self.place.join(name), error);
        let mut file = std::fs::File::create_new(self.root.join(name)).map_err(fail)?;
        std::io::copy(&mut source, &mut file).map_err(fail)?;
        file.flush().map_err(fail)
    }

    /// Moves the folder to its destination, replacing what is there. Also moves the files of `beside`, complete files
    /// in [`OutputFolder::room`], to theirs. Moves all of them or none.
    ///
    /// # Errors
    /// A destination can't be replaced. Then all destinations remain unchanged.
    pub(crate) fn publish(self, beside: &[(PathBuf, PathBuf)]) -> Result<(), Error> {
        let mut outputs = Outputs::default();
        beside.iter().for_each(|(from, place)| outputs.add(from, place));
        outputs.add_folder(&self.root, &self.place);
        outputs.publish(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged(place: &Path) -> OutputFolder {
        let folder = OutputFolder::beside(place, |folder| folder.join("own").exists()).unwrap();
        let source = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(source.path(), "copied").unwrap();
        folder.copy(source.path(), Path::new("a/b")).unwrap();
        std::fs::write(folder.root().join("own"), "").unwrap();
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_is_published_as_a_whole() {
        let outer = tempfile::tempdir().unwrap();
        let place = outer.path().join("out");
        let folder = staged(&place);
        assert!(!place.exists());
        let report = folder.room().join("report");
        std::fs::write(&report, "").unwrap();
        folder.publish(&[(report, outer.path().join("report.html"))]).unwrap();
        assert_eq!(names(outer.path()), ["out", "report.html"]);
        assert_eq!(std::fs::read_to_string(place.join("a/b")).unwrap(), "copied");
        // A folder from an earlier run is replaced with everything in it.
        std::fs::write(place.join("stale"), "").unwrap();
        staged(&place).publish(&[]).unwrap();
        assert_eq!(
            (names(outer.path()), names(&place)),
            (vec!["out".into(), "report.html".into()], vec!["a".into(), "own".into()])
        );
    }

    #[test]
    fn an_empty_folder_is_replaced_and_a_foreign_one_is_not() {
        let outer = tempfile::tempdir().unwrap();
        let place = outer.path().join("out");
        std::fs::create_dir(&place).unwrap();
        staged(&place).publish(&[]).unwrap();
        assert_eq!(names(&place), ["a", "own"]);
        std::fs::remove_file(place.join("own")).unwrap();
        let error = OutputFolder::beside(&place, |folder| folder.join("own").exists()).unwrap_err();
        assert!(error.to_string().contains("a folder that this tool did not write"), "{error}");
        let error = OutputFolder::beside(&place.join("a/b"), |_| true).unwrap_err();
        assert!(error.to_string().contains("found a file"), "{error}");
        assert!(OutputFolder::beside(&outer.path().join("no/out"), |_| true).is_err());
        assert!(OutputFolder::beside(Path::new(".."), |_| true).is_err());
        assert_eq!(names(outer.path()), ["out"]);
    }

    #[test]
    fn a_failed_publish_changes_nothing() {
        let outer = tempfile::tempdir().unwrap();
        let place = outer.path().join("out");
        staged(&place).publish(&[]).unwrap();
        std::fs::write(place.join("before"), "").unwrap();
        let folder = staged(&place);
        let report = folder.room().join("report");
        std::fs::write(&report, "").unwrap();
        assert!(folder.publish(&[(report, outer.path().join("none/report.html"))]).is_err());
        assert_eq!(
            (names(outer.path()), names(&place)),
            (vec!["out".into()], vec!["a".into(), "before".into(), "own".into()])
        );
        drop(staged(&place));
        assert_eq!(names(outer.path()), ["out"]);
    }
}
