//! Several processes that work as one: ranks and their collective operations.
//!
//! A [`Collective`] is a single process ([`Alone`]), threads of one process for tests ([`Threads`]), or the ranks that
//! `mpirun` or `srun` started ([`open`], with the feature `mpi`). All ranks call the same operations in the same order.
//! Each operation first compares the calls of all ranks, so that ranks that are out of step get an error instead of
//! wrong numbers.
//!
//! **Determinism.** A sum is `v_0 + v_1 + ... + v_(n-1)` in the order of the ranks, in the type of the values, for
//! every element. It does not depend on the MPI library, the network, the bucket size or timing, and all ranks get the
//! same bits. Threads and MPI produce the same bits. A different number of ranks groups the terms differently: results
//! of different numbers of ranks agree only up to rounding.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

mod alone;
mod first;
mod launch;
#[cfg(feature = "mpi")]
mod mpi;
mod ranks;
mod threads;

pub use alone::Alone;
pub(crate) use first::unshared;
pub use first::{decision_of_first, from_first, run_on_first};
pub use launch::{Launch, launch};
pub use threads::Threads;

use crate::error::Error;

/// The ranks of a run, as seen by one of them.
///
/// All ranks must call every operation. A rank that fails and will not make the next call must call
/// [`Collective::abort`]: other ranks of MPI would wait for it forever.
///
/// # Errors
/// All operations: the ranks call different operations or pass different lengths; a rank has ended.
pub trait Collective: Send + Sync + fmt::Debug {
    /// Returns the number of this rank, below [`Collective::size`].
    fn rank(&self) -> usize;

    /// Returns the number of ranks.
    fn size(&self) -> usize;

    /// Returns the number of this rank among the ranks of its machine. It chooses the device.
    fn local_rank(&self) -> usize;

    /// Returns the number of ranks on this machine. They share its CPUs.
    fn local_size(&self) -> usize;

    /// Sums in place over all ranks. Every rank gets the same result, bit for bit.
    fn sum(&self, values: &mut [f32]) -> Result<(), Error>;

    /// Does what [`Collective::sum`] does, for float64.
    fn sum_f64(&self, values: &mut [f64]) -> Result<(), Error>;

    /// Sums over all ranks and scatters: rank `i` gets the sum of `values[parts[i]]`, with the same bits as from
    /// [`Collective::sum`]. The rest of `values` remains unchanged. `parts` has one range per rank (the function
    /// `parts` returns equal ones).
    fn reduce_scatter(&self, values: &mut [f32], parts: &[Range<usize>]) -> Result<(), Error>;

    /// Copies `values[parts[i]]` of every rank `i` to all ranks. Values outside all parts remain unchanged.
    fn all_gather(&self, values: &mut [f32], parts: &[Range<usize>]) -> Result<(), Error>;

    /// Copies the bytes of rank `root` to every rank.
    fn broadcast(&self, bytes: &mut Vec<u8>, root: usize) -> Result<(), Error>;

    /// Returns the bytes of all ranks, in the order of the ranks, on rank 0 and `None` on the others.
    fn gather(&self, bytes: Vec<u8>) -> Result<Option<Vec<Vec<u8>>>, Error>;

    /// Returns once all ranks have called it.
    fn barrier(&self) -> Result<(), Error>;

    /// Ends all ranks with an exit code. For a single process and for ranks of MPI, the processes exit. For threads,
    /// this thread unwinds and the others get errors.
    fn abort(&self, code: u8) -> !;
}

/// Returns the minimum of the numbers of all ranks, the same on every rank. Numbers must be below 2^53.
///
/// # Errors
/// A rank has ended.
pub fn least(ranks: &dyn Collective, own: usize) -> Result<usize, Error> {
    let mut all = vec![0.0; ranks.size()];
    all[ranks.rank()] = own as f64;
    ranks.sum_f64(&mut all)?;
    Ok(all.into_iter().fold(own as f64, f64::min) as usize)
}

/// Divides `length` values into one part per rank, all of equal length except that the last ones may be shorter or
/// empty.
pub fn parts(length: usize, size: usize) -> Vec<Range<usize>> {
    let part = length.div_ceil(size.max(1));
    (0..size.max(1)).map(|rank| (rank * part).min(length)..((rank + 1) * part).min(length)).collect()
}

/// Returns the ranks that this process belongs to: those of the `mpirun` or `srun` that started it, or this process
/// alone.
///
/// This initialises MPI, at most once per process. Call it before ONNX Runtime is opened: some MPI libraries can't be
/// initialised once ONNX Runtime's libraries and threads are loaded. Drop the last handle on the thread that called
/// this function, once all ranks are done: that finalises MPI.
///
/// # Errors
/// - Several processes were started, but this build has no MPI, or their launcher belongs to another MPI library than
///   the one of this build: each process would do all of the work.
/// - MPI was already initialised, or the MPI library does not allow other threads.
pub fn open() -> Result<Arc<dyn Collective>, Error> {
    match launch(|name| std::env::var(name).ok()) {
        Some(started) if started.size != Some(1) => several(&started),
        _ => Ok(Arc::new(Alone)),
    }
}

#[cfg(feature = "mpi")]
fn several(started: &Launch) -> Result<Arc<dyn Collective>, Error> {
    Ok(Arc::new(ranks::Ranks::new(mpi::Mpi::open(started)?)))
}

#[cfg(not(feature = "mpi"))]
fn several(started: &Launch) -> Result<Arc<dyn Collective>, Error> {
    let count = started.size.map_or_else(|| "several".to_owned(), |size| size.to_string());
    let text = format!(
        "{count} processes were started ({}={}), but this build has no MPI: each process would do all of the work",
        started.variable, started.value
    );
    Err(Error::usage(text).hint(
        "build with --features mpi (this needs an MPI library and libclang), or start a single process without mpirun",
    ))
}
