//! The graph whose runs give the gradients.

use std::collections::{BTreeMap, BTreeSet};

use super::super::network::Denoising;
use super::super::options::{GradientSettings, ScoreOptions};
use super::ranks::share_of_memory;
use crate::analysis::Analysis;
use crate::collective::Collective;
use crate::diffusion::Roles;
use crate::error::Error;
use crate::gradient::{GradientGraph, GradientOptions};
use crate::graph::Reader;
use crate::macs::memory::{LIBRARY, fitting_batch, refuse_beyond};
use crate::runtime::available_memory;
use crate::score::scoring_axes;

/// The gradient graph at the samples of one run, with what it was made from.
pub(super) struct Differentiated {
    pub(super) graph: GradientGraph,
    pub(super) options: GradientOptions,
    /// Samples in one run.
    pub(super) micro_batch: usize,
    /// Samples in one run if there were memory for them.
    pub(super) wanted: usize,
}

/// Differentiates the network by all weights that may shrink, at sizes whose runs fit into memory.
///
/// # Errors
/// Batches that don't fit each other, an operator without a gradient, too little memory.
pub(super) fn differentiated(
    analysis: &Analysis,
    network: Denoising<'_>,
    batch: usize,
    options: &ScoreOptions,
) -> Result<Differentiated, Error> {
    let settings = &options.gradients;
    let by_index = options.gradient_form(1.0).is_linear().then(|| axes_of_uses(analysis, options));
    let GradientSettings { micro_batch: asked, precision, device, ranks, .. } = settings;
    let (asked, device, ranks) = (*asked, *device, &**ranks);
    let in_file = |error: Error| error.in_file(analysis.model.path());
    let roles = network.roles();
    let wanted = micro_batch(roles, batch, asked).map_err(in_file)?;
    let at = |samples: usize| roles.sizes(&analysis.facts, network.sizes(), samples);
    let mut options = GradientOptions {
        sizes: at(wanted),
        channels: channels(roles).map_err(in_file)?,
        prediction: Some(roles.prediction.name.clone()),
        wanted: analysis.prunable_weights(),
        precision: *precision,
        by_index,
        ..GradientOptions::default()
    };
    let mut graph = GradientGraph::build_for(analysis, &options, device)?;
    let may_shrink = asked.is_none() && roles.fixed_batch().is_none();
    let micro_batch = samples_that_fit(analysis, ranks, (graph.activation_bytes, wanted), may_shrink)?;
    if micro_batch < wanted {
        options.sizes = at(micro_batch);
        graph = GradientGraph::build_for(analysis, &options, device)?;
        samples_that_fit(analysis, ranks, (graph.activation_bytes, micro_batch), false)?;
    }
    Ok(Differentiated { graph, options, micro_batch, wanted })
}

/// The axes of the uses of weights along which the channels that are scored lie.
fn axes_of_uses(analysis: &Analysis, options: &ScoreOptions) -> BTreeMap<Reader, Vec<usize>> {
    let groupings = analysis.groupings(options.attention, options.norm_groups);
    let groups: Vec<_> = groupings.into_iter().flat_map(|grouping| grouping.groups).collect();
    let of_use =
        |(at, axes): (usize, BTreeSet<usize>)| (analysis.coupling.uses[at].reader(), axes.into_iter().collect());
    scoring_axes(&groups).into_iter().map(of_use).collect()
}

/// The samples of one run: at most what is asked for, and a divisor of the batch, since the graph has fixed sizes.
fn micro_batch(roles: &Roles, batch: usize, asked: Option<usize>) -> Result<usize, Error> {
    if batch == 0 || asked == Some(0) {
        return Err(Error::usage("--batch and --micro-batch: expected at least 1, found 0"));
    }
    if let Some(fixed) = roles.fixed_batch() {
        return match batch.is_multiple_of(fixed) {
            true => Ok(fixed),
            false => Err(Error::usage(format!(
                "--batch: expected a multiple of {fixed}, the batch that the network fixes, found {}",
                batch
            ))),
        };
    }
    let most = asked.unwrap_or(batch).min(batch);
    Ok((1..=most).rev().find(|size| batch.is_multiple_of(*size)).unwrap_or(1))
}

/// Channels of the prediction that the loss compares; all where the network predicts no variance.
pub(in crate::prune) fn channels(roles: &Roles) -> Result<Option<i64>, Error> {
    match roles.variance_axis {
        None => Ok(None),
        Some(1) => {
            let channels = roles.sample.shape.get(1).and_then(crate::graph::dim::Dim::as_const);
            channels.map(Some).ok_or_else(|| Error::unmet("the number of channels of the sample is not known"))
        }
        Some(axis) => {
            Err(Error::unsupported(format!("a variance along axis {axis} of the prediction is not supported"))
                .hint("score with --criterion magnitude"))
        }
    }
}

/// Bytes of a run of a gradient graph: weights, those that are folded into other forms, gradients of one run, and the
/// sums, beside the activations and the library.
fn needed(activations: u64, weights: u64) -> u64 {
    activations.saturating_add(weights.saturating_mul(4)).saturating_add(LIBRARY)
}

/// Samples of one run that fit into the memory that is free: as many as are asked for, else fewer.
///
/// # Errors
/// One sample is too much.
fn samples_that_fit(
    analysis: &Analysis,
    ranks: &dyn Collective,
    (activations, micro_batch): (u64, usize),
    may_shrink: bool,
) -> Result<usize, Error> {
    let (available, weights) = (share_of_memory(ranks, available_memory())?, analysis.model.total_bytes()?);
    // Nearly all activations are as many as samples.
    let of = |samples: usize| needed(scaled(activations, samples, micro_batch), weights);
    if may_shrink && let Some(samples) = fitting_batch(available, micro_batch, of) {
        return Ok(samples);
    }
    let what = match micro_batch {
        1 => "a gradient run of one sample".to_owned(),
        count => format!("a gradient run of {count} samples"),
    };
    let refused = refuse_beyond(available, of(micro_batch), &what);
    refused.map(|()| micro_batch).map_err(|error| {
        let hint = match may_shrink || micro_batch == 1 {
            true => "--criterion magnitude needs no gradients; smaller sizes (--size) need less".to_owned(),
            false => format!("a smaller --micro-batch than {micro_batch} needs less; without one it is chosen to fit"),
        };
        error.in_file(analysis.model.path()).hint(hint)
    })
}

fn scaled(activations: u64, samples: usize, of: usize) -> u64 {
    (activations as f64 * samples as f64 / of.max(1) as f64) as u64
}
