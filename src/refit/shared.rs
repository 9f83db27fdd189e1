//! Refits over ranks: each rank runs both networks on some of the chunks, the equations are summed, and the first rank
//! solves them for all.
//!
//! The chunks of a rank are consecutive, so that concatenated rows have the order of a single process.

use std::ops::Range;

use prost::Message;
use serde::{Deserialize, Serialize};

use super::checkpoint::Outcome;
use super::fit::{Fit, Found};
use crate::collective::{Collective, parts, unshared};
use crate::error::Error;
use crate::onnx::TensorProto;

/// Returns the chunks of this rank.
pub(super) fn own_chunks(ranks: &dyn Collective, chunks: usize) -> Range<usize> {
    parts(chunks, ranks.size())[ranks.rank()].clone()
}

/// Returns the bytes of every rank, in the order of the ranks.
pub(super) fn of_all(ranks: &dyn Collective, own: Vec<u8>) -> Result<Vec<Vec<u8>>, Error> {
    let mut all = vec![Vec::new(); ranks.size()];
    all[ranks.rank()] = own;
    for (rank, bytes) in all.iter_mut().enumerate() {
        ranks.broadcast(bytes, rank)?;
    }
    Ok(all)
}

/// Sums the equations of all ranks.
///
/// # Errors
/// A rank has stopped.
pub(super) fn equations(ranks: &dyn Collective, fit: &mut Fit<'_>) -> Result<(), Error> {
    if ranks.size() == 1 {
        return Ok(());
    }
    fit.systems.iter_mut().try_for_each(|system| system.share(ranks))?;
    fit.held.iter_mut().try_for_each(|held| held.share(ranks))?;
    let mut squares = [fit.squares];
    ranks.sum_f64(&mut squares)?;
    fit.squares = squares[0];
    Ok(())
}

/// One fit as sent between ranks, without the elements of its constants.
#[derive(Serialize, Deserialize)]
struct Heading {
    /// Why the old weights are kept. `None`: they are not.
    reason: Option<String>,
    errors: (f64, f64),
    /// Number of bytes of each constant that changes, and of each bias, with its use and the layer that has it.
    tensors: Vec<usize>,
    biases: Vec<(usize, usize, usize)>,
}

/// Sends the outcome of a fit, solved by the first rank, to all ranks.
pub(super) fn outcome(ranks: &dyn Collective, own: Option<Outcome>) -> Result<Option<Outcome>, Error> {
    if ranks.size() == 1 {
        return Ok(own);
    }
    let (mut heading, mut content) = (Vec::new(), Vec::new());
    if let Some(outcome) = &own {
        let found = outcome.as_ref().ok();
        let tensors: Vec<Vec<u8>> = found.iter().flat_map(|found| &found.tensors).map(Message::encode_to_vec).collect();
        let biases = found.iter().flat_map(|found| &found.biases);
        let biases: Vec<_> = biases.map(|(of, layer, bias)| (*of, *layer, bias.encode_to_vec())).collect();
        let sent = Heading {
            reason: outcome.as_ref().err().cloned(),
            errors: found.map_or((0.0, 0.0), |found| found.errors),
            tensors: tensors.iter().map(Vec::len).collect(),
            biases: biases.iter().map(|(of, layer, bias)| (*of, *layer, bias.len())).collect(),
        };
        heading = serde_json::to_vec(&sent).map_err(unshared)?;
        content = [tensors.concat(), biases.into_iter().flat_map(|(_, _, bias)| bias).collect()].concat();
    }
    ranks.broadcast(&mut heading, 0)?;
    ranks.broadcast(&mut content, 0)?;
    if ranks.rank() == 0 || heading.is_empty() {
        return Ok(own);
    }
    let Heading { reason, errors, tensors, biases } = serde_json::from_slice(&heading).map_err(unshared)?;
    if let Some(reason) = reason {
        return Ok(Some(Err(reason)));
    }
    let mut rest = content.as_slice();
    let mut tensor = |length: usize| {
        let (own, after) = rest.split_at_checked(length).ok_or_else(|| unshared("it is too short"))?;
        rest = after;
        TensorProto::decode(own).map_err(unshared)
    };
    let tensors = tensors.into_iter().map(&mut tensor).collect::<Result<Vec<_>, Error>>()?;
    let biases = biases.into_iter().map(|(of, layer, length)| Ok((of, layer, tensor(length)?)));
    Ok(Some(Ok(Found { tensors, biases: biases.collect::<Result<_, Error>>()?, errors })))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::collective::Threads;

    #[test]
    fn the_outcome_of_the_first_rank_reaches_all_ranks() {
        let found = || Found {
            tensors: vec![TensorProto::of_floats("w", &[1.0, 0.1], &[2]), TensorProto::of_floats("v", &[3.0], &[1])],
            biases: vec![(1, 0, TensorProto::of_floats("b", &[-0.3], &[1]))],
            errors: (0.5, 0.1),
        };
        for own in [Some(Ok(found())), Some(Err("it is worse".to_owned())), None] {
            let told = Threads::run(3, |ranks| {
                let own = own.as_ref().filter(|_| ranks.rank() == 0);
                let own = own.map(|own| own.as_ref().map(|_| found()).map_err(Clone::clone));
                outcome(&*ranks, own)
            });
            for told in told {
                assert_eq!(format!("{:?}", told.unwrap()), format!("{own:?}"));
            }
        }
    }

    #[test]
    fn chunks_and_bytes_are_in_the_order_of_the_ranks() {
        for found in Threads::run(3, |ranks| {
            let own: Vec<u8> = own_chunks(&*ranks, 7).map(|chunk| u8::try_from(chunk).unwrap()).collect();
            of_all(&*ranks, own)
        }) {
            assert_eq!(found.unwrap().concat(), (0..7).collect::<Vec<u8>>());
        }
    }
}
