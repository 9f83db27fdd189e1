//! Refits a network that does not denoise on samples of its input. It is evaluated by the distance of its output from
//! the original's on held-out samples.

use std::time::Instant;

use ndarray::{Axis, Slice};

use super::super::options::ScoreOptions;
use super::super::output::{OutputNetwork, OutputSamples, samples};
use super::super::progress::{Progress, Stage, Watch, notify};
use super::super::runtime::Runtime;
use super::super::staged::Staged;
use super::repeat::checkpoint;
use super::{
    BATCH, Extent, LossKind, PROBE_BATCH, RefitLosses, RefitReport, RefitSettings, SEED_OF_PROBE, adopt, affordable,
    probe_extent,
};
use crate::array::{Array, ArrayData};
use crate::diffusion::Samples;
use crate::error::Error;
use crate::graph::model::Model;
use crate::graph::sizes::Sizes;
use crate::load::load;
use crate::lower;
use crate::macs::memory::{Footprint, fitting_batch};
use crate::plan::Plan;
use crate::refit::{Probe, RefitCut, RefitData, RefitOptions, refit};
use crate::runtime::{SessionOptions, available_memory};

/// Seed of the samples, added to the seed of the run. Gradients use other samples.
const SEED_OF_SAMPLES: u64 = 2;

/// Maximum number of held-out samples. Each needs a run of three networks.
const HELD_OUT: usize = 8;

/// Input samples in chunks.
struct Chunks<'a> {
    network: &'a OutputNetwork<'a>,
    samples: &'a Samples,
    batch: usize,
    chunks: usize,
    sizes: Sizes,
}

impl<'a> Chunks<'a> {
    fn new(network: &'a OutputNetwork<'a>, samples: &'a Samples, batch: usize, chunks: usize) -> Self {
        Self { network, samples, batch, chunks, sizes: network.sizes(batch) }
    }

    /// Returns the samples of a chunk in the network's element type.
    fn array(&self, chunk: usize) -> Array {
        let first = chunk * self.batch;
        let rows = self.samples.values.slice_axis(Axis(0), Slice::from(first..first + self.batch));
        let values: Vec<f64> = rows.iter().map(|value| f64::from(*value)).collect();
        Array { dims: rows.shape().to_vec(), data: ArrayData::from_f64(self.network.element_type, &values) }
    }
}

impl RefitData for Chunks<'_> {
    fn chunks(&self) -> usize {
        self.chunks
    }

    fn time(&self, _chunk: usize) -> f64 {
        0.0
    }

    fn weight(&self, _chunk: usize) -> f64 {
        1.0
    }

    fn inputs(&self, chunk: usize) -> Result<Vec<(String, Array)>, Error> {
        Ok(vec![(self.network.input.clone(), self.array(chunk))])
    }
}

/// Does the same as [`Staged::refit`] for a network that does not denoise.
pub(super) fn refit_output(
    staged: Staged,
    runtime: &Runtime,
    (options, settings): (&ScoreOptions, &RefitSettings),
    of: &OutputSamples,
    watch: &mut Watch<'_>,
) -> Result<Staged, Error> {
    let analysis = staged.cut().analysis().0.clone();
    let network = OutputNetwork::new(&analysis, of, &options.sizes)?;
    if settings.samples == Some(0) {
        return Err(Error::usage("--refit-samples: expected at least 1, found 0"));
    }
    let cost = network.cost();
    let wanted = settings.samples.unwrap_or_else(|| affordable(&cost));
    // Repeating a sample adds no information: given rows are used once.
    let rows = of.rows();
    let held = rows.map_or(HELD_OUT, |rows| HELD_OUT.min(rows / 5)).min(settings.held_out).min(wanted);
    let wanted = rows.map_or(wanted, |rows| wanted.min(rows - held).max(1));
    let batch = match network.fixed_batch().or(settings.batch) {
        Some(fixed) => fixed.max(1),
        None => fitting(&network, &analysis.model, wanted.clamp(1, BATCH))?,
    };
    let chunks = (wanted / batch).max(1);
    let extent = Extent { batch, samples: chunks * batch, timesteps: 1 };
    // Held-out samples must fill whole runs.
    let of_run = network.fixed_batch().unwrap_or(batch.min(held)).max(1);
    let held = held / of_run * of_run;
    let all = samples(&network, of, extent.samples + held, options.seed.wrapping_add(SEED_OF_SAMPLES))?;
    let rows = |places: std::ops::Range<usize>| all.select(&places.collect::<Vec<_>>());
    let (fit, held_out) = (rows(0..extent.samples), rows(extent.samples..extent.samples + held));
    let judge = Judge { network: &network, runtime, held_out: &held_out, batch: of_run, chunks: held / of_run };
    let pruned = load(staged.path())?;
    let original = judge.outputs(&analysis.model, watch)?;
    let cut = judge.distance(&original, &pruned, watch)?;
    let started = Instant::now();
    let process = "output compared with the original's".to_owned();
    let data_blake3 = digest(&fit);
    let checkpoint = checkpoint(settings, (staged.cut().plan(), &pruned), (extent, &data_blake3, &process), watch)?;
    let fit_options = RefitOptions { seed: options.seed, checkpoint, ..settings.options.clone() };
    let data = Chunks::new(&network, &fit, batch, chunks);
    let macs = cost.macs + cost.attention_macs;
    let (probe_batch, probed) = probe_extent(network.fixed_batch(), (batch.min(PROBE_BATCH), chunks), macs);
    let seed_of_probe = options.seed.wrapping_add(SEED_OF_PROBE);
    let of_probe = samples(&network, of, probe_batch * probed, seed_of_probe)?;
    let probed = Chunks::new(&network, &of_probe, probe_batch, probed);
    let probe = Probe { data: &probed, sizes: &probed.sizes, prediction: &network.output, channels: None };
    let rewritten = staged.cut().rewritten();
    let refit_cut = RefitCut { analysis: &analysis, rewritten, pruned: &pruned };
    let fitted = {
        let mut progress =
            |done: usize, total: usize| notify(watch, Progress::At { stage: Stage::Refitting, done, total });
        refit(refit_cut, (&data, &data.sizes), probe, &fit_options, runtime.0, &mut progress)?
    };
    let seconds = started.elapsed().as_secs_f64();
    let mut plan = Plan::clone(staged.cut().plan());
    let staged = adopt(staged, &fitted, &pruned, &mut plan)?;
    // The plan does not record the source of the samples, so the refit can't be repeated.
    plan.refit = None;
    let refitted = judge.distance(&original, &load(staged.path())?, watch)?;
    let losses = cut.zip(refitted).map(|(cut, refitted)| RefitLosses {
        samples: held_out.len(),
        timesteps: vec![0.0],
        original: vec![0.0],
        cut: vec![cut],
        refitted: vec![refitted],
    });
    let report = RefitReport {
        source: all.source.clone(),
        process,
        loss: LossKind::Output,
        samples: extent.samples,
        clean_samples: fit.total.unwrap_or(extent.samples).min(extent.samples),
        timesteps: 1,
        weights: settings.options.weighting,
        layers: fitted.layers.clone(),
        notes: fitted.notes.clone(),
        losses,
        pictures: None,
        seconds,
    };
    Ok(staged.refitted(plan, report))
}

/// Returns the number of samples, at most `wanted`, for which a run of both networks fits into free memory.
fn fitting(network: &OutputNetwork<'_>, model: &Model, wanted: usize) -> Result<usize, Error> {
    let (graph, facts) = network.known();
    let needed = |batch: usize| -> Result<u64, Error> {
        Ok(Footprint::of(model, graph, facts, &network.sizes(batch))?.run().saturating_mul(2))
    };
    let (of_one, of_two) = (needed(1)?, needed(2)?);
    let of_each = of_two.saturating_sub(of_one);
    let estimate = |batch: usize| of_one.saturating_add(of_each.saturating_mul(batch as u64 - 1));
    Ok((1..=wanted).rev().find_map(|batch| fitting_batch(available_memory(), batch, estimate)).unwrap_or(1))
}

/// Evaluates networks by their outputs on held-out samples.
struct Judge<'a> {
    network: &'a OutputNetwork<'a>,
    runtime: &'a Runtime,
    held_out: &'a Samples,
    batch: usize,
    chunks: usize,
}

impl Judge<'_> {
    /// Returns the outputs of a network, by chunk.
    fn outputs(&self, model: &Model, watch: &mut Watch<'_>) -> Result<Vec<Array>, Error> {
        if self.chunks == 0 {
            return Ok(Vec::new());
        }
        let chunks = Chunks::new(self.network, self.held_out, self.batch, self.chunks);
        let fail = |error: Error| error.in_file(model.path());
        let mut session = lower::session(self.runtime.0, model, &SessionOptions::default())?;
        let place = session.outputs().iter().position(|output| output.name == self.network.output);
        let mut outputs = Vec::with_capacity(self.chunks);
        for chunk in 0..self.chunks {
            notify(watch, Progress::At { stage: Stage::Losses, done: chunk, total: self.chunks })?;
            let given = session.run(&chunks.inputs(chunk)?).map_err(|error| fail(error.into()))?;
            let output = given.into_iter().nth(place.unwrap_or(0));
            outputs.push(
                output.map(|(_, output)| output).ok_or_else(|| fail(Error::unmet("expected an output, found none")))?,
            );
        }
        Ok(outputs)
    }

    /// Returns the mean squared error of a network's output relative to the original's; `None` without held-out
    /// samples.
    fn distance(&self, original: &[Array], model: &Model, watch: &mut Watch<'_>) -> Result<Option<f64>, Error> {
        let (mut sum, mut count) = (0.0, 0);
        for (expected, found) in original.iter().zip(self.outputs(model, watch)?) {
            let (expected, found) = (expected.to_f64(), found.to_f64());
            sum += expected.iter().zip(&found).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            count += expected.len();
        }
        Ok((count > 0).then(|| sum / count as f64))
    }
}

/// Returns the BLAKE3 of all samples, in hexadecimal.
fn digest(samples: &Samples) -> String {
    let mut hasher = blake3::Hasher::new();
    samples.values.iter().for_each(|value| _ = hasher.update(&value.to_le_bytes()));
    hasher.finalize().to_hex().to_string()
}
