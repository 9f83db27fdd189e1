//! Making gradients fit into memory: fewer samples a run first, which costs little; then a part of the weights a pass, of
//! which each costs a whole backward pass over all timesteps.

use crate::error::Error;
use crate::gradient::GradientGraph;
use crate::graph::ValueId;
use crate::macs::demand::{Demand, divided, runs_of};
use crate::macs::memory::{HELD, LIBRARY, OF_NODE, fitting_batch, gibibytes};

/// What a gradient graph takes, at the samples that it was built for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Samples of a run.
    pub(super) samples: usize,
    /// Bytes of the values that a run holds at once.
    pub(super) activations: u64,
    /// Bytes of the constants.
    pub(super) weights: u64,
    /// Bytes of all gradients.
    pub(super) gradients: u64,
    /// How many sums of all gradients are held.
    pub(super) sums: u64,
    /// Bytes of the library and of the graph.
    pub(super) library: u64,
    /// Bytes of the largest gradient, where it does not leave the graph.
    pub(super) within: u64,
}

impl Sizes {
    pub(super) fn of(graph: &GradientGraph, samples: usize, (sums, largest): (u64, u64)) -> Self {
        let nodes = graph.model.graph.as_ref().map_or(0, |graph| graph.node.len());
        let is_reduced = graph.gradients.iter().any(|gradient| !gradient.axes.is_empty());
        Self {
            samples,
            activations: (graph.activation_bytes as f64 * HELD) as u64,
            weights: graph.weight_bytes(),
            gradients: graph.gradient_bytes(),
            sums,
            library: LIBRARY + OF_NODE * nodes as u64,
            within: if is_reduced { 2 * largest } else { 0 },
        }
    }

    /// What runs of some samples need, for gradients of so many bytes.
    pub(super) fn demand(&self, samples: usize, gradients: u64) -> Demand {
        // Nearly all activations are as many as samples.
        let activations = (self.activations as f64 * samples as f64 / self.samples.max(1) as f64) as u64;
        let beside = gradients.saturating_mul(1 + self.sums).saturating_add(self.within).saturating_add(activations);
        Demand::default()
            // The library holds those of the file, and those that it stores in other forms.
            .with("weights", self.weights.saturating_mul(2))
            .with("gradients", gradients.saturating_add(self.within))
            .with("sums", gradients.saturating_mul(self.sums))
            .with("activations", activations)
            // Before the first run, the weights are there once more.
            .with("loading", self.weights.saturating_sub(beside))
            .with("library", self.library)
    }
}

/// Samples of a run, and the weights of every pass.
#[derive(Debug)]
pub(super) struct Fit {
    pub(super) samples: usize,
    pub(super) parts: Vec<Vec<ValueId>>,
    pub(super) demand: Demand,
}

/// Fits gradients by these weights, of so many bytes each, into what is available; `None` where that is not known.
///
/// # Errors
/// A single weight is too much. Samples are fewer than asked for only where they `may_shrink`.
pub(super) fn fitted(
    sizes: &Sizes,
    weights: &[(ValueId, u64)],
    (available, may_shrink): (Option<u64>, bool),
) -> Result<Fit, Error> {
    let all = |samples: usize, parts: Vec<Vec<ValueId>>, gradients: u64| Fit {
        samples,
        parts,
        demand: sizes.demand(samples, gradients),
    };
    let values = |range: std::ops::Range<usize>| weights[range].iter().map(|(value, _)| *value).collect();
    let needed = |samples: usize| sizes.demand(samples, sizes.gradients).total();
    let whole = match may_shrink {
        true => fitting_batch(available, sizes.samples, needed),
        false => Some(sizes.samples).filter(|samples| available.is_none_or(|most| needed(*samples) <= most)),
    };
    if let Some(samples) = whole {
        return Ok(all(samples, vec![values(0..weights.len())], sizes.gradients));
    }
    let samples = if may_shrink { 1 } else { sizes.samples };
    let fixed = sizes.demand(samples, 0).total();
    let room = available.unwrap_or(u64::MAX).saturating_sub(fixed) / (1 + sizes.sums);
    let of_each: Vec<u64> = weights.iter().map(|(_, bytes)| *bytes).collect();
    let parts = (sizes.within == 0).then(|| divided(&of_each, room)).flatten();
    let Some(parts) = parts else {
        // With all weights in one pass, and as little as is possible.
        let largest = of_each.iter().copied().max().unwrap_or(0);
        let least = if sizes.within > 0 { sizes.gradients } else { largest };
        let least = gibibytes(sizes.demand(samples, least).total());
        let hint = match may_shrink || samples == 1 {
            true => "--criterion magnitude needs no gradients; smaller sizes (--size) need less".to_owned(),
            false => format!("a smaller --micro-batch than {samples} needs less; without one it is chosen to fit"),
        };
        let advice = format!("one weight after the other it needs {least}; {hint}");
        let what = runs_of("a gradient run", samples);
        return Err(sizes.demand(samples, sizes.gradients).refusal(available, &what, &advice));
    };
    let bytes = |range: &std::ops::Range<usize>| of_each[range.clone()].iter().sum::<u64>();
    let largest = parts.iter().map(bytes).max().unwrap_or(0);
    Ok(all(samples, parts.into_iter().map(values).collect(), largest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes =
        Sizes { samples: 4, activations: 400, weights: 50, gradients: 100, sums: 1, library: LIBRARY, within: 0 };

    fn fit(room: u64, may_shrink: bool) -> Result<Fit, Error> {
        fitted(&SIZES, &[(1, 40), (2, 40), (3, 20)], (Some(LIBRARY + room), may_shrink))
    }

    #[test]
    fn runs_have_fewer_samples_before_weights_are_divided() {
        let whole = fit(700, true).unwrap();
        assert_eq!((whole.samples, whole.demand.total()), (4, LIBRARY + 700));
        assert_eq!(fit(500, true).unwrap().samples, 2);
        assert_eq!(fit(400, true).unwrap().parts, [[1, 2, 3]]);
        let divided = fit(399, true).unwrap();
        assert_eq!((divided.samples, divided.parts), (1, vec![vec![1, 2], vec![3]]));
        assert_eq!(fit(280, true).unwrap().parts, [vec![1], vec![2], vec![3]]);
        assert_eq!(fit(620, false).unwrap().parts, [vec![1], vec![2, 3]]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_it_needs() {
        let error = fit(279, true).unwrap_err();
        assert!(error.to_string().contains("a gradient run of one sample needs"), "{error}");
        assert!(error.advice().is_some_and(|advice| advice.contains("one weight after the other")), "{error}");
        // Sums that are made in the graph are not divided.
        let reduced = Sizes { within: 80, gradients: 4, ..SIZES };
        assert!(fitted(&reduced, &[(1, 40)], (Some(LIBRARY + 250), true)).is_err());
        assert!(fitted(&reduced, &[(1, 40)], (Some(LIBRARY + 300), true)).is_ok());
    }
}
