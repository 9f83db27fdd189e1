//! Values that the first rank computes or decides, shared with all ranks.

use serde::{Deserialize, Serialize};

use super::Collective;
use crate::error::Error;

/// The error for a message of the first rank that can't be decoded.
pub(crate) fn unshared(error: impl std::fmt::Display) -> Error {
    Error::unmet(format!("a message from rank 0 to the other ranks can't be decoded: {error}"))
}

/// Returns `made` of the first rank on all ranks. The other ranks pass `None`.
///
/// # Errors
/// A rank has ended.
pub fn from_first<T: Serialize + for<'a> Deserialize<'a>>(
    ranks: &dyn Collective,
    made: Option<&T>,
) -> Result<T, Error> {
    let mut bytes = made.map(serde_json::to_vec).transpose().map_err(unshared)?.unwrap_or_default();
    ranks.broadcast(&mut bytes, 0)?;
    serde_json::from_slice(&bytes).map_err(unshared)
}

/// Runs `make` on the first rank and returns its result on all ranks.
///
/// # Errors
/// The error of `make`, or a rank has ended.
pub fn run_on_first<T: Serialize + for<'a> Deserialize<'a>>(
    ranks: &dyn Collective,
    make: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    if ranks.size() == 1 {
        return make();
    }
    let made = (ranks.rank() == 0).then(make).transpose()?;
    from_first(ranks, made.as_ref())
}

/// Returns the decision of the first rank on all ranks. Clocks and arithmetic of the ranks may differ, so only its
/// `own` counts.
///
/// # Errors
/// A rank has ended.
pub fn decision_of_first(ranks: &dyn Collective, own: bool) -> Result<bool, Error> {
    let mut decided = [f64::from(u8::from(own && ranks.rank() == 0))];
    ranks.sum_f64(&mut decided)?;
    Ok(decided[0] != 0.0)
}
