//! The samples that the decoder of a pipeline is scored and fitted on: latents as its denoiser generates them.

use std::ops::ControlFlow;
use std::sync::Arc;

use onnx_diffprune::data::{Array, ArrayData};
use onnx_diffprune::networks::{Network, SampleOptions, Sampler, UsualSizes};
use onnx_diffprune::pipelines::{Component, Pipeline};
use onnx_diffprune::{CriterionOption, Error, Model, OutputSamples, Progress, Runtime, Sizes, Stage, Task};

use super::args::PruneArgs;
use super::printer::{Printer, Watcher};
use super::surroundings::Surroundings;

/// Number of latents to generate with the denoiser, and of sampling steps for each.
const DRAWN: usize = 40;
const STEPS: usize = 10;

/// Default maximum number of latents to take from the data.
const MOST_LATENTS: usize = 512;

/// Maximum height and width of generated latents. A decoder computes the same at every position, so a smaller image
/// shows enough of them.
const MOST_EDGE: usize = 32;

/// The scaling factor of Stable Diffusion 1 and 2, which diffusers uses if the configuration has none.
const USUAL_FACTOR: f64 = 0.18215;

impl PruneArgs {
    /// Returns the arguments for a decoder. It is scored by curvature, on latents of `--data` or of the denoiser of the
    /// pipeline.
    ///
    /// # Errors
    /// Data that can't be read.
    pub(super) fn for_decoder(
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
                    "criterion:    hessian for {}: the loss of a decoder, the difference to its original output, has \
                     curvature but no gradient",
                    decoder.name
                ));
            }
        }
        // Generating latents takes time, so it is skipped if no stage needs them.
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

/// Returns the scaling factor and the shift of latents: the denoiser works on `(latent - shift) * factor`.
fn scale(decoder: &Component) -> (f64, f64) {
    let factor = decoder.config.scaling_factor.filter(|factor| *factor != 0.0 && factor.is_finite());
    (factor.unwrap_or(USUAL_FACTOR), decoder.config.shift_factor.unwrap_or(0.0))
}

/// Returns height and width of generated latents.
fn edges(pipeline: &Pipeline) -> Option<(usize, usize)> {
    let (height, width) = pipeline.denoiser().config.sample_size?;
    Some((height.min(MOST_EDGE), width.min(MOST_EDGE)))
}

/// Returns normally distributed latents.
fn drawn(pipeline: &Pipeline, (factor, shift): (f64, f64)) -> OutputSamples {
    OutputSamples::Random { mean: 0.0, deviation: 1.0, edges: edges(pipeline) }.as_decoded(factor, shift)
}

/// Returns the latents of the data. Without data, they are generated with the denoiser, or normally distributed if that
/// fails.
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
                "the denoiser could not generate latents for the decoder, normally distributed latents are used: {error}"
            ));
            Ok(drawn(pipeline, (factor, shift)))
        }
    }
}

/// Generates latents with the denoiser of the pipeline, with the prompts if there are any.
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
        Watcher::new(printer, |stage| (stage == Stage::Sampling).then_some("generating latents for the decoder"));
    let drawn = network.sample(&runtime, &sampling, &mut |progress| match progress {
        // The lines about the denoiser were printed before.
        Progress::Network(_) => ControlFlow::Continue(()),
        other => watcher.see(other),
    })?;
    let (dims, values) = (drawn.values.shape().to_vec(), drawn.values.iter().copied().collect());
    let source =
        format!("{DRAWN} latents generated with {} by DPM-Solver++ 2M ({STEPS} steps)", pipeline.denoiser().name);
    Ok((Array { dims, data: ArrayData::F32(values) }, source))
}
