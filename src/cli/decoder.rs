//! What the decoder of a pipeline is scored and fitted on: latents as its denoiser makes them.

use std::ops::ControlFlow;
use std::sync::Arc;

use onnx_diffprune::data::{Array, ArrayData};
use onnx_diffprune::networks::{Network, SampleOptions, Sampler, UsualSizes};
use onnx_diffprune::pipelines::{Component, Pipeline};
use onnx_diffprune::{CriterionOption, Error, Model, OutputSamples, Progress, Runtime, Sizes, Stage, Task};

use super::args::PruneArgs;
use super::printer::{Printer, Watcher};
use super::surroundings::Surroundings;

/// Latents that are drawn from the denoiser, and steps for each.
const DRAWN: usize = 40;
const STEPS: usize = 10;

/// Latents of the data that are taken where nothing is said, at most.
const MOST_LATENTS: usize = 512;

/// Latents along an edge, at most: a decoder is the same at every place, and a smaller image shows it enough of them.
const MOST_EDGE: usize = 32;

/// The factor of Stable Diffusion 1 and 2, which diffusers takes where a configuration says nothing.
const USUAL_FACTOR: f64 = 0.18215;

impl PruneArgs {
    /// The arguments for a decoder: scored by curvature, on latents of `--data` or of the pipeline's own denoiser.
    ///
    /// # Errors
    /// Data that can't be read.
    pub(super) fn of_decoder(
        mut self,
        pipeline: &Pipeline,
        decoder: &Component,
        runtime: impl FnOnce() -> Result<Runtime, Error>,
        printer: &Printer,
    ) -> Result<Self, Error> {
        let criterion = self.criterion.unwrap_or_default();
        let refits = self.refits(criterion);
        if criterion.needs_gradients() {
            self.criterion = Some(CriterionOption::Hessian);
            if criterion != CriterionOption::Hessian {
                printer.note(&format!(
                    "criterion:    hessian for {}: the loss of a decoder, its output beside what it gave, has curvature \
                     and no slope",
                    decoder.name
                ));
            }
        }
        // Latents cost the denoiser some work: there are none where nothing needs them.
        let samples = match criterion.needs_gradients() || refits {
            true => latents(&self, pipeline, decoder, runtime()?, printer)?,
            false => drawn(pipeline, scale(decoder)),
        };
        self.refit = refits;
        self.task = Some(Task::Output(samples));
        self.data.data = None;
        Ok(self)
    }
}

/// What latents are multiplied by before they are given to the denoiser, and what is subtracted before.
fn scale(decoder: &Component) -> (f64, f64) {
    let factor = decoder.config.scaling_factor.filter(|factor| *factor != 0.0 && factor.is_finite());
    (factor.unwrap_or(USUAL_FACTOR), decoder.config.shift_factor.unwrap_or(0.0))
}

/// The size of latents that are drawn.
fn edges(pipeline: &Pipeline) -> Option<(usize, usize)> {
    let (height, width) = pipeline.denoiser().config.sample_size?;
    Some((height.min(MOST_EDGE), width.min(MOST_EDGE)))
}

/// Normally distributed latents.
fn drawn(pipeline: &Pipeline, (factor, shift): (f64, f64)) -> OutputSamples {
    OutputSamples::Drawn { mean: 0.0, deviation: 1.0, edges: edges(pipeline) }.as_decoded(factor, shift)
}

/// The latents of the data; else those that the denoiser draws; else normally distributed ones, where it can't.
fn latents(
    args: &PruneArgs,
    pipeline: &Pipeline,
    decoder: &Component,
    runtime: Runtime,
    printer: &Printer,
) -> Result<OutputSamples, Error> {
    let (factor, shift) = scale(decoder);
    let seed = args.seed.unwrap_or_default();
    if let Some(data) = &args.data.data {
        let name = args.diffusion.sample_input.as_deref().unwrap_or("sample");
        let most = args.refitting.refit_samples.unwrap_or(MOST_LATENTS);
        if let Some(samples) = OutputSamples::of_latents((data, name), (factor, shift), most, seed)? {
            return Ok(samples);
        }
    }
    match sampled(args, pipeline, runtime, printer) {
        Ok((values, source)) => Ok(OutputSamples::Given { values: Arc::new(values), source }.as_decoded(factor, shift)),
        Err(error) => {
            printer.warning(&format!(
                "the denoiser draws no latents for the decoder, normal ones take their place: {error}"
            ));
            Ok(drawn(pipeline, (factor, shift)))
        }
    }
}

/// Latents that the denoiser of the pipeline draws, with the prompts if there are any.
fn sampled(
    args: &PruneArgs,
    pipeline: &Pipeline,
    runtime: Runtime,
    printer: &Printer,
) -> Result<(Array, String), Error> {
    let surroundings = Surroundings::of(&args.diffusion, &pipeline.denoiser().model, true)?;
    let model = Model::open(&pipeline.denoiser().model)?;
    let given = surroundings.inputs(&model, args.inputs.as_deref(), Some(&runtime))?.unwrap_or_default();
    let mut options = surroundings.diffusion.network_options(given)?;
    options.usual_sizes = UsualSizes { sample: edges(pipeline), ..options.usual_sizes };
    options.batch = None;
    let network = Network::open(&model, &options, &Sizes::new(), None)?;
    let sampling = SampleOptions {
        sampler: Sampler::DpmSolver2M,
        steps: STEPS,
        count: DRAWN,
        seed: args.seed.unwrap_or_default(),
        ..SampleOptions::default()
    };
    let mut watcher =
        Watcher::new(printer, |stage| (stage == Stage::Sampling).then_some("drawing latents for the decoder"));
    let drawn = network.sample(&runtime, &sampling, &mut |progress| match progress {
        // What is told of the denoiser was told before.
        Progress::Network(_) => ControlFlow::Continue(()),
        other => watcher.see(other),
    })?;
    let (dims, values) = (drawn.values.shape().to_vec(), drawn.values.iter().copied().collect());
    let source = format!("{DRAWN} latents drawn from {} by DPM-Solver++ 2M ({STEPS} steps)", pipeline.denoiser().name);
    Ok((Array { dims, data: ArrayData::F32(values) }, source))
}
