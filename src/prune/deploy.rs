//! A network made ready for a runtime: brought to a precision, compared with what it was, in a folder with what the runtime
//! asks for.

mod adapted;

mod bundle;

mod subject;

use std::path::{Path, PathBuf};

use regex::Regex;
use serde::Serialize;

use super::model::{Model, check_sizes};
use super::network::{NetworkOptions, sizes_of};
use super::progress::{Progress, Stage, Watch, tell};
use super::runtime::Runtime;
use crate::deploy::ranges::Inputs;
use crate::deploy::{
    Calibration, DeployPrecision, DeployTarget, Form, HalfOptions, HalfReport, Loader, Profile, QuantizeOptions,
    QuantizeReport, halve, is_half, quantize, watch_ranges,
};
use crate::diffusion::Roles;
use crate::error::Error;
use crate::graph::Graph;
use crate::graph::sizes::Sizes;
use crate::infer::infer;
use crate::{files, ops};
use subject::{Material, Subject, outputs};

/// How a network is made ready.
#[derive(Clone, Debug)]
pub struct DeployOptions {
    /// What runs it.
    pub target: DeployTarget,
    /// The name of the network's file in the bundle.
    pub name: String,
    /// The precision; what suits the target where `None`.
    pub precision: Option<DeployPrecision>,
    /// Whether inputs and outputs are in half precision too; where `None`, they are if `loader` is one that feeds them so.
    pub halves_interface: Option<bool>,
    /// The program whose names, ranks and types inputs and outputs get; those of the network where `None`.
    pub loader: Option<Loader>,
    /// Sizes of symbolic dimensions, `("batch", "1..4")`: engines are built for them, and samples have the usual ones.
    pub profile: Vec<(String, String)>,
    /// Sizes of symbolic dimensions of which the profile says nothing.
    pub sizes: Sizes,
    /// Nodes whose names match one of these stay in float32.
    pub keep: Vec<Regex>,
    /// How the ranges of activations in int8 are chosen.
    pub calibration: Calibration,
    /// The largest mean squared error of int8, as a share of the denoising loss or of the mean square of the prediction, whichever
    /// is less: the layers that cost most stay in float32. Of a network that does not denoise, a share of the mean square
    /// of its first output.
    pub budget: f64,
    /// What the network's inputs stand for and how it was trained, for samples and loss.
    pub network: NetworkOptions,
    /// Clean samples; drawn from the network itself where `None`.
    pub data: Option<PathBuf>,
    /// The values of the data that stand for the ends of the sample range.
    pub data_range: Option<(f64, f64)>,
    /// The number of clean samples.
    pub count: usize,
    /// The timesteps at which the network is run on them.
    pub timesteps: usize,
    /// Seed of the choice of samples and of all noise.
    pub seed: u64,
}

impl DeployOptions {
    /// The defaults for a target.
    pub fn to(target: DeployTarget) -> Self {
        Self {
            target,
            name: "model.onnx".to_owned(),
            precision: None,
            halves_interface: None,
            loader: None,
            profile: Vec::new(),
            sizes: Sizes::new(),
            keep: Vec::new(),
            calibration: Calibration::default(),
            budget: 0.01,
            network: NetworkOptions::default(),
            data: None,
            data_range: None,
            count: 16,
            timesteps: 10,
            seed: 0,
        }
    }

    /// Whether a network in half precision has inputs and outputs in it too.
    fn has_half_interface(&self) -> bool {
        self.halves_interface.unwrap_or_else(|| self.loader.is_some_and(Loader::halves_interface))
    }

    /// The precision that the network is brought to.
    pub fn precision(&self) -> DeployPrecision {
        self.precision.unwrap_or_else(|| self.target.default_precision())
    }
}

/// How far outputs are from those of the network as it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OutputDistance {
    /// The output.
    pub output: String,
    /// The root of the mean squared difference over that of the mean square.
    pub relative: f64,
    /// The largest difference, relative to the largest magnitude.
    pub worst: f64,
}

/// What was made.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DeployReport {
    /// What runs it.
    pub target: DeployTarget,
    /// Its precision.
    pub precision: DeployPrecision,
    /// The program whose inputs and outputs it has.
    pub loader: Option<Loader>,
    /// The files of the bundle.
    pub files: Vec<PathBuf>,
    /// Bytes of the network as it was and as it is, with external data.
    pub bytes: (u64, u64),
    /// What became of the nodes in half precision.
    pub half: Option<HalfReport>,
    /// What became of the layers in int8.
    pub int8: Option<QuantizeReport>,
    /// On what the two were run, in words.
    pub samples: String,
    /// How far the outputs are from those before, over all runs.
    pub distances: Vec<OutputDistance>,
    /// The denoising loss before and after, on the same samples and noise; `None` for a network that does not denoise.
    pub loss: Option<(f64, f64)>,
    /// The sizes that an engine is built for.
    pub profile: Profile,
    /// Things that the user should know.
    pub warnings: Vec<String>,
}

/// Makes a network ready for a runtime, in a folder that is made where there is none. Files take their places together.
///
/// # Errors
/// A size that makes no sense, a network that can't be run or whose form gives values that are not finite, a folder that
/// can't be written; the caller stopped.
pub fn deploy(
    model: &Model,
    folder: &Path,
    runtime: &Runtime,
    options: &DeployOptions,
    watch: &mut Watch<'_>,
) -> Result<DeployReport, Error> {
    let graph = Graph::new(&model.0)?;
    let facts = infer(&model.0, &graph, &ops::parse(&graph))?;
    check_sizes(&options.sizes, &facts, model.path())?;
    // What the pipeline says, where nothing else does.
    let roles = Roles::recognise(&model.0, &graph, &facts, &options.network.names);
    let usual = roles.map(|roles| sizes_of(&roles, &facts, &options.network, &options.sizes, options.data.as_deref()));
    let usual = usual.and_then(|sizes| sizes).unwrap_or_else(|_| options.sizes.clone());
    let needs_sizes = options.target.builds_engine()
        || !options.profile.is_empty()
        || options.loader.is_some_and(Loader::fixes_sizes);
    let mut profile = match Profile::new((&graph, &facts), &options.profile, &usual) {
        Ok(profile) => profile,
        Err(error) if needs_sizes => return Err(error),
        // Nothing is built for sizes there: samples get small ones of what is not known.
        Err(_) => Profile::default(),
    };
    let mut sizes = options.sizes.clone();
    // The batch of samples is a matter of how many there are.
    let batches = batch_symbols(&graph, &facts);
    sizes.extend(profile.usual().into_iter().filter(|(name, _)| !batches.contains(name)));
    if let Some(loader) = options.loader {
        adapted::check((&model.0, &graph, &facts), options, loader, &profile)?;
    }
    let subject = Subject::new(model, options, sizes)?;
    let mut warnings: Vec<String> = Vec::new();
    if let Some(why) = &subject.other {
        warnings.push(format!("there is no denoising loss to compare: {why}"));
    }
    let made = files::NewFolder::at(folder).map_err(|error| files::unwritable(folder, error))?;
    let place = folder.join(&options.name);
    let material = subject.material(runtime.0, watch)?;
    tell(watch, Progress::At { stage: Stage::Converting, done: 0, total: 3 })?;
    let before = subject.loss(runtime.0, &material, model.path())?;
    let converted = convert(&subject, runtime, &material, before, options)?;
    warnings.extend(converted.note);
    let metadata = bundle::metadata(model, options);
    let mut staged = converted.form.stage(&place, &metadata)?;
    tell(watch, Progress::At { stage: Stage::Converting, done: 1, total: 3 })?;
    let compared = compare(runtime, model.path(), staged.path(), &material.batches);
    tell(watch, Progress::At { stage: Stage::Converting, done: 2, total: 3 })?;
    let measured = compared.and_then(|distances| Ok((distances, subject.loss(runtime.0, &material, staged.path())?)));
    let (distances, after) = match measured {
        Ok(measured) => measured,
        // ONNX Runtime has kernels in bfloat16 for few operators on the processor.
        Err(error) if options.precision() == DeployPrecision::Bfloat16 => {
            warnings.push(format!("what bfloat16 costs is not measured: it does not run on this processor ({error})"));
            (Vec::new(), None)
        }
        Err(error) => {
            let error = error.instead_of_file(staged.path(), &place);
            return Err(match error.advice() {
                None => error.hint(
                    "a node for which ONNX Runtime has no kernel in this precision stays in float32 with --keep REGEX",
                ),
                Some(_) => error,
            });
        }
    };
    if let Some(loader) = options.loader {
        let from = (&staged, place.as_path());
        let given = (material.batches.as_slice(), &usual);
        let dressed = adapted::dress(runtime.0, from, (options, loader), given, &profile, &metadata)?;
        warnings.extend(dressed.notes);
        (staged, profile) = (dressed.staged, dressed.profile);
    }
    let mut report = DeployReport {
        target: options.target,
        precision: options.precision(),
        loader: options.loader,
        files: Vec::new(),
        bytes: (model.total_bytes()?, staged.bytes()),
        half: converted.half,
        int8: converted.int8,
        samples: material.source,
        distances,
        loss: before.zip(after),
        profile,
        warnings,
    };
    let beside = bundle::files(model, folder, options, &report)?;
    let published = staged.publish(&beside)?;
    drop(made);
    report.files = std::iter::once(place)
        .chain(published.report.external)
        .chain(beside.into_iter().map(|(path, _)| path))
        .collect();
    Ok(report)
}

/// The symbols of first axes.
fn batch_symbols(graph: &Graph, facts: &crate::graph::facts::Facts) -> Vec<String> {
    let first = |input: &usize| facts.values[*input].as_ref()?.shape.as_ref()?.first()?.as_symbol();
    let symbols = graph.inputs.iter().filter_map(first);
    symbols.filter(|name| !crate::graph::sizes::has_telling_name(name)).collect()
}

/// A network in another precision.
struct Converted {
    form: Form,
    half: Option<HalfReport>,
    int8: Option<QuantizeReport>,
    note: Option<String>,
}

/// The network in the precision that is asked for.
fn convert(
    subject: &Subject<'_>,
    runtime: &Runtime,
    material: &Material,
    loss: Option<f64>,
    options: &DeployOptions,
) -> Result<Converted, Error> {
    let as_it_is = || Form::of(&subject.model, &subject.graph);
    let precision = options.precision();
    let known = (&subject.model, &subject.graph, &subject.facts);
    let network = (&subject.model, &subject.graph, &subject.operators, &subject.facts);
    if precision == DeployPrecision::Float32 {
        return Ok(Converted { form: as_it_is(), half: None, int8: None, note: None });
    }
    if is_half(&subject.facts) && (options.precision.is_none() || precision == DeployPrecision::Float16) {
        let note = Some("the network is in half precision already and stays as it is".to_owned());
        return Ok(Converted { form: as_it_is(), half: None, int8: None, note });
    }
    let ranges = watch_ranges(runtime.0, known, &material.batches)?;
    if let Some(dtype) = precision.half_type() {
        let half =
            HalfOptions { dtype, halves_interface: options.has_half_interface(), keep: &options.keep, ranges: &ranges };
        let (form, report) = halve(network, &half)?;
        return Ok(Converted { form, half: Some(report), int8: None, note: None });
    }
    let output = subject.prediction()?;
    let given = outputs(runtime.0, subject.model.path(), &material.batches)?;
    let of_output = given.iter().flatten().filter(|(name, _)| *name == output);
    let values: Vec<f64> = of_output.flat_map(|(_, array)| array.to_f64()).collect();
    let square = values.iter().map(|value| value * value).sum::<f64>() / values.len().max(1) as f64;
    // Where rounding is independent of the error that the network has, the loss grows by the mean square of what it adds. That
    // of a network that predicts little says nothing of what it predicts.
    let scale = loss.map_or(square, |loss| loss.min(square));
    let quantized = QuantizeOptions {
        style: options.target.quantized_style(),
        calibration: options.calibration,
        keep: &options.keep,
        ranges: &ranges,
        output: &output,
        most: Some(options.budget * scale),
    };
    let (form, report) = quantize(runtime.0, network, &material.batches, &quantized)?;
    Ok(Converted { form, half: None, int8: Some(report), note: None })
}

/// How far the outputs of a file are from those of another, over all runs.
fn compare(runtime: &Runtime, before: &Path, after: &Path, batches: &[Inputs]) -> Result<Vec<OutputDistance>, Error> {
    let wanted = outputs(runtime.0, before, batches)?;
    let found = outputs(runtime.0, after, batches)?;
    let names: Vec<&String> = wanted.first().into_iter().flatten().map(|(name, _)| name).collect();
    let mut distances = Vec::new();
    for (at, name) in names.into_iter().enumerate() {
        let (mut difference, mut square, mut largest, mut magnitude) = (0.0, 0.0, 0.0f64, 0.0f64);
        for (wanted, found) in wanted.iter().zip(&found) {
            let of = |outputs: &Inputs| outputs.get(at).map(|(_, array)| array.to_f64()).unwrap_or_default();
            for (a, b) in of(wanted).into_iter().zip(of(found)) {
                if !a.is_finite() {
                    continue;
                }
                if !b.is_finite() {
                    return Err(Error::unmet(format!("output {name:?} holds {b} in this precision, where it was {a}"))
                        .in_file(before)
                        .hint("name nodes that stay in float32 with --keep, or take bfloat16"));
                }
                difference += (a - b).powi(2);
                square += a * a;
                largest = largest.max((a - b).abs());
                magnitude = magnitude.max(a.abs());
            }
        }
        let relative = if square > 0.0 { (difference / square).sqrt() } else { difference.sqrt() };
        let worst = if magnitude > 0.0 { largest / magnitude } else { largest };
        distances.push(OutputDistance { output: name.clone(), relative, worst });
    }
    Ok(distances)
}
