//! Losses that compare channel groups in cuts of global scope.

use super::super::choice::Scoring;
use super::super::gradients::{clean_samples, recognise};
use super::super::network::Denoising;
use super::super::options::ScoreOptions;
use super::super::progress::{Progress, Stage, Watch, notify};
use super::samples::{Clean, NoisySamples};
use super::{PROBE_BATCH, PROBED, SEED_OF_PROBE};
use crate::analysis::Analysis;
use crate::diffusion::Samples;
use crate::error::{Error, ErrorKind};
use crate::refit::{RefitOptions, RemovalOrder, unexplained};
use crate::runtime::Runtime;
use crate::select::order;

/// Maximum number of rows for a layer's covariance.
const ROWS: usize = 24_000;

/// Measures the loss of each channel of every group, on these clean samples, or if there are none, on those of
/// `options`. If this fails, adds a warning; scores are compared instead.
///
/// # Errors
/// Fails if the caller stopped.
pub(in crate::prune) fn measure(
    analysis: &Analysis,
    scoring: &mut Scoring,
    runtime: Option<&Runtime>,
    options: &ScoreOptions,
    samples: Option<Samples>,
    watch: &mut Watch<'_>,
) -> Result<(), Error> {
    let why = match runtime.filter(|_| samples.is_some() || options.gradients.data.is_some()) {
        Some(runtime) => match losses(analysis, scoring, runtime, options, samples, watch) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => error.to_string(),
        },
        None => "there are no samples (--data)".to_owned(),
    };
    scoring.passes.iter_mut().for_each(|scored| scored.losses.clear());
    scoring.warnings.push(format!(
        "global scope: groups are compared by their scores, since the error of a fit can't be measured for each layer: {why}"
    ));
    Ok(())
}

fn losses(
    analysis: &Analysis,
    scoring: &mut Scoring,
    runtime: &Runtime,
    options: &ScoreOptions,
    samples: Option<Samples>,
    watch: &mut Watch<'_>,
) -> Result<(), Error> {
    let found = recognise(analysis, options)?;
    let network = Denoising { known: (&analysis.model, &analysis.graph, &analysis.facts), found: &found };
    let roles = network.roles();
    let batch = roles.fixed_batch().unwrap_or(PROBE_BATCH).max(1);
    let timesteps = PROBED.min(network.configured().process.schedule.step_count());
    let count = timesteps * batch;
    let conditioning = network.conditioning(count, options.seed)?;
    let fit = match (samples, &options.gradients.data) {
        (Some(samples), _) => samples,
        (None, Some(path)) => {
            let available = Samples::available(path, &roles.sample.name)?;
            clean_samples(network, runtime, &conditioning, options, (count.min(available), batch), watch)?
        }
        (None, None) => return Err(Error::unmet("there are no samples")),
    };
    let noisy = Clean { fit, held_out: None, drawn: None }.repeated(count, options.seed);
    let seed = options.seed.wrapping_add(SEED_OF_PROBE);
    let data = NoisySamples::new(network, &conditioning, &noisy, (batch, timesteps), seed)?;
    let probe = data.probe()?;
    let settings = &options.gradients;
    let options = RefitOptions {
        rows: ROWS,
        seed: options.seed,
        device: settings.device,
        allow_fallback: settings.allow_fallback,
        ..RefitOptions::default()
    };
    for scored in &mut scoring.passes {
        let groups = &scored.grouping.groups;
        let orders: Vec<Vec<usize>> = (0..groups.len())
            .map(|group| match groups[group].fixed {
                Some(_) => Vec::new(),
                None => order(&scored.grouping, group, &scored.scores[group]),
            })
            .collect();
        let going: Vec<RemovalOrder<'_>> =
            groups.iter().zip(&orders).map(|(group, order)| RemovalOrder { group, order: order.as_slice() }).collect();
        let mut progress =
            |done: usize, total: usize| notify(watch, Progress::At { stage: Stage::Comparing, done, total });
        scored.losses = unexplained(analysis, &going, probe, &options, runtime, &mut progress)?;
    }
    Ok(())
}
