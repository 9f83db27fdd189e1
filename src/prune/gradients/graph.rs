//! The graph that computes gradients.

use std::collections::{BTreeMap, BTreeSet};

use super::super::options::{GradientSettings, ScoreOptions};
use super::fit::{Sizes, fitted};
use super::ranks::share_of_memory;
use crate::analysis::Analysis;
use crate::diffusion::Roles;
use crate::error::Error;
use crate::gradient::loss::LossTerm;
use crate::gradient::{GradientGraph, GradientOptions};
use crate::graph::{self, Reader, ValueId};
use crate::macs::demand::Demand;
use crate::macs::memory::float32_bytes_of;
use crate::runtime::{Device, available_memory};
use crate::score::scoring_axes;

/// The gradient graph for the number of samples in one run, and its inputs.
pub(in crate::prune) struct Differentiated {
    pub(in crate::prune) graph: GradientGraph,
    pub(super) options: GradientOptions,
    /// Number of samples in one run.
    pub(in crate::prune) micro_batch: usize,
    /// Number of samples in one run without a memory limit.
    pub(super) wanted: usize,
    /// The weights of every pass; a single part if all fit into memory.
    pub(in crate::prune) parts: Vec<Vec<ValueId>>,
    /// The memory of a pass.
    pub(in crate::prune) demand: Demand,
}

/// The function to differentiate.
pub(in crate::prune) struct Interface<'a> {
    /// The output that the loss compares.
    pub(in crate::prune) prediction: &'a str,
    /// The number of its channels that count. `None`: all.
    pub(in crate::prune) channels: Option<i64>,
    /// The batch size that the network fixes. `None`: it fixes none.
    pub(in crate::prune) fixed_batch: Option<usize>,
    /// The terms of the loss. If empty, the squared difference to a target.
    pub(in crate::prune) loss: Vec<LossTerm>,
    /// Returns the sizes of all symbols for this many samples.
    pub(in crate::prune) sizes: &'a dyn Fn(usize) -> graph::sizes::Sizes,
}

/// Differentiates the network with respect to all weights that may shrink, at sizes whose runs fit into memory.
///
/// # Errors
/// Fails if batch sizes don't fit each other, an operator has no gradient, or memory is too small.
pub(in crate::prune) fn differentiated(
    analysis: &Analysis,
    of: &Interface<'_>,
    batch: usize,
    options: &ScoreOptions,
) -> Result<Differentiated, Error> {
    let settings = &options.gradients;
    let by_index = options.gradient_form(1.0).is_linear().then(|| axes_of_uses(analysis, options));
    let GradientSettings { micro_batch: asked, precision, device, ranks, .. } = settings;
    let (asked, device, ranks) = (*asked, *device, &**ranks);
    let in_file = |error: Error| error.in_file(analysis.model.path());
    let wanted = micro_batch(of.fixed_batch, batch, asked).map_err(in_file)?;
    let at = of.sizes;
    let mut options = GradientOptions {
        sizes: at(wanted),
        channels: of.channels,
        prediction: Some(of.prediction.to_owned()),
        loss: of.loss.clone(),
        wanted: analysis.prunable_weights(),
        precision: *precision,
        by_index,
        ..GradientOptions::default()
    };
    let mut graph = GradientGraph::build_for(analysis, &options, device)?;
    let may_shrink = asked.is_none() && of.fixed_batch.is_none();
    let by_value = bytes_of_weights(analysis, &options);
    // On a device, a sum has an input and an output buffer, for single timesteps and for the total.
    let sums = if device == Device::Cpu { 1 } else { 4 };
    let largest = by_value.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
    let free = if device == Device::Cpu { available_memory() } else { None };
    let available = share_of_memory(ranks, settings.memory.into_iter().chain(free).min())?;
    let fit = |graph: &GradientGraph, samples: usize, may_shrink: bool| {
        fitted(&Sizes::of(graph, samples, (sums, largest)), &by_value, (available, may_shrink)).map_err(in_file)
    };
    let mut found = fit(&graph, wanted, may_shrink)?;
    if found.samples < wanted {
        let samples = found.samples;
        options.sizes = at(samples);
        graph = GradientGraph::build_for(analysis, &options, device)?;
        found = fit(&graph, samples, false)?;
    }
    if found.parts.len() > 1 && settings.adaptive.is_some() {
        let whole = Sizes::of(&graph, found.samples, (sums, largest)).demand(found.samples, graph.gradient_bytes());
        let text = format!("--adaptive needs the sums of all weights at once: {} of memory", whole.describe());
        return Err(in_file(Error::unmet(text).hint("omit --adaptive, or allow this much memory with --memory")));
    }
    Ok(Differentiated { graph, options, micro_batch: found.samples, wanted, parts: found.parts, demand: found.demand })
}

/// Returns the weights to differentiate, and the bytes of their gradients.
fn bytes_of_weights(analysis: &Analysis, options: &GradientOptions) -> Vec<(ValueId, u64)> {
    let bytes = |value: ValueId| {
        let uses = analysis.coupling.uses.iter().filter(|of| of.value == value).count().max(1) as u64;
        uses.saturating_mul(float32_bytes_of(&analysis.facts, value))
    };
    options.wanted.iter().map(|value| (*value, bytes(*value))).collect()
}

/// Returns the axes of the uses of weights that the scored channels lie along.
fn axes_of_uses(analysis: &Analysis, options: &ScoreOptions) -> BTreeMap<Reader, Vec<usize>> {
    let groupings = analysis.groupings(options.attention, options.norm_groups);
    let groups: Vec<_> = groupings.into_iter().flat_map(|grouping| grouping.groups).collect();
    let of_use =
        |(at, axes): (usize, BTreeSet<usize>)| (analysis.coupling.uses[at].reader(), axes.into_iter().collect());
    scoring_axes(&groups).into_iter().map(of_use).collect()
}

/// Returns the number of samples in one run: at most the requested number, and a divisor of the batch, since the graph
/// has fixed sizes.
fn micro_batch(fixed: Option<usize>, batch: usize, asked: Option<usize>) -> Result<usize, Error> {
    if batch == 0 || asked == Some(0) {
        return Err(Error::usage("--batch and --micro-batch: expected at least 1, found 0"));
    }
    if let Some(fixed) = fixed {
        return match batch.is_multiple_of(fixed) {
            true => Ok(fixed),
            false => Err(Error::usage(format!(
                "--batch: expected a multiple of {fixed}, the batch size that the network fixes, found {}",
                batch
            ))),
        };
    }
    let most = asked.unwrap_or(batch).min(batch);
    Ok((1..=most).rev().find(|size| batch.is_multiple_of(*size)).unwrap_or(1))
}

/// Returns the number of the prediction's channels that the loss compares; `None` (all) if the network predicts no
/// variance.
pub(in crate::prune) fn channels(roles: &Roles) -> Result<Option<i64>, Error> {
    match roles.variance_axis {
        None => Ok(None),
        Some(1) => {
            let channels = roles.sample.shape.get(1).and_then(crate::graph::dim::Dim::as_const);
            channels.map(Some).ok_or_else(|| Error::unmet("the number of channels of the sample input is not known: the graph declares no fixed size for axis 1"))
        }
        Some(axis) => {
            Err(Error::unsupported(format!("a variance along axis {axis} of the prediction is not supported"))
                .hint("use --criterion magnitude"))
        }
    }
}
