//! Reading of regular files.

use std::fs::{File, FileType, Metadata};
use std::io::{Error as IoError, ErrorKind, Read};
use std::path::Path;

use bytes::Bytes;

use crate::error::Error;

/// Describes a path that is not a regular file.
pub(super) fn kind(of: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if of.is_fifo() {
            return "a pipe";
        }
        if of.is_socket() {
            return "a socket";
        }
        if of.is_char_device() || of.is_block_device() {
            return "a device";
        }
    }
    if of.is_dir() { "a folder" } else { "something else" }
}

/// Opens a regular file, and nothing else: opening a pipe would wait for a writer, and a device may have no end.
///
/// # Errors
/// The file can't be opened, or is not a regular file.
pub(crate) fn open(path: &Path) -> std::io::Result<(File, Metadata)> {
    // Checked before opening, because opening may block.
    let found = path.metadata()?;
    if !found.is_file() {
        let text = format!("expected a regular file, found {}", kind(found.file_type()));
        return Err(IoError::new(ErrorKind::InvalidInput, text));
    }
    let file = File::open(path)?;
    let found = file.metadata()?;
    Ok((file, found))
}

/// Reads the text of a regular file of at most `most` bytes.
///
/// # Errors
/// As for [`open`], or the file is larger or is not UTF-8 text. The error names the file.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String, Error> {
    let fail = |error: IoError| Error::unreadable(path, format!("can't be read: {error}")).caused_by(error);
    let (file, found) = open(path).map_err(fail)?;
    let too_large = || Error::unreadable(path, format!("expected at most {most} bytes of text, found more"));
    if found.len() > most {
        return Err(too_large());
    }
    let mut text = String::new();
    // Files of the system, such as those in `/proc`, report a size of zero but have content.
    file.take(most + 1).read_to_string(&mut text).map_err(fail)?;
    if text.len() as u64 > most { Err(too_large()) } else { Ok(text) }
}

/// Maps a whole regular file into memory. An empty file yields no bytes.
///
/// # Errors
/// As for [`open`], or the file can't be mapped.
pub(crate) fn map(path: &Path) -> std::io::Result<Bytes> {
    let (file, found) = open(path)?;
    if found.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is only read. Another program could truncate the file while it is mapped, which no program can
    // prevent. This program never writes to an existing file: it renames complete files to their destination.
    #[allow(unsafe_code)]
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}
