//! Prunes in rounds: each round cuts the network that earlier rounds cut, fitted and trained. The result is described
//! as one cut of the first original.

mod carried;

mod folder;

pub use folder::RoundFolder;

use super::options::{CutOptions, Target};

/// Returns the share that is left after the first of several equal steps towards a share: `share^(1/steps)`.
fn root(share: f64, steps: usize) -> f64 {
    share.powf(1.0 / steps.max(1) as f64)
}

impl CutOptions {
    /// Returns the options for round `round` of `rounds`, counted from 1. `self` are the options for all rounds
    /// together; the rounds are geometric steps towards them. `left` is the share of MACs or parameters, according to
    /// the target, that earlier rounds have left.
    #[must_use]
    pub fn of_round(&self, round: usize, rounds: usize, left: f64) -> Self {
        let reached = |share: f64| {
            let wanted = share.powf(round as f64 / rounds.max(1) as f64);
            (wanted / left.max(f64::MIN_POSITIVE)).min(1.0)
        };
        let removed = |ratio: f64| 1.0 - root(1.0 - ratio, rounds);
        Self {
            target: match self.target {
                Target::Ratio(ratio) => Target::Ratio(removed(ratio)),
                Target::Macs(share) => Target::Macs(reached(share)),
                Target::Params(share) => Target::Params(reached(share)),
            },
            max_ratio: removed(self.max_ratio),
            ratio_for: self.ratio_for.iter().map(|(pattern, ratio)| (pattern.clone(), removed(*ratio))).collect(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(found: Target, expected: f64) {
        let (Target::Ratio(found) | Target::Macs(found) | Target::Params(found)) = found;
        assert!((found - expected).abs() < 1e-12, "{found}, expected {expected}");
    }

    #[test]
    fn rounds_are_geometric_steps_to_the_target() {
        let macs = CutOptions::new(Target::Macs(0.125));
        assert_close(macs.of_round(1, 3, 1.0).target, 0.5);
        // An earlier round may have removed more than necessary, or everything.
        assert_close(macs.of_round(2, 3, 0.4).target, 0.25 / 0.4);
        assert_close(macs.of_round(3, 3, 0.1).target, 1.0);
        let ratio = CutOptions { max_ratio: 0.19, ..CutOptions::new(Target::Ratio(0.75)) };
        assert_close(ratio.of_round(2, 2, 0.3).target, 0.5);
        assert!((ratio.of_round(1, 2, 1.0).max_ratio - 0.1).abs() < 1e-12);
        assert_eq!(CutOptions::new(Target::Ratio(0.5)).of_round(1, 4, 1.0).max_ratio, 1.0);
    }
}
