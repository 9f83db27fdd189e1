//! Files that grow record by record, for what a long run tells of itself.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::outputs::{check_output, unwritable};
use crate::error::Error;

/// A file that grows at its end. A record is with the system once it is written: a program that is killed leaves at most
/// the last one in part.
#[derive(Debug)]
pub(crate) struct Appended {
    file: File,
    path: PathBuf,
}

impl Appended {
    /// Goes on at the end of a file; makes it where there is none.
    ///
    /// # Errors
    /// The place can't be written.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        check_output(path)?;
        let file = OpenOptions::new().append(true).create(true).open(path);
        Ok(Self { file: file.map_err(|error| unwritable(path, error))?, path: path.to_owned() })
    }

    /// Writes a record in one piece.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn write(&mut self, record: &[u8]) -> Result<(), Error> {
        self.file.write_all(record).map_err(|error| unwritable(&self.path, error))
    }
}
