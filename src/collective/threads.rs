//! Ranks that are threads of one process, for tests.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Collective;
use super::ranks::{Ranks, Transport};
use crate::error::Error;

/// The bytes that a rank sends in one round, in pieces of these lengths: one for each rank.
#[derive(Debug)]
struct Sent {
    bytes: Vec<u8>,
    lengths: Vec<usize>,
}

impl Sent {
    fn piece(&self, rank: usize) -> &[u8] {
        let start: usize = self.lengths[..rank].iter().sum();
        &self.bytes[start..start + self.lengths[rank]]
    }
}

/// A round of messages. It begins when the first rank sends and ends when all ranks have received what all ranks sent.
#[derive(Debug, Default)]
struct Round {
    sent: Vec<Option<Arc<Sent>>>,
    taken: usize,
    /// The first rank that ended, and the exit code if it aborted.
    ended: Option<(usize, Option<u8>)>,
}

#[derive(Debug, Default)]
struct Shared {
    round: Mutex<Round>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Round> {
        // No thread panics while it holds the lock.
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ranks that are threads of one process, for tests: [`Threads::run`].
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    size: usize,
    shared: Arc<Shared>,
}

/// The panic payload of an abort: the exit code.
struct Aborted(u8);

impl Threads {
    /// Runs `work` on `size` ranks, each in a thread of its own. Returns their results in the order of the ranks.
    ///
    /// A rank ends when it returns, with an error or not, panics or aborts. Other ranks that wait for it, then or
    /// later, get an error. A panic becomes an error.
    pub fn run<T: Send>(
        size: usize,
        work: impl Fn(Arc<dyn Collective>) -> Result<T, Error> + Sync,
    ) -> Vec<Result<T, Error>> {
        Self::run_ranks(size, &|threads| work(Arc::new(Ranks::new(threads))))
    }

    /// Does what [`Threads::run`] does, with messages of at most `bucket` bytes.
    pub fn run_with_bucket<T: Send>(
        size: usize,
        bucket: usize,
        work: impl Fn(Arc<dyn Collective>) -> Result<T, Error> + Sync,
    ) -> Vec<Result<T, Error>> {
        Self::run_ranks(size, &|threads| work(Arc::new(Ranks::with_bucket(threads, bucket))))
    }

    fn run_ranks<T: Send>(size: usize, work: &(dyn Fn(Self) -> Result<T, Error> + Sync)) -> Vec<Result<T, Error>> {
        let shared = Arc::new(Shared::default());
        shared.lock().sent.resize_with(size, || None);
        std::thread::scope(|scope| {
            let start = |rank: usize| {
                let threads = Self { rank, size, shared: shared.clone() };
                // The panic of a rank is caught in its own thread, after its handle to the ranks is dropped.
                scope.spawn(move || catch_unwind(AssertUnwindSafe(|| work(threads))))
            };
            let ranks: Vec<_> = (0..size).map(start).collect();
            let join = |(rank, thread): (usize, std::thread::ScopedJoinHandle<'_, _>)| {
                let text = match thread.join().unwrap_or_else(Err) {
                    Ok(done) => return done,
                    Err(panic) => match (panic.downcast_ref::<Aborted>(), panic.downcast_ref::<String>()) {
                        (Some(Aborted(code)), _) => format!("rank {rank} aborted with code {code}"),
                        (_, Some(text)) => format!("rank {rank} panicked: {text}"),
                        _ => {
                            let text = panic.downcast_ref::<&str>().unwrap_or(&"no message");
                            format!("rank {rank} panicked: {text}")
                        }
                    },
                };
                Err(Error::unmet(text))
            };
            ranks.into_iter().enumerate().map(join).collect()
        })
    }

    /// Sends, and returns what all ranks sent.
    fn round(&self, sent: Sent) -> Result<Vec<Arc<Sent>>, Error> {
        let mut round = self.shared.lock();
        let wait = |round| self.shared.changed.wait(round).unwrap_or_else(PoisonError::into_inner);
        // Other ranks may not have received all of the last round yet.
        while round.sent[self.rank].is_some() {
            round = wait(round);
        }
        round.sent[self.rank] = Some(Arc::new(sent));
        self.shared.changed.notify_all();
        loop {
            let all: Option<Vec<Arc<Sent>>> = round.sent.iter().cloned().collect();
            if let Some(all) = all {
                round.taken += 1;
                if round.taken == self.size {
                    round.taken = 0;
                    round.sent.fill(None);
                    self.shared.changed.notify_all();
                }
                return Ok(all);
            }
            if let Some((rank, code)) = round.ended {
                let how = code.map_or_else(|| "has ended".to_owned(), |code| format!("aborted with code {code}"));
                return Err(Error::unmet(format!("rank {rank} {how}; rank {} can't continue without it", self.rank)));
            }
            round = wait(round);
        }
    }

    fn end(&self, code: Option<u8>) {
        self.shared.lock().ended.get_or_insert((self.rank, code));
        self.shared.changed.notify_all();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.end(None);
    }
}

impl Transport for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn local_rank(&self) -> usize {
        self.rank
    }

    fn local_size(&self) -> usize {
        self.size
    }

    fn exchange(&self, sent: (&[u8], &[usize]), received: (&mut [u8], &[usize])) -> Result<(), Error> {
        let all = self.round(Sent { bytes: sent.0.to_vec(), lengths: sent.1.to_vec() })?;
        let mut rest = received.0;
        for (sent, length) in all.iter().zip(received.1) {
            let (piece, after) = rest.split_at_mut(*length);
            piece.copy_from_slice(sent.piece(self.rank));
            rest = after;
        }
        Ok(())
    }

    fn collect(&self, sent: &[u8], received: (&mut [u8], &[usize])) -> Result<(), Error> {
        let all = self.round(Sent { bytes: sent.to_vec(), lengths: Vec::new() })?;
        let mut rest = received.0;
        for (sent, length) in all.iter().zip(received.1) {
            let (piece, after) = rest.split_at_mut(*length);
            piece.copy_from_slice(&sent.bytes);
            rest = after;
        }
        Ok(())
    }

    fn spread(&self, bytes: &mut [u8], root: usize) -> Result<(), Error> {
        let own = if self.rank == root { bytes.to_vec() } else { Vec::new() };
        let all = self.round(Sent { bytes: own, lengths: Vec::new() })?;
        bytes.copy_from_slice(&all[root].bytes);
        Ok(())
    }

    fn abort(&self, code: u8) -> ! {
        self.end(Some(code));
        resume_unwind(Box::new(Aborted(code)))
    }
}

#[cfg(test)]
mod tests;
