//! Regular files, read.

use std::fs::{File, FileType, Metadata};
use std::io::{Error as IoError, ErrorKind, Read};
use std::path::Path;

use bytes::Bytes;

use crate::error::Error;

/// What stands at a path that is no regular file, in words.
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

/// Opens a regular file, and nothing else: opening a pipe would wait for someone to write to it, a device may have no
/// end.
///
/// # Errors
/// What the system says; anything but a regular file.
pub(crate) fn open(path: &Path) -> std::io::Result<(File, Metadata)> {
    // Asked before it is opened, for that is what would wait.
    let found = path.metadata()?;
    if !found.is_file() {
        let text = format!("expected a regular file, found {}", kind(found.file_type()));
        return Err(IoError::new(ErrorKind::InvalidInput, text));
    }
    let file = File::open(path)?;
    let found = file.metadata()?;
    Ok((file, found))
}

/// The text of a regular file of at most `most` bytes.
///
/// # Errors
/// As [`open`]; a larger file; one that is no text. The message names the file.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String, Error> {
    let fail = |error: IoError| Error::unreadable(path, format!("can't be read: {error}")).caused_by(error);
    let (file, found) = open(path).map_err(fail)?;
    let too_large = || Error::unreadable(path, format!("expected at most {most} bytes of text, found more"));
    if found.len() > most {
        return Err(too_large());
    }
    let mut text = String::new();
    // Files of the system claim no bytes and have some.
    file.take(most + 1).read_to_string(&mut text).map_err(fail)?;
    if text.len() as u64 > most { Err(too_large()) } else { Ok(text) }
}

/// Maps a whole regular file into memory; an empty one gives no bytes.
///
/// # Errors
/// As [`open`]; a file that can't be mapped.
pub(crate) fn map(path: &Path) -> std::io::Result<Bytes> {
    let (file, found) = open(path)?;
    if found.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is only read. Someone else could truncate the file while it is mapped, which no program can
    // rule out; this one never writes to an existing file, it renames complete ones into place.
    #[allow(unsafe_code)]
    let map = unsafe { memmap2::Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}
