//! The inputs and outputs of a run, compared before it starts.

use std::path::{Path, PathBuf};

use super::identity::Identity;
use super::outputs::{check_output, check_output_folder};
use crate::error::Error;

/// A path and its name in messages, such as the option that sets it.
#[derive(Clone, Debug)]
struct Declared {
    what: String,
    path: PathBuf,
    identity: Identity,
}

/// The files that a run reads and writes.
///
/// No output may be an input, and no two outputs may be the same file, even through symbolic links, hard links or
/// different paths. A program declares its inputs and outputs here, and starts nothing before [`RunFiles::check`].
#[derive(Clone, Debug, Default)]
pub struct RunFiles {
    read: Vec<Declared>,
    /// Many files of one kind, such as the images of a folder.
    read_together: Vec<(String, Vec<PathBuf>)>,
    written: Vec<Declared>,
    /// Folders that are created if they do not exist, with the files that are written into them.
    folders: Vec<(PathBuf, Vec<PathBuf>)>,
}

impl RunFiles {
    /// Creates an empty declaration.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares an input file. `what` is its name in messages, such as the option that sets it.
    pub fn add_input(&mut self, what: impl Into<String>, path: impl Into<PathBuf>) -> &mut Self {
        self.read.push(Declared::new(what, path));
        self
    }

    /// Declares many input files that are read for one purpose.
    pub fn add_inputs(&mut self, what: impl Into<String>, paths: Vec<PathBuf>) -> &mut Self {
        self.read_together.push((what.into(), paths));
        self
    }

    /// Declares an output file.
    pub fn add_output(&mut self, what: impl Into<String>, path: impl Into<PathBuf>) -> &mut Self {
        self.written.push(Declared::new(what, path));
        self
    }

    /// Declares output files in a folder, which is created if it does not exist.
    pub fn add_outputs_in(&mut self, what: &str, folder: impl Into<PathBuf>, names: &[&str]) -> &mut Self {
        let folder = folder.into();
        let files: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
        files.iter().for_each(|file| self.written.push(Declared::new(what, file)));
        self.folders.push((folder, files));
        self
    }

    /// Compares all declared files, and checks that every output can be written to its path.
    ///
    /// # Errors
    /// An output is an input or another output (the error names both), is a folder or a device, or is in a folder that
    /// does not exist or can't be written to.
    pub fn check(&self) -> Result<(), Error> {
        for (at, output) in self.written.iter().enumerate() {
            if let Some(input) = self.read.iter().find(|input| input.is_same(output)) {
                return Err(output.would_replace(&input.what, &input.path));
            }
            if let Some(other) = self.written[..at].iter().find(|other| other.is_same(output)) {
                let (a, b) = (&other.what, &output.what);
                let text = format!("{a} and {b}{} are the same file", other.elsewhere(&output.path));
                return Err(Error::usage(text).in_file(&output.path).hint(format!("choose another path for {b}")));
            }
        }
        for output in self.written.iter().filter(|output| output.identity.exists()) {
            for (what, paths) in &self.read_together {
                if let Some(path) = paths.iter().find(|path| Identity::of(path).is_same(&output.identity)) {
                    return Err(output.would_replace(what, path));
                }
            }
        }
        self.folders.iter().try_for_each(|(folder, files)| check_output_folder(folder, files))?;
        let is_inside = |path: &Path| self.folders.iter().any(|(_, files)| files.iter().any(|file| file == path));
        let open = self.written.iter().filter(|output| !is_inside(&output.path));
        open.map(|output| &output.path).try_for_each(|path| check_output(path))
    }
}

impl Declared {
    fn new(what: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { what: what.into(), identity: Identity::of(&path), path }
    }

    fn is_same(&self, other: &Self) -> bool {
        self.identity.is_same(&other.identity)
    }

    /// Returns both paths in parentheses if they are spelled differently.
    fn elsewhere(&self, path: &Path) -> String {
        if self.path == path { String::new() } else { format!(" ({} and {})", self.path.display(), path.display()) }
    }

    fn would_replace(&self, what: &str, path: &Path) -> Error {
        let at = if self.path == path { String::new() } else { format!(" ({})", path.display()) };
        Error::usage(format!("{} would replace {what}{at}", self.what))
            .in_file(&self.path)
            .hint(format!("choose another path for {}", self.what))
    }
}
