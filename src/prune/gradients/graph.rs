//! The graph whose runs give the gradients.

use super::super::network::Denoising;
use crate::analysis::Analysis;
use crate::diffusion::Roles;
use crate::error::Error;
use crate::gradient::{GradientGraph, GradientOptions, Precision};
use crate::runtime::Device;

/// The gradient graph at the samples of one run, with what it was made from.
pub(super) struct Differentiated {
    pub(super) graph: GradientGraph,
    pub(super) options: GradientOptions,
    /// Samples in one run.
    pub(super) micro_batch: usize,
}

/// Differentiates the network by all weights that may shrink, at sizes whose runs fit into memory.
///
/// # Errors
/// Batches that don't fit each other, an operator without a gradient, too little memory.
pub(super) fn differentiated(
    analysis: &Analysis,
    network: Denoising<'_>,
    batch: usize,
    asked: Option<usize>,
    (precision, device): (Precision, Device),
) -> Result<Differentiated, Error> {
    let in_file = |error: Error| error.in_file(analysis.model.path());
    let roles = network.roles();
    let micro_batch = micro_batch(roles, batch, asked).map_err(in_file)?;
    let options = GradientOptions {
        sizes: roles.sizes(&analysis.facts, network.sizes(), micro_batch),
        channels: channels(roles).map_err(in_file)?,
        prediction: Some(roles.prediction.name.clone()),
        wanted: analysis.prunable_weights(),
        precision,
        ..GradientOptions::default()
    };
    let graph = GradientGraph::build_for(analysis, &options, device)?;
    check_memory(analysis, &graph, micro_batch)?;
    Ok(Differentiated { graph, options, micro_batch })
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
fn channels(roles: &Roles) -> Result<Option<i64>, Error> {
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

/// Refuses a run that would need more memory than there is.
fn check_memory(analysis: &Analysis, graph: &GradientGraph, micro_batch: usize) -> Result<(), Error> {
    let weights = analysis.model.total_bytes()?;
    // Weights, those that are folded into other forms, gradients of one run, and the sums.
    let needed = graph.activation_bytes + 4 * weights;
    let Some(available) = crate::runtime::available_memory() else { return Ok(()) };
    if needed <= available {
        return Ok(());
    }
    let gigabytes = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let hint = if micro_batch > 1 {
        format!("a smaller --micro-batch than {micro_batch} needs less")
    } else {
        "--criterion magnitude needs no gradients".to_owned()
    };
    Err(Error::unmet(format!(
        "gradients at {micro_batch} samples a run need about {:.1} GiB, {:.1} GiB are free",
        gigabytes(needed),
        gigabytes(available)
    ))
    .in_file(analysis.model.path())
    .hint(hint))
}
