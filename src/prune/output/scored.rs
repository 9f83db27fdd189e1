//! Squared gradients of the output, which measure how much it changes with each weight.

use std::ops::Range;
use std::time::Instant;

use ndarray::{ArrayD, Axis, Slice};
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64Mcg;

use super::super::gradients::{
    Differentiated, Fed, GradientReport, Interface, Summation, announce_plan, differentiated,
};
use super::super::options::{CriterionOption, ScoreOptions};
use super::super::progress::{Progress, Watch, notify};
use super::super::refit::LossKind;
use super::{OutputNetwork, OutputSamples};
use crate::analysis::Analysis;
use crate::array::{Array, ArrayData};
use crate::diffusion::{Samples, noise};
use crate::error::Error;
use crate::gradient::TARGET;
use crate::gradient::accumulate::{Accumulated, Denoising};
use crate::gradient::loss::{Distance, LossTerm};
use crate::runtime::Runtime;

/// Default number of samples in a pass, and of passes. A single random direction is a rough estimate, and each pass
/// squares its own gradients.
const BATCH: usize = 2;
const PASSES: usize = 16;

/// Seed of the directions, added to the seed of the run.
const SEED_OF_DIRECTIONS: u64 = 7;

/// Returns `count` samples of the input: random ones, or given rows, from the first on and repeated if there are too
/// few.
pub(in crate::prune) fn samples(
    network: &OutputNetwork<'_>,
    of: &OutputSamples,
    count: usize,
    seed: u64,
) -> Result<Samples, Error> {
    let mut dims = network.dims(1)?;
    dims[0] = count;
    let fail = |text: String| Error::usage(text).in_file(network.path());
    match of {
        OutputSamples::Random { mean, deviation, .. } => {
            let values = noise(&dims, count, seed).mapv(|value| value * *deviation as f32 + *mean as f32);
            let source = format!("{count} samples from a normal distribution (mean {mean}, deviation {deviation:.3})");
            Ok(Samples { values, numbers: (0..count).collect(), total: None, source })
        }
        OutputSamples::Given { values, source } => {
            let rows = values.dims.first().copied().unwrap_or(0);
            if rows == 0 || values.dims.get(1..) != dims.get(1..) {
                let text =
                    format!("input {:?}: expected samples of shape {:?}, found {:?}", network.input, dims, values.dims);
                return Err(fail(text));
            }
            let numbers: Vec<usize> = (0..count).map(|at| at % rows).collect();
            let chosen: Vec<f32> = values.rows(&numbers).to_f64().into_iter().map(|value| value as f32).collect();
            let values = ArrayD::from_shape_vec(dims, chosen).map_err(|error| fail(error.to_string()))?;
            Ok(Samples { values, numbers, total: Some(rows), source: source.clone() })
        }
    }
}

/// Passes over samples, with a different random direction for every sample.
struct Directions<'a> {
    network: &'a OutputNetwork<'a>,
    samples: &'a Samples,
    /// The shape of the output for the samples of one run.
    output: Vec<usize>,
    batch: usize,
    passes: Vec<f64>,
    seed: u64,
}

impl Denoising for Directions<'_> {
    fn timesteps(&self) -> &[f64] {
        &self.passes
    }

    fn batch(&self) -> usize {
        self.batch
    }

    fn inputs(&self, at: usize, samples: Range<usize>) -> Result<Vec<(String, Array)>, Error> {
        let first = at * self.batch + samples.start;
        let rows = self.samples.values.slice_axis(Axis(0), Slice::from(first..first + samples.len()));
        let values: Vec<f64> = rows.iter().map(|value| f64::from(*value)).collect();
        let of_input =
            Array { dims: rows.shape().to_vec(), data: ArrayData::from_f64(self.network.element_type, &values) };
        // The direction of a sample does not depend on the run that it belongs to.
        let of_one: usize = self.output.iter().skip(1).product();
        let mut directions = Vec::with_capacity(of_one * samples.len());
        for sample in first..first + samples.len() {
            let mut random = Pcg64Mcg::seed_from_u64(self.seed.wrapping_add(sample as u64).wrapping_mul(0x9e37_79b9));
            directions.extend((0..of_one).map(|_| -> f32 { StandardNormal.sample(&mut random) }));
        }
        let dims = [&[samples.len()], self.output.get(1..).unwrap_or_default()].concat();
        let target = Array { dims, data: ArrayData::F32(directions) };
        Ok(vec![(self.network.input.clone(), of_input), (TARGET.to_owned(), target)])
    }
}

/// Sums squared gradients of the output in random directions.
///
/// # Errors
/// Fails if the criterion depends on the gradient of the loss, the network has several inputs, an operator has no
/// gradient, memory is too small, or the caller stopped.
pub(in crate::prune) fn gradients(
    analysis: &Analysis,
    runtime: &Runtime,
    options: &ScoreOptions,
    of: &OutputSamples,
    watch: &mut Watch<'_>,
) -> Result<(Accumulated, GradientReport, Samples), Error> {
    if options.criterion != CriterionOption::Hessian {
        let text = "the gradient of the output loss is zero at the original: expected a criterion based on curvature, such as hessian";
        return Err(Error::usage(text).in_file(analysis.model.path()).hint("use --criterion hessian or magnitude"));
    }
    let settings = &options.gradients;
    let network = OutputNetwork::new(analysis, of, &options.sizes)?;
    let fixed = network.fixed_batch();
    let batch = settings.network.batch.or(fixed).unwrap_or(BATCH).max(1);
    let passes = settings.timesteps.unwrap_or(PASSES).max(1);
    let loss = LossTerm { distance: Distance::InnerProduct, ..LossTerm::squared(&network.output) };
    let at = |samples: usize| network.sizes(samples);
    let interface =
        Interface { prediction: &network.output, channels: None, fixed_batch: fixed, loss: vec![loss], sizes: &at };
    let differentiated = differentiated(analysis, &interface, batch, options)?;
    announce_plan(&differentiated, watch)?;
    let Differentiated { micro_batch, ref parts, ref demand, ref graph, .. } = differentiated;
    let (passes_of_weights, memory) = (parts.len(), demand.clone());
    let output = graph.target_shape.iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
    let samples = samples(&network, of, batch * passes, options.seed)?;
    let process = "change of the output".to_owned();
    notify(watch, Progress::Network(&format!("input:        {}\noutput:       {}", network.input, network.output)))?;
    let task = Directions {
        network: &network,
        samples: &samples,
        output,
        batch,
        passes: (0..passes).map(|pass| pass as f64).collect(),
        seed: options.seed.wrapping_add(SEED_OF_DIRECTIONS),
    };
    let sample_elements: usize = samples.values.shape().iter().skip(1).product();
    let sum: f64 = samples.values.iter().map(|value| f64::from(*value)).sum();
    let fed = Fed { process: process.clone(), samples: samples.len(), sum, conditioning: String::new() };
    let started = Instant::now();
    let summation = Summation { analysis, runtime, options, task: &task, fed };
    let summed = summation.run(differentiated, sample_elements as f64, watch)?;
    let report = GradientReport {
        network: vec![format!("input:        {}", network.input), format!("output:       {}", network.output)],
        process,
        loss: LossKind::Output,
        source: samples.source.clone(),
        batch,
        micro_batch,
        passes: passes_of_weights,
        memory,
        timesteps: passes,
        sample_elements,
        threshold: None,
        curve: summed.sum.curve.clone(),
        settled: summed.settled,
        resumed: summed.resumed,
        precision: settings.precision,
        loss_scale: summed.loss_scale,
        execution: summed.execution,
        seconds: started.elapsed().as_secs_f64(),
        drawing_seconds: None,
    };
    Ok((summed.sum, report, samples))
}
