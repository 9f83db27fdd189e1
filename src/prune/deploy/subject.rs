//! The network to convert, with the samples on which it is compared with its converted form.

use std::path::Path;

use super::super::gradients::clean_samples;
use super::super::model::Model;
use super::super::network::{Denoising, Findings, Network};
use super::super::options::{GradientSettings, ScoreOptions};
use super::super::progress::{Progress, Stage, Watch, notify};
use super::DeployOptions;
use crate::array::Array;
use crate::collective::Alone;
use crate::deploy::ranges::{Inputs, Steps, taken};
use crate::diffusion::{Conditioning, DenoisingTask, PredictionType, Roles, Samples, denoising_losses, noise};
use crate::error::Error;
use crate::gradient::TARGET;
use crate::gradient::accumulate::Denoising as _;
use crate::graph::facts::Facts;
use crate::graph::sizes::{Sizes, sizes_for};
use crate::graph::{Graph, model};
use crate::infer::infer;
use crate::inputs::{check_names, random_input};
use crate::operator::Operators;
use crate::runtime::{Runtime, RuntimeError, SessionOptions};
use crate::{lower, ops};

/// Number of samples in one run.
const BATCH: usize = 4;

/// The denoising loss above which a network is probably not trained.
const UNTRAINED: f64 = 0.9;

/// Number of runs on random inputs, for networks that do not denoise.
const DRAWN_RUNS: u64 = 8;

/// The network before conversion.
pub(super) struct Subject<'a> {
    pub(super) model: model::Model,
    pub(super) graph: Graph,
    pub(super) operators: Operators,
    pub(super) facts: Facts,
    pub(super) sizes: Sizes,
    options: &'a DeployOptions,
    /// The roles of its inputs. `None`: it does not denoise.
    found: Option<Findings>,
    /// Why it is not treated as a denoising network. `None`: it is.
    pub(super) other: Option<String>,
}

/// The inputs on which forms of the network are run.
pub(super) struct Material {
    /// Inputs of runs, spread over the timesteps.
    pub(super) batches: Vec<Inputs>,
    /// Clean samples. `None`: the network does not denoise.
    clean: Option<(Samples, Conditioning)>,
    /// The source of the inputs, in words.
    pub(super) source: String,
}

impl<'a> Subject<'a> {
    pub(super) fn new(model: &Model, options: &'a DeployOptions, sizes: Sizes) -> Result<Self, Error> {
        let model = model.0.clone();
        let graph = Graph::new(&model)?;
        check_names(&model, &graph, &options.network.inputs)?;
        let operators = ops::parse(&graph);
        let facts = infer(&model, &graph, &operators)?;
        let found = Roles::recognise(&model, &graph, &facts, &options.network.names)
            .and_then(|roles| Findings::new(roles, &facts, &options.network, &sizes, options.data.as_deref()));
        let (found, other) = match found {
            Ok(found) => (Some(found), None),
            // Options that only apply to a denoising network must not be ignored.
            Err(error) if options.data.is_some() || options.network.names.sample.is_some() => return Err(error),
            Err(error) => (None, Some(error.to_string())),
        };
        Ok(Self { model, graph, operators, facts, sizes, options, found, other })
    }

    fn denoising(&self) -> Option<Denoising<'_>> {
        let found = self.found.as_ref()?;
        Some(Denoising { known: (&self.model, &self.graph, &self.facts), found })
    }

    /// Returns a warning if the loss is close to that of a network that always predicts zero. Noise has a mean square
    /// of one, and the targets of other prediction types have nearly that.
    pub(super) fn untrained_warning(&self, loss: Option<f64>) -> Option<String> {
        let (loss, network) = (loss.filter(|loss| *loss > UNTRAINED)?, self.denoising()?);
        let prediction = network.configured().process.prediction;
        (prediction != PredictionType::Sample).then(|| {
            format!(
                "the denoising loss is {loss:.3}, close to the 1 of a network that always predicts zero: the network may be \
                 untrained, or the samples or the schedule may not match it; the errors measured here then do not apply to a \
                 trained network"
            )
        })
    }

    /// Returns the name of the output that is compared: the prediction, or else the first.
    pub(super) fn prediction(&self) -> Result<String, Error> {
        let first = || self.graph.outputs.first().map(|output| self.graph.values[*output].name.clone());
        let name = self.denoising().map(|network| network.roles().prediction.name.clone());
        name.or_else(first).ok_or_else(|| Error::invalid(self.model.path(), "the graph has no output"))
    }

    /// Generates or reads the inputs on which forms of the network are run.
    ///
    /// # Errors
    /// Fails if data can't be read or does not fit, if the network fails, or if the caller stopped.
    pub(super) fn material(&self, runtime: &Runtime, watch: &mut Watch<'_>) -> Result<Material, Error> {
        match self.denoising() {
            Some(network) => self.noisy(network, runtime, watch),
            None => self.drawn(),
        }
    }

    /// Returns noisy samples at timesteps that are spread over the schedule.
    fn noisy(&self, network: Denoising<'_>, runtime: &Runtime, watch: &mut Watch<'_>) -> Result<Material, Error> {
        let options = self.options;
        let fixed = network.roles().fixed_batch();
        let batch = options.network.batch.or(fixed).unwrap_or(BATCH.min(options.count)).max(1);
        let batch = network.fitting(batch, fixed.is_none())?;
        let count = options.count.max(1).next_multiple_of(batch);
        let conditioning = network.conditioning(batch, options.seed)?;
        notify(watch, Progress::Network(&network.described(&network.lines(&conditioning))))?;
        let settings = GradientSettings {
            network: options.network.clone(),
            data: options.data.clone(),
            data_range: options.data_range,
            ..GradientSettings::default()
        };
        let score = ScoreOptions { seed: options.seed, gradients: settings, ..ScoreOptions::default() };
        let samples = clean_samples(network, runtime, &conditioning, &score, (count, batch), watch)?;
        conditioning.unpaired(&samples).iter().try_for_each(|text| notify(watch, Progress::Warning(text)))?;
        let process = &network.configured().process;
        let timesteps = options.timesteps.clamp(1, process.schedule.levels().len());
        let task = DenoisingTask::new(
            (process, network.roles(), &conditioning),
            (&self.facts, network.sizes()),
            &samples,
            noise(samples.values.shape(), samples.len(), options.seed.wrapping_add(1)),
            Some(timesteps),
        )?;
        let runs = samples.len() / batch;
        let inputs = |at: usize| {
            let run = at % runs;
            let mut inputs = task.inputs(at, run * batch..(run + 1) * batch)?;
            inputs.retain(|(name, _)| name != TARGET);
            Ok(inputs)
        };
        let batches = (0..timesteps).map(inputs).collect::<Result<Vec<_>, Error>>()?;
        let source = format!("{} at {timesteps} timesteps", samples.source);
        Ok(Material { batches, clean: Some((samples, conditioning)), source })
    }

    /// Returns random inputs according to the declarations of the graph, except for those that are given.
    fn drawn(&self) -> Result<Material, Error> {
        let sizes = sizes_for(&self.facts, &self.sizes);
        let mut batches = Vec::new();
        for run in 0..DRAWN_RUNS {
            let mut inputs = Inputs::new();
            for input in &self.graph.inputs {
                let name = &self.graph.values[*input].name;
                let unknown = || Error::invalid(self.model.path(), format!("graph input {name:?} declares no shape"));
                let shape =
                    self.facts.values[*input].as_ref().and_then(|fact| fact.shape.as_ref()).ok_or_else(unknown)?;
                let dims: Option<Vec<usize>> =
                    shape.iter().map(|dim| usize::try_from(dim.eval(&sizes)?).ok()).collect();
                let dims = dims.ok_or_else(unknown)?;
                let given = self.options.network.inputs.iter().find(|(own, _)| own == name);
                let array = match given {
                    Some((_, array)) => rows(array, &dims, run)?,
                    None => {
                        let known = (&self.model, &self.graph, &self.facts);
                        random_input(known, name, &dims, self.options.seed.wrapping_add(run))?
                    }
                };
                inputs.push((name.clone(), array));
            }
            batches.push(inputs);
        }
        Ok(Material { batches, clean: None, source: format!("{DRAWN_RUNS} runs on random inputs") })
    }

    /// Returns the denoising loss of a file of the network on the clean samples; `None` if it does not denoise.
    ///
    /// # Errors
    /// Fails if the network fails, or if the caller stopped.
    pub(super) fn loss(
        &self,
        runtime: &Runtime,
        material: &Material,
        form: &Path,
        watch: &mut Watch<'_>,
    ) -> Result<Option<f64>, Error> {
        let (Some((samples, conditioning)), Some(own)) = (&material.clean, self.denoising()) else { return Ok(None) };
        let network = Network::open(&Model::open(form)?, &self.options.network, own.sizes(), None)?;
        let view = network.view();
        let batch = material.batches.first().and_then(|inputs| {
            let sample = inputs.iter().find(|(name, _)| *name == own.roles().sample.name)?;
            sample.1.dims.first().copied()
        });
        let mut denoiser = view.denoiser(runtime, batch.unwrap_or(1))?;
        // The conditioning of the original is reused if the form takes the same element types.
        let conditioning = if view
            .roles()
            .conditioning
            .iter()
            .zip(&own.roles().conditioning)
            .all(|(a, b)| a.element_type == b.element_type)
        {
            conditioning.clone()
        } else {
            view.conditioning(batch.unwrap_or(1), self.options.seed)?
        };
        let noise = noise(samples.values.shape(), samples.len(), self.options.seed.wrapping_add(2));
        let losses = denoising_losses(
            &mut denoiser,
            &view.configured().process,
            &conditioning,
            (samples, &noise),
            material.batches.len(),
            &Alone,
            &mut |done, total| notify(watch, Progress::At { stage: Stage::Losses, done, total }),
        )?;
        Ok(Some(losses.iter().map(|(_, loss)| loss).sum::<f64>() / losses.len().max(1) as f64))
    }
}

/// Returns as many rows of an array as an input takes, different ones in every run.
pub(super) fn rows(array: &Array, dims: &[usize], run: u64) -> Result<Array, Error> {
    let (Some(count), Some(wanted)) = (array.dims.first().copied(), dims.first().copied()) else {
        return Ok(array.clone());
    };
    if count == wanted || count == 0 {
        return Ok(array.clone());
    }
    let first = usize::try_from(run).unwrap_or(0) * wanted;
    Ok(array.rows(&(0..wanted).map(|at| (first + at) % count).collect::<Vec<_>>()))
}

/// Runs a file on every batch of inputs, cast to the types of its inputs, and returns all outputs.
///
/// # Errors
/// Fails if the network can't be run.
pub(super) fn outputs(
    runtime: &Runtime,
    file: &Path,
    batches: &[Inputs],
    steps: &mut Steps<'_>,
) -> Result<Vec<Inputs>, Error> {
    let model = crate::load::load(file)?;
    let fail = |error: RuntimeError| Error::unmet(error.to_string()).in_file(file).caused_by(error);
    let mut session = lower::session(runtime, &model, &SessionOptions::default())?;
    let mut all = Vec::with_capacity(batches.len());
    for (at, inputs) in batches.iter().enumerate() {
        steps(at, batches.len())?;
        let mut given = taken(&session, inputs);
        for (name, array) in &mut given {
            if let Some(declared) = session.inputs().iter().find(|input| input.name == *name)
                && declared.element_type != array.element_type()
            {
                *array = array.cast(declared.element_type);
            }
        }
        all.push(session.run(&given).map_err(fail)?);
    }
    Ok(all)
}
