//! The data that ranks exchange besides gradients when they share the timesteps.

use ndarray::ArrayD;
use serde::{Deserialize, Serialize};

use crate::collective::{Collective, from_first, unshared};
use crate::diffusion::Samples;
use crate::error::Error;
use crate::gradient::accumulate::{Accumulated, LossPoint};

/// The header that is sent before the values of samples.
#[derive(Serialize, Deserialize)]
struct Heading {
    dims: Vec<usize>,
    numbers: Vec<usize>,
    total: Option<usize>,
    source: String,
}

/// The timesteps that an earlier run visited.
#[derive(Serialize, Deserialize)]
struct Progress {
    curve: Vec<LossPoint>,
    complete: bool,
}

/// Returns the samples that the first rank reads or generates. All ranks get the same bits, and only the first rank
/// needs the data.
pub(in crate::prune) fn of_first(
    ranks: &dyn Collective,
    make: impl FnOnce() -> Result<Samples, Error>,
) -> Result<Samples, Error> {
    if ranks.size() == 1 {
        return make();
    }
    let made = (ranks.rank() == 0).then(make).transpose()?;
    let heading = made.as_ref().map(|samples| Heading {
        dims: samples.values.shape().to_vec(),
        numbers: samples.numbers.clone(),
        total: samples.total,
        source: samples.source.clone(),
    });
    let Heading { dims, numbers, total, source } = from_first(ranks, heading.as_ref())?;
    let own = made.map(|samples| samples.values.iter().flat_map(|value| value.to_le_bytes()).collect());
    let mut bytes: Vec<u8> = own.unwrap_or_default();
    ranks.broadcast(&mut bytes, 0)?;
    let values = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let values = ArrayD::from_shape_vec(dims, values).map_err(unshared)?;
    Ok(Samples { values, numbers, total, source })
}

/// Sends the progress of the first rank to the others. The sum up to there remains on the first rank.
pub(super) fn share_progress(ranks: &dyn Collective, sum: &mut Accumulated) -> Result<(), Error> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let own = Progress { curve: sum.curve.clone(), complete: sum.complete };
    let Progress { curve, complete } = from_first(ranks, (ranks.rank() == 0).then_some(&own))?;
    (sum.visited, sum.curve, sum.complete) = (curve.len(), curve, complete);
    Ok(())
}

/// Returns the memory that every rank may use: its share of the free memory of its machine, or that of the rank with
/// the least, so that all ranks make runs of the same size.
pub(in crate::prune) fn share_of_memory(ranks: &dyn Collective, available: Option<u64>) -> Result<Option<u64>, Error> {
    if ranks.size() == 1 {
        return Ok(available);
    }
    let own = available.map_or(f64::INFINITY, |bytes| (bytes / ranks.local_size().max(1) as u64) as f64);
    let mut all = vec![0.0; ranks.size()];
    all[ranks.rank()] = own;
    ranks.sum_f64(&mut all)?;
    let least = all.into_iter().fold(f64::INFINITY, f64::min);
    Ok(least.is_finite().then_some(least as u64))
}

/// Returns the number of threads for a rank that shares CPU cores with other ranks and is not bound to some of them;
/// `None` if there is no other rank.
pub fn threads(ranks: &dyn Collective) -> Option<usize> {
    let sharing = ranks.local_size();
    let own = std::thread::available_parallelism().ok()?.get();
    (sharing > 1).then(|| share_of_processors(own, processors(), sharing))
}

/// Returns the number of threads for a rank that may use `own` of the machine's cores.
fn share_of_processors(own: usize, all: Option<usize>, sharing: usize) -> usize {
    // A launcher that binds ranks assigns some cores to each.
    let is_bound = all.is_some_and(|all| own < all);
    if is_bound { own } else { (own / sharing).max(1) }
}

/// Returns the number of the machine's CPU cores, regardless of those that this process may use.
#[cfg(unix)]
fn processors() -> Option<usize> {
    // SAFETY: only queries a number.
    #[expect(unsafe_code, reason = "calling the C library")]
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(count).ok().filter(|count| *count > 0)
}

#[cfg(not(unix))]
fn processors() -> Option<usize> {
    None
}

/// Describes the execution provider and the number of ranks.
pub(super) fn described(ranks: &dyn Collective, execution: String) -> String {
    match ranks.size() {
        1 => execution,
        size => format!("{execution}, on {size} ranks"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::collective::{Alone, Threads};

    #[test]
    fn cores_are_divided_if_ranks_are_not_bound() {
        assert_eq!(share_of_processors(16, Some(16), 4), 4);
        assert_eq!(share_of_processors(4, Some(16), 4), 4);
        assert_eq!(share_of_processors(2, None, 4), 1);
        assert_eq!(threads(&Alone), None);
    }

    #[test]
    fn all_ranks_use_the_memory_of_the_rank_with_the_least() {
        let of = |free: [Option<u64>; 2]| {
            let found = Threads::run(2, |ranks| share_of_memory(&*ranks, free[ranks.rank()]));
            found.into_iter().map(Result::unwrap).collect::<Vec<_>>()
        };
        assert_eq!(of([Some(100), Some(70)]), [Some(35); 2]);
        assert_eq!(of([Some(100), None]), [Some(50); 2]);
        assert_eq!(of([None, None]), [None; 2]);
    }

    #[test]
    fn samples_of_the_first_rank_reach_the_others() {
        let values = ArrayD::from_shape_fn(vec![3, 2], |at| (at[0] as f32 - 0.5) / 3.0 + at[1] as f32);
        let samples = Samples { values, numbers: vec![4, 0, 9], total: Some(10), source: "a folder".to_owned() };
        for found in Threads::run(2, |ranks| {
            of_first(&*ranks, || if ranks.rank() == 0 { Ok(samples.clone()) } else { Err(Error::unmet("no data")) })
        }) {
            assert_eq!(found.unwrap(), samples);
        }
    }
}
