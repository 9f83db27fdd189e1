//! Ranks that `mpirun` or `srun` started.

use std::mem::ManuallyDrop;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use mpi::Threading;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};

use super::Launch;
use super::ranks::Transport;
use crate::error::Error;

/// The ranks of MPI's `MPI_COMM_WORLD`.
///
/// An error inside MPI ends all ranks with MPI's message: this is the default error handler of the MPI standard.
pub(super) struct Mpi {
    /// Dropped on exit only if this rank did not panic. All ranks finalise MPI together, and others may be waiting for
    /// this one in another call.
    universe: ManuallyDrop<Universe>,
    /// Held during a call: only one thread at a time may call MPI.
    calls: Mutex<()>,
    /// The only thread that may call MPI. `None`: any thread may, one at a time.
    caller: Option<ThreadId>,
    rank: usize,
    size: usize,
    local_rank: usize,
    local_size: usize,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mpi").field("rank", &self.rank).field("size", &self.size).finish_non_exhaustive()
    }
}

/// Converts a count of MPI, which is never negative.
fn counted(count: i32) -> usize {
    usize::try_from(count).unwrap_or(0)
}

impl Mpi {
    pub(super) fn open(started: &Launch) -> Result<Self, Error> {
        let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Serialized) else {
            return Err(Error::usage(
                "MPI is already initialised in this process, and it can be initialised only once",
            ));
        };
        if threading < Threading::Funneled {
            let text = "the MPI library allows no other threads in the process (MPI_THREAD_SINGLE)";
            return Err(Error::usage(text).hint("use an MPI library that is built with thread support"));
        }
        let world = universe.world();
        let (rank, size) = (counted(world.rank()), counted(world.size()));
        let is_whole = match started.size {
            Some(expected) => expected == size,
            // The value is then the rank of this process.
            None => started.value.trim().parse() == Ok(rank),
        };
        if !is_whole {
            let text = format!(
                "{} is {}, but the MPI library of this build ({}) sees {size} of the processes",
                started.variable,
                started.value,
                mpi::environment::library_version().unwrap_or_default().split(',').next().unwrap_or_default()
            );
            return Err(Error::usage(text).hint(
                "start it with the mpirun of the MPI library that it was built with, or with srun --mpi=pmix or pmi2",
            ));
        }
        let local = world.split_shared(world.rank());
        let (local_rank, local_size) = (counted(local.rank()), counted(local.size()));
        drop(local);
        Ok(Self {
            universe: ManuallyDrop::new(universe),
            calls: Mutex::new(()),
            caller: (threading < Threading::Serialized).then(|| std::thread::current().id()),
            rank,
            size,
            local_rank,
            local_size,
        })
    }

    /// Locks MPI for this thread and returns its world.
    fn world(&self) -> Result<(MutexGuard<'_, ()>, SimpleCommunicator), Error> {
        if self.caller.is_some_and(|caller| caller != std::thread::current().id()) {
            return Err(Error::usage("with this MPI library, only the thread that initialised it may call it"));
        }
        // The lock guards no data, so a panic of its holder leaves nothing inconsistent.
        let call = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((call, self.universe.world()))
    }
}

impl Drop for Mpi {
    #[expect(unsafe_code, reason = "it is dropped once, here, or never")]
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: nothing uses it after this.
            unsafe { ManuallyDrop::drop(&mut self.universe) }
        }
    }
}

/// Replaces an empty slice by one with a valid address. Empty slices may have any address, even 1, which Open MPI takes
/// for `MPI_IN_PLACE`.
fn addressed(bytes: &[u8]) -> &[u8] {
    if bytes.is_empty() { &[0; 1][..0] } else { bytes }
}

/// Does what [`addressed`] does. An empty slice gets the address of `place`.
fn addressed_mut<'a>(bytes: &'a mut [u8], place: &'a mut [u8; 1]) -> &'a mut [u8] {
    if bytes.is_empty() { &mut place[..0] } else { bytes }
}

/// Returns lengths as MPI counts, and the offset at which each piece begins.
fn counts(lengths: &[usize]) -> Result<(Vec<i32>, Vec<i32>), Error> {
    let too_long = |_| Error::unmet("a message is too long for MPI: its counts and offsets end at 2^31 - 1");
    let counts: Vec<i32> =
        lengths.iter().map(|length| i32::try_from(*length)).collect::<Result<_, _>>().map_err(too_long)?;
    let mut start = 0_usize;
    let begin = |length: &usize| {
        let begins = i32::try_from(start);
        start += length;
        begins
    };
    let begins = lengths.iter().map(begin).collect::<Result<_, _>>().map_err(too_long)?;
    Ok((counts, begins))
}

impl Transport for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn local_rank(&self) -> usize {
        self.local_rank
    }

    fn local_size(&self) -> usize {
        self.local_size
    }

    fn exchange(&self, sent: (&[u8], &[usize]), received: (&mut [u8], &[usize])) -> Result<(), Error> {
        let (_call, world) = self.world()?;
        let (sent_counts, sent_begins) = counts(sent.1)?;
        let (counts, begins) = counts(received.1)?;
        let sent = Partition::new(addressed(sent.0), sent_counts, sent_begins);
        let mut place = [0];
        let received = addressed_mut(received.0, &mut place);
        world.all_to_all_varcount_into(&sent, &mut PartitionMut::new(received, counts, begins));
        Ok(())
    }

    fn collect(&self, sent: &[u8], received: (&mut [u8], &[usize])) -> Result<(), Error> {
        let (_call, world) = self.world()?;
        let (counts, begins) = counts(received.1)?;
        let mut place = [0];
        let received = addressed_mut(received.0, &mut place);
        world.all_gather_varcount_into(addressed(sent), &mut PartitionMut::new(received, counts, begins));
        Ok(())
    }

    fn spread(&self, bytes: &mut [u8], root: usize) -> Result<(), Error> {
        let (_call, world) = self.world()?;
        let root = i32::try_from(root).map_err(|_| Error::usage("no such rank"))?;
        world.process_at_rank(root).broadcast_into(bytes);
        Ok(())
    }

    fn abort(&self, code: u8) -> ! {
        // This does not take the lock: another thread may be blocked in a call forever.
        self.universe.world().abort(code.into())
    }
}
