//! Writing on two threads: one gathers the kept elements, while the other writes the earlier ones to the file.

use std::io::{Error as IoError, ErrorKind, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// Size in bytes of a buffer that is passed to the writing thread.
const BUFFER: usize = 1 << 20;

/// Maximum number of buffers that wait to be written.
const WAITING: usize = 4;

/// Outputs of fewer bytes are written on one thread.
const LARGE: u64 = 16 << 20;

/// Writes what `content` writes, about `length` bytes, to `out`.
///
/// # Errors
/// `out` or `content` returns an error.
pub(super) fn piped(
    length: u64,
    out: &mut dyn Write,
    content: impl FnOnce(&mut dyn Write) -> std::io::Result<()> + Send,
) -> std::io::Result<()> {
    if length < LARGE {
        return content(out);
    }
    let (full, written) = sync_channel::<Vec<u8>>(WAITING);
    let (empty, free) = channel();
    std::thread::scope(|scope| {
        let gathering = scope.spawn(move || {
            let mut pipe = Pipe { buffer: Vec::with_capacity(BUFFER), full, free };
            content(&mut pipe)?;
            pipe.flush()
        });
        let stored = store(written, &empty, out);
        // The gathering thread ends on its own, because a disconnected receiver is an error for it.
        let gathered = gathering.join().map_err(|_| IoError::other("the thread that gathers weights has panicked"));
        stored.and(gathered?)
    })
}

/// Writes every buffer and returns it for reuse.
fn store(written: Receiver<Vec<u8>>, empty: &Sender<Vec<u8>>, out: &mut dyn Write) -> std::io::Result<()> {
    for mut buffer in written {
        out.write_all(&buffer)?;
        buffer.clear();
        // The gathering thread may have ended already.
        let _ = empty.send(buffer);
    }
    Ok(())
}

/// The writer of the gathering thread.
struct Pipe {
    buffer: Vec<u8>,
    full: SyncSender<Vec<u8>>,
    free: Receiver<Vec<u8>>,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = bytes.len().min(BUFFER - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == BUFFER {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let next = self.free.try_recv().unwrap_or_else(|_| Vec::with_capacity(BUFFER));
        let full = std::mem::replace(&mut self.buffer, next);
        self.full.send(full).map_err(|_| IoError::from(ErrorKind::BrokenPipe))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(out: &mut dyn Write, count: u32) -> std::io::Result<()> {
        (0..count).step_by(1000).try_for_each(|at| {
            let part: Vec<u8> = (at..(at + 1000).min(count)).flat_map(u32::to_le_bytes).collect();
            out.write_all(&part)
        })
    }

    #[test]
    fn all_bytes_arrive_in_order() {
        for count in [10, 6_000_123] {
            let (mut piped_bytes, mut bytes) = (Vec::new(), Vec::new());
            assert!(piped(4 * u64::from(count), &mut piped_bytes, |out| numbers(out, count)).is_ok());
            assert!(numbers(&mut bytes, count).is_ok());
            assert!(piped_bytes == bytes, "{count}");
        }
    }

    #[test]
    fn an_error_on_either_thread_ends_both() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let error = piped(LARGE, &mut Full(3 << 20), |out| numbers(out, 6_000_123)).expect_err("no room");
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        let mut out = Vec::new();
        let error = piped(LARGE, &mut out, |out| {
            numbers(out, 2_000_000)?;
            Err(IoError::other("no more"))
        });
        assert_eq!(error.expect_err("it ends early").to_string(), "no more");
    }
}
