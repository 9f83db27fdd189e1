//! Files that grow record by record, for the metrics of a long run.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::outputs::{check_output, unwritable};
use crate::error::Error;

/// A file to which records are appended. Each record is passed to the system when it is written, so that a killed
/// program leaves at most the last record incomplete.
#[derive(Debug)]
pub(crate) struct Appended {
    file: File,
    path: PathBuf,
}

impl Appended {
    /// Opens a file for appending. Creates it if it does not exist.
    ///
    /// # Errors
    /// The path can't be written to.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        check_output(path)?;
        let file = OpenOptions::new().append(true).create(true).open(path);
        Ok(Self { file: file.map_err(|error| unwritable(path, error))?, path: path.to_owned() })
    }

    /// Writes a record in one piece.
    ///
    /// # Errors
    /// The write fails.
    pub(crate) fn write(&mut self, record: &[u8]) -> Result<(), Error> {
        self.file.write_all(record).map_err(|error| unwritable(&self.path, error))
    }
}
