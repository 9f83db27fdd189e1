//! Rounds of timesteps: one for each rank, judged together.

use std::ops::Range;

use super::{AccumulateOptions, ThresholdMode};
use crate::collective::Collective;
use crate::error::Error;

/// The division of timesteps over ranks: rank `i` processes the `i`-th timestep of every round.
#[derive(Clone, Copy, Debug)]
pub struct Rounds<'a> {
    /// The ranks.
    pub ranks: &'a dyn Collective,
    /// If set, a round also ends at every multiple of this number of visited timesteps, for a step that reads the sum
    /// there.
    pub ends_at: Option<usize>,
}

impl Rounds<'_> {
    /// Returns the round that begins after `visited` timesteps.
    pub(super) fn next(&self, visited: usize, total: usize) -> Range<usize> {
        let end = (visited + self.ranks.size()).min(total);
        match self.ends_at {
            Some(every) if every > 0 => visited..end.min((visited / every + 1) * every),
            _ => visited..end,
        }
    }

    /// Shares the losses of a round among all ranks. Ranks beyond the end of the round have none.
    pub(super) fn share(&self, round: &Range<usize>, loss: f64) -> Result<Vec<f64>, Error> {
        if self.ranks.size() == 1 {
            return Ok(vec![loss]);
        }
        Ok(shared(self.ranks, &[loss])?.into_iter().take(round.len()).flatten().collect())
    }
}

/// Shares numbers among all ranks. Returns those of every rank, in rank order.
pub(super) fn shared(ranks: &dyn Collective, own: &[f64]) -> Result<Vec<Vec<f64>>, Error> {
    let length = own.len();
    let mut all = vec![0.0; length * ranks.size()];
    all[ranks.rank() * length..][..length].copy_from_slice(own);
    // Every rank adds only zeros to the numbers of the others.
    ranks.sum_f64(&mut all)?;
    Ok((0..ranks.size()).map(|rank| all[rank * length..][..length].to_vec()).collect())
}

/// The rule that decides which timesteps are kept.
#[derive(Debug)]
pub(super) struct Rule<'a> {
    options: &'a AccumulateOptions,
    /// The losses of all timesteps, and the largest of them. `None`: not known in advance.
    known: Option<(&'a [f64], f64)>,
}

/// The decision on the timesteps of a round: the loss of each, and whether it is kept. Timesteps after the end of a
/// prefix are omitted.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Judged {
    pub(super) losses: Vec<(f64, bool)>,
    /// Whether the sum ends in this round.
    pub(super) ends: bool,
}

impl Judged {
    /// Returns whether the timestep at this position of the round is kept.
    pub(super) fn keeps(&self, at: usize) -> bool {
        self.losses.get(at).is_some_and(|(_, kept)| *kept)
    }
}

impl<'a> Rule<'a> {
    pub(super) fn new(options: &'a AccumulateOptions, known: Option<&'a [f64]>) -> Self {
        let largest = |losses: &[f64]| losses.iter().copied().fold(0.0, f64::max);
        Self { options, known: known.map(|losses| (losses, largest(losses))) }
    }

    /// Returns whether it is known in advance that a timestep is not kept.
    pub(super) fn skips(&self, at: usize) -> bool {
        self.known.is_some_and(|(losses, largest)| self.is_below(losses[at], largest))
    }

    /// Returns whether a loss is below the threshold. Without a threshold none is, because a loss that is no mean of
    /// squares may be negative.
    fn is_below(&self, loss: f64, largest: f64) -> bool {
        self.options.threshold > 0.0 && loss < self.options.threshold * largest
    }

    /// Decides on the timesteps of a round in order. `largest` is the largest loss before the round.
    pub(super) fn judge(&self, round: &Range<usize>, losses: Vec<f64>, mut largest: f64) -> Judged {
        let mut judged = Judged::default();
        for (at, loss) in round.clone().zip(losses) {
            let (loss, kept) = match self.known {
                Some((known, _)) if self.skips(at) => (known[at], false),
                _ => {
                    judged.ends = self.options.mode == ThresholdMode::Prefix && self.is_below(loss, largest.max(loss));
                    (loss, loss.is_finite() && (!judged.ends || self.options.sums_last))
                }
            };
            largest = largest.max(loss);
            judged.losses.push((loss, kept));
            if judged.ends {
                break;
            }
        }
        judged
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::collective::{Alone, Threads};

    const OPTIONS: AccumulateOptions = AccumulateOptions {
        threshold: 0.5,
        mode: ThresholdMode::Prefix,
        sums_last: false,
        squared: false,
        micro_batch: 1,
    };

    #[test]
    fn a_prefix_may_end_within_a_round() {
        let judge =
            |options: &AccumulateOptions| Rule::new(options, None).judge(&(4..8), vec![2.0, 4.0, 1.0, 4.0], 3.0);
        let found = judge(&OPTIONS);
        assert_eq!(found, Judged { losses: vec![(2.0, true), (4.0, true), (1.0, false)], ends: true });
        assert!(found.keeps(1) && !found.keeps(2) && !found.keeps(3));
        assert!(judge(&AccumulateOptions { sums_last: true, ..OPTIONS }).keeps(2));
        let found = judge(&AccumulateOptions { threshold: 0.0, ..OPTIONS });
        assert!(found.keeps(3) && !found.ends);
    }

    #[test]
    fn losses_of_any_sign_count_without_a_threshold() {
        let options = AccumulateOptions { threshold: 0.0, ..OPTIONS };
        let found = Rule::new(&options, None).judge(&(0..3), vec![1.0, -2.0, -3.0], 0.0);
        assert!((0..3).all(|at| found.keeps(at)) && !found.ends);
        assert!(!Rule::new(&options, Some(&[1.0, -2.0])).skips(1));
    }

    #[test]
    fn a_mask_uses_the_losses_that_are_known_in_advance() {
        let options = AccumulateOptions { mode: ThresholdMode::Mask, ..OPTIONS };
        let known = [1.0, 4.0, 2.0];
        let rule = Rule::new(&options, Some(&known));
        assert!(rule.skips(0) && !rule.skips(2));
        let found = rule.judge(&(0..3), vec![0.0, 4.5, 2.5], 0.0);
        assert_eq!(found, Judged { losses: vec![(1.0, false), (4.5, true), (2.5, true)], ends: false });
    }

    #[test]
    fn rounds_end_where_the_sum_is_read() {
        for found in Threads::run(4, |ranks| {
            let rounds = Rounds { ranks: &*ranks, ends_at: Some(10) };
            assert_eq!(rounds.next(4, 100), 4..8);
            assert_eq!(rounds.next(8, 100), 8..10);
            assert_eq!(rounds.next(10, 13), 10..13);
            assert_eq!(rounds.share(&(8..10), ranks.rank() as f64)?, [0.0, 1.0]);
            shared(&*ranks, &[ranks.rank() as f64, 7.0])
        }) {
            assert_eq!(found.unwrap()[3], [3.0, 7.0]);
        }
        assert_eq!(Rounds { ranks: &Alone, ends_at: None }.next(4, 100), 4..5);
    }
}
