//! Makes gradients fit into memory. The number of samples per run is reduced first, which costs little. If that is not
//! enough, weights are divided over passes, each of which needs a complete backward pass over all timesteps.

use crate::error::Error;
use crate::gradient::GradientGraph;
use crate::graph::ValueId;
use crate::macs::demand::{Demand, divided, runs_of};
use crate::macs::memory::{HELD, LIBRARY, OF_NODE, fitting_batch, gibibytes};

/// The memory of a gradient graph for the number of samples that it was built for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Number of samples in a run.
    pub(super) samples: usize,
    /// Bytes of the activations that a run holds at once.
    pub(super) activations: u64,
    /// Bytes of the constants.
    pub(super) weights: u64,
    /// Bytes of all gradients.
    pub(super) gradients: u64,
    /// Number of sums that are held, each as large as all gradients.
    pub(super) sums: u64,
    /// Bytes of ONNX Runtime and of the graph.
    pub(super) library: u64,
    /// Bytes of temporary gradients inside the graph. Zero if the graph outputs complete gradients.
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

    /// Estimates the memory of runs with this number of samples, for gradients of this many bytes.
    pub(super) fn demand(&self, samples: usize, gradients: u64) -> Demand {
        // Nearly all activations are proportional to the number of samples.
        let activations = (self.activations as f64 * samples as f64 / self.samples.max(1) as f64) as u64;
        let beside = gradients.saturating_mul(1 + self.sums).saturating_add(self.within).saturating_add(activations);
        Demand::default()
            // ONNX Runtime holds the weights of the file, and packed copies.
            .with("weights", self.weights.saturating_mul(2))
            .with("gradients", gradients.saturating_add(self.within))
            .with("sums", gradients.saturating_mul(self.sums))
            .with("activations", activations)
            // While the session loads, before the first run, there is one more copy of the weights.
            .with("loading", self.weights.saturating_sub(beside))
            .with("library", self.library)
    }
}

/// The number of samples in a run, and the weights of every pass.
#[derive(Debug)]
pub(super) struct Fit {
    pub(super) samples: usize,
    pub(super) parts: Vec<Vec<ValueId>>,
    pub(super) demand: Demand,
}

/// Fits the gradients of these weights, each with its bytes, into the available memory. `None`: the available memory is
/// not known. The number of samples is only reduced if it `may_shrink`.
///
/// # Errors
/// Fails if even a single weight needs too much memory.
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
        // The error states the memory for one pass with all weights, and the smallest possible need.
        let largest = of_each.iter().copied().max().unwrap_or(0);
        let least = if sizes.within > 0 { sizes.gradients } else { largest };
        let least = gibibytes(sizes.demand(samples, least).total());
        let hint = match may_shrink || samples == 1 {
            true => "use --criterion magnitude, which needs no gradients, or smaller sizes (--size)".to_owned(),
            false => format!("reduce --micro-batch below {samples}, or omit it to have it chosen automatically"),
        };
        let advice = format!("with one weight per pass it still needs {least}; {hint}");
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
    fn gradients_that_do_not_fit_are_refused_with_the_memory_they_need() {
        let error = fit(279, true).unwrap_err();
        assert!(error.to_string().contains("a gradient run of one sample needs"), "{error}");
        assert!(error.advice().is_some_and(|advice| advice.contains("one weight per pass")), "{error}");
        // Sums that the graph computes can't be divided over passes.
        let reduced = Sizes { within: 80, gradients: 4, ..SIZES };
        assert!(fitted(&reduced, &[(1, 40)], (Some(LIBRARY + 250), true)).is_err());
        assert!(fitted(&reduced, &[(1, 40)], (Some(LIBRARY + 300), true)).is_ok());
    }
}
