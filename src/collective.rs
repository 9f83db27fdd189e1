//! Several processes that work as one: ranks, and what they do together.
//!
//! A [`Collective`] is a single process ([`Alone`]), some threads of one process for tests ([`Threads`]), or the ranks that
//! `mpirun` or `srun` started ([`open`], with the feature `mpi`). All ranks call the same operations in the same order; each
//! operation first compares what the ranks ask for, so that ranks out of step get an error and no wrong numbers.
//!
//! **Determinism.** A sum is `v_0 + v_1 + ... + v_(n-1)` in the order of the ranks, in the type of the values, at every
//! element: it depends neither on the MPI library nor on the network, the length of the buckets or time, and all ranks get
//! the same bits. Threads and MPI give the same bits. Another number of ranks groups the terms differently, so results of
//! different numbers of ranks agree to rounding only.

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
pub use first::{first_says, of_first, told};
pub use launch::{Launch, launch};
pub use threads::Threads;

use crate::error::Error;

/// The ranks of a run, as one of them sees them.
///
/// Every operation is called by all ranks. Where a rank fails and will not call the next one, it calls
/// [`Collective::abort`]: ranks of MPI would wait for it forever.
///
/// # Errors
/// All operations: the ranks call different operations or give different lengths; a rank has ended.
pub trait Collective: Send + Sync + fmt::Debug {
    /// The number of this rank, below [`Collective::size`].
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// The number of this rank among those of its machine: which device it takes.
    fn local_rank(&self) -> usize;

    /// How many ranks this machine has: what they share its CPUs with.
    fn local_size(&self) -> usize;

    /// Sums in place over all ranks; every rank gets bit for bit the same result.
    fn sum(&self, values: &mut [f32]) -> Result<(), Error>;

    /// As [`Collective::sum`].
    fn sum_f64(&self, values: &mut [f64]) -> Result<(), Error>;

    /// Rank `i` gets the sum of `values[parts[i]]` over all ranks, the same bits that [`Collective::sum`] gives; everything
    /// else in `values` stays. There is one part per rank (`parts` makes equal ones).
    fn reduce_scatter(&self, values: &mut [f32], parts: &[Range<usize>]) -> Result<(), Error>;

    /// Every rank gets `values[parts[i]]` of rank `i`, for all `i`; what is in no part stays.
    fn all_gather(&self, values: &mut [f32], parts: &[Range<usize>]) -> Result<(), Error>;

    /// Every rank gets the bytes of rank `root`.
    fn broadcast(&self, bytes: &mut Vec<u8>, root: usize) -> Result<(), Error>;

    /// Rank 0 gets the bytes of all ranks, in their order; the others get `None`.
    fn gather(&self, bytes: Vec<u8>) -> Result<Option<Vec<Vec<u8>>>, Error>;

    /// Returns once all ranks have called it.
    fn barrier(&self) -> Result<(), Error>;

    /// Ends all ranks with an exit code. Of a single process, and of ranks of MPI, the processes end; of threads, this one
    /// unwinds and the others get errors.
    fn abort(&self, code: u8) -> !;
}

/// The least of the numbers of all ranks, which is then the same at all: below 2^53.
///
/// # Errors
/// A rank has ended.
pub fn least(ranks: &dyn Collective, own: usize) -> Result<usize, Error> {
    let mut all = vec![0.0; ranks.size()];
    all[ranks.rank()] = own as f64;
    ranks.sum_f64(&mut all)?;
    Ok(all.into_iter().fold(own as f64, f64::min) as usize)
}

/// `length` values in one part per rank: of equal length but for the last, which has the rest.
pub fn parts(length: usize, size: usize) -> Vec<Range<usize>> {
    let part = length.div_ceil(size.max(1));
    (0..size.max(1)).map(|rank| (rank * part).min(length)..((rank + 1) * part).min(length)).collect()
}

/// The ranks that this process is one of: those of the `mpirun` or `srun` that started it, or it alone.
///
/// This initialises MPI, at most once per process; it must come before ONNX Runtime is opened, whose libraries and threads
/// some MPI libraries can't be initialised after. The last handle is to be dropped on the thread that called this, once all
/// ranks are done: that ends MPI.
///
/// # Errors
/// Several processes were started by a build that knows no MPI, or by a launcher of another MPI than the one that this
/// build uses: each would do all of the work. The MPI library was initialised before, or allows no other threads.
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
        "{count} processes were started ({}={}), but this build has no MPI: each would do all of the work",
        started.variable, started.value
    );
    Err(Error::usage(text).hint("build with --features mpi (an MPI library and libclang are needed), or start it once"))
}
