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

/// The ranks of MPI's world.
///
/// Errors inside of MPI end all ranks, with MPI's own message, as its standard says where nothing else is asked for.
pub(super) struct Mpi {
    /// Dropped on the way out only if this rank did not panic: MPI is ended by all ranks together, and others may be
    /// waiting for this one elsewhere.
    universe: ManuallyDrop<Universe>,
    /// One thread at a time may call.
    calls: Mutex<()>,
    /// The only thread that may call, where the library says so.
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

/// A count of MPI, none of which is negative.
fn counted(count: i32) -> usize {
    usize::try_from(count).unwrap_or(0)
}

impl Mpi {
    pub(super) fn open(started: &Launch) -> Result<Self, Error> {
        let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Serialized) else {
            return Err(Error::usage("MPI was initialised before in this process: it can be only once"));
        };
        if threading < Threading::Funneled {
            let text = "the MPI library allows no other threads in the process (MPI_THREAD_SINGLE)";
            return Err(Error::usage(text).hint("use an MPI library that is built with threads"));
        }
        let world = universe.world();
        let (rank, size) = (counted(world.rank()), counted(world.size()));
        let is_whole = match started.size {
            Some(expected) => expected == size,
            // What is known then is a rank.
            None => started.value.trim().parse() == Ok(rank),
        };
        if !is_whole {
            let text = format!(
                "{} is {}, but the MPI library of this build sees {size} of the processes ({})",
                started.variable,
                started.value,
                mpi::environment::library_version().unwrap_or_default().split(',').next().unwrap_or_default()
            );
            return Err(Error::usage(text).hint(
                "start it with the mpirun of the MPI library that it was built with, or srun --mpi=pmix or pmi2",
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

    /// The right to call MPI, and what to call.
    fn world(&self) -> Result<(MutexGuard<'_, ()>, SimpleCommunicator), Error> {
        if self.caller.is_some_and(|caller| caller != std::thread::current().id()) {
            return Err(Error::usage("this MPI library may be called by the thread that initialised it only"));
        }
        // A panic while it was held leaves nothing half done here.
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

/// Empty slices of bytes may have any address, 1 too: Open MPI takes that for `MPI_IN_PLACE`.
fn addressed(bytes: &[u8]) -> &[u8] {
    if bytes.is_empty() { &[0; 1][..0] } else { bytes }
}

/// As [`addressed`], where `place` is the address of no bytes.
fn addressed_mut<'a>(bytes: &'a mut [u8], place: &'a mut [u8; 1]) -> &'a mut [u8] {
    if bytes.is_empty() { &mut place[..0] } else { bytes }
}

/// Lengths as MPI counts them, with where each piece begins.
fn counts(lengths: &[usize]) -> Result<(Vec<i32>, Vec<i32>), Error> {
    let too_long = |_| Error::unmet("a message for MPI is longer than its counts go");
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
        // Not through the lock: another thread may be waiting in a call for good.
        self.universe.world().abort(code.into())
    }
}
