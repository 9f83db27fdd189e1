//! What the first rank finds, decides or makes, at all of them.

use serde::{Deserialize, Serialize};

use super::Collective;
use crate::error::Error;

/// The error of a message of the first rank that makes no sense.
pub(crate) fn unshared(error: impl std::fmt::Display) -> Error {
    Error::unmet(format!("what the first rank tells the others can't be read: {error}"))
}

/// What the first rank has `made`; the others give `None`.
///
/// # Errors
/// A rank has ended.
pub fn told<T: Serialize + for<'a> Deserialize<'a>>(ranks: &dyn Collective, made: Option<&T>) -> Result<T, Error> {
    let mut bytes = made.map(serde_json::to_vec).transpose().map_err(unshared)?.unwrap_or_default();
    ranks.broadcast(&mut bytes, 0)?;
    serde_json::from_slice(&bytes).map_err(unshared)
}

/// What `make` makes on the first rank, at all of them.
///
/// # Errors
/// That of `make`; a rank has ended.
pub fn of_first<T: Serialize + for<'a> Deserialize<'a>>(
    ranks: &dyn Collective,
    make: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    if ranks.size() == 1 {
        return make();
    }
    let made = (ranks.rank() == 0).then(make).transpose()?;
    told(ranks, made.as_ref())
}

/// What the first rank decides, by its clock or its arithmetic.
///
/// # Errors
/// A rank has ended.
pub fn first_says(ranks: &dyn Collective, own: bool) -> Result<bool, Error> {
    let mut decided = [f64::from(u8::from(own && ranks.rank() == 0))];
    ranks.sum_f64(&mut decided)?;
    Ok(decided[0] != 0.0)
}
