//! Prepares a network for a runtime: converts it to a precision, compares it with the original, and writes it into a
//! folder with the files that the runtime needs.

mod adapted;

mod bundle;

mod convert;

mod place;

mod subject;

use std::path::{Path, PathBuf};

use regex::Regex;
use serde::Serialize;

use super::model::{Model, check_lengths, check_sizes};
use super::network::{NetworkOptions, sizes_of};
use super::progress::Watch;
use super::runtime::Runtime;
use crate::deploy::{
    Calibration, Capability, DeployPrecision, DeployTarget, Engine, EngineBuilder, HalfReport, Loader, Profile,
    QuantizeReport,
};
use crate::diffusion::Roles;
use crate::error::Error;
use crate::files::OutputFolder;
use crate::graph::Graph;
use crate::graph::sizes::Sizes;
use crate::infer::infer;
use crate::{files, ops};
use convert::{compare, convert};
use subject::Subject;

/// How a network is prepared for a runtime.
#[derive(Clone, Debug)]
pub struct DeployOptions {
    /// The runtime.
    pub target: DeployTarget,
    /// The file name of the network in the bundle.
    pub name: String,
    /// The precision. `None`: the default of the target.
    pub precision: Option<DeployPrecision>,
    /// Whether inputs and outputs are in half precision too. `None`: they are if `loader` feeds them in half precision.
    pub halves_interface: Option<bool>,
    /// The program whose names, ranks and types inputs and outputs get. `None`: they remain those of the network.
    pub loader: Option<Loader>,
    /// How to build an engine into the bundle. `None`: no engine is built.
    pub engine: Option<EngineOptions>,
    /// Ranges of symbolic dimensions, `("batch", "1..4")`. Engines are built for them; samples use the usual size in
    /// each range.
    pub profile: Vec<(String, String)>,
    /// Sizes of symbolic dimensions that are not in the profile.
    pub sizes: Sizes,
    /// Nodes whose names match one of these remain in float32.
    pub keep: Vec<Regex>,
    /// How the ranges of activations in int8 are chosen.
    pub calibration: Calibration,
    /// Maximum mean squared error of int8, as a share of the denoising loss or of the mean square of the prediction,
    /// whichever is smaller. The layers with the largest errors remain in float32. For a network that does not denoise,
    /// it is a share of the mean square of the first output.
    pub budget: f64,
    /// The roles of the network's inputs and how it was trained, for samples and loss.
    pub network: NetworkOptions,
    /// Clean samples. `None`: the network generates them.
    pub data: Option<PathBuf>,
    /// The values of the data that correspond to the ends of the sample range. `None`: see
    /// [`super::GradientSettings::data_range`].
    pub data_range: Option<(f64, f64)>,
    /// The number of clean samples.
    pub count: usize,
    /// The number of timesteps at which the network is run on them.
    pub timesteps: usize,
    /// Seed of the choice of samples and of all noise.
    pub seed: u64,
}

impl DeployOptions {
    /// Returns the default options for a target.
    pub fn to(target: DeployTarget) -> Self {
        Self {
            target,
            name: "model.onnx".to_owned(),
            precision: None,
            halves_interface: None,
            loader: None,
            engine: None,
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

    /// Returns whether a network in half precision has inputs and outputs in half precision too.
    fn has_half_interface(&self) -> bool {
        self.halves_interface.unwrap_or_else(|| self.loader.is_some_and(Loader::halves_interface))
    }

    /// Returns the precision that the network is converted to.
    pub fn precision(&self) -> DeployPrecision {
        self.precision.unwrap_or_else(|| self.target.default_precision())
    }
}

/// How an engine is built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// The compute capabilities that TensorRT for RTX builds for. If empty, TensorRT chooses.
    pub capabilities: Vec<Capability>,
    /// The Python interpreter whose bindings build the engine. `None`: NVIDIA's programs and the Python on the PATH are
    /// searched.
    pub python: Option<PathBuf>,
}

/// The distance of an output from that of the network before conversion.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OutputDistance {
    /// The name of the output.
    pub output: String,
    /// The root mean squared difference, relative to the root mean square.
    pub relative: f64,
    /// The largest difference, relative to the largest magnitude.
    pub worst: f64,
}

/// The result of a deployment.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DeployReport {
    /// The runtime.
    pub target: DeployTarget,
    /// Its precision.
    pub precision: DeployPrecision,
    /// The program that inputs and outputs were adapted to. `None`: they were not adapted.
    pub loader: Option<Loader>,
    /// The files of the bundle.
    pub files: Vec<PathBuf>,
    /// Bytes of the network before and after, with external data.
    pub bytes: (u64, u64),
    /// The nodes in half precision and in float32. `None`: the network was not converted to half precision.
    pub half: Option<HalfReport>,
    /// The layers in int8 and in float32. `None`: the network was not converted to int8.
    pub int8: Option<QuantizeReport>,
    /// The samples that both were run on, in words.
    pub samples: String,
    /// The distances of the outputs from those before, over all runs.
    pub distances: Vec<OutputDistance>,
    /// The denoising loss before and after, on the same samples and noise. `None`: the network does not denoise.
    pub loss: Option<(f64, f64)>,
    /// The sizes that an engine is built for.
    pub profile: Profile,
    /// The engine. `None`: none was requested.
    pub engine: Option<Engine>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// Prepares a network for a runtime and writes the bundle into a folder. The bundle is completed next to the folder
/// first and then replaces it as a whole. The folder may not exist, be empty, or hold an earlier bundle.
///
/// # Errors
/// Fails if a size is invalid, the network can't be run, a converted network returns values that are not finite, an
/// engine can't be built, or the folder holds other files or can't be written; also if the caller stopped.
pub fn deploy(
    model: &Model,
    folder: &Path,
    runtime: &Runtime,
    options: &DeployOptions,
    watch: &mut Watch<'_>,
) -> Result<DeployReport, Error> {
    place::refuse_foreign(folder)?;
    place::refuse_input_inside(model, folder)?;
    let plan = Plan::new(model, options)?;
    let output = OutputFolder::beside(folder, |_| true)?;
    if options.target == DeployTarget::Tensorrt {
        place::keep_timing_cache(&output, folder)?;
    }
    let made = plan.build(output.root(), runtime, watch);
    let mut report = made.map_err(|error| error.with_final_paths((output.root(), folder)))?;
    let placed = |path: &PathBuf| folder.join(path.strip_prefix(output.root()).unwrap_or(path));
    report.files = report.files.iter().map(placed).collect();
    report.engine = report.engine.take().map(|engine| engine.in_place(placed));
    output.publish(&[])?;
    Ok(report)
}

/// Everything that is decided before anything is measured or written.
struct Plan<'a> {
    model: &'a Model,
    options: &'a DeployOptions,
    subject: Subject<'a>,
    profile: Profile,
    /// The given sizes and the usual sizes.
    usual: Sizes,
    builder: Option<EngineBuilder>,
}

impl<'a> Plan<'a> {
    fn new(model: &'a Model, options: &'a DeployOptions) -> Result<Self, Error> {
        let graph = Graph::new(&model.0)?;
        let facts = infer(&model.0, &graph, &ops::parse(&graph))?;
        check_sizes(&options.sizes, &facts, model.path())?;
        options.target.check_precision(options.precision()).map_err(|error| error.in_file(model.path()))?;
        // The pipeline's settings apply if there is nothing else.
        let roles = Roles::recognise(&model.0, &graph, &facts, &options.network.names);
        let usual =
            roles.map(|roles| sizes_of(&roles, &facts, &options.network, &options.sizes, options.data.as_deref()));
        let usual = usual.and_then(|sizes| sizes).unwrap_or_else(|_| options.sizes.clone());
        let needs_sizes = options.target.builds_engine()
            || !options.profile.is_empty()
            || options.loader.is_some_and(Loader::fixes_sizes);
        let profile = match Profile::new((&graph, &facts), &options.profile, &usual) {
            Ok(profile) => profile,
            Err(error) if needs_sizes => return Err(error),
            // No sizes are needed in this case. Samples use small sizes for unknown dimensions.
            Err(_) => Profile::default(),
        };
        for sizes in profile.ends() {
            check_lengths("--profile", &sizes, &facts, model.path())?;
        }
        let mut sizes = options.sizes.clone();
        // The batch of the samples depends on their number.
        let batches = batch_symbols(&graph, &facts);
        sizes.extend(profile.usual().into_iter().filter(|(name, _)| !batches.contains(name)));
        if let Some(loader) = options.loader {
            adapted::check((&model.0, &graph, &facts), options, loader, &profile)?;
        }
        let builder = match &options.engine {
            Some(asked) => Some(asked.find(options, &profile)?),
            None => None,
        };
        Ok(Self { model, options, subject: Subject::new(model, options, sizes)?, profile, usual, builder })
    }

    /// Writes the bundle into a folder that is empty except for files taken over from an earlier bundle.
    fn build(mut self, folder: &Path, runtime: &Runtime, watch: &mut Watch<'_>) -> Result<DeployReport, Error> {
        let (model, options) = (self.model, self.options);
        let mut warnings: Vec<String> = Vec::new();
        if let Some(why) = &self.subject.other {
            warnings.push(format!("the denoising loss is not compared: {why}"));
        }
        let place = folder.join(&options.name);
        let material = self.subject.material(runtime.0, watch)?;
        let before = self.subject.loss(runtime.0, &material, model.path(), watch)?;
        warnings.extend(self.subject.untrained_warning(before));
        if options.precision() == DeployPrecision::Int8 && options.data.is_none() && before.is_some() {
            let text = "int8 was calibrated on samples that the network generated, not on real data; its error on inputs unlike \
                        these samples was not measured; give real samples with --data";
            warnings.push(text.to_owned());
        }
        let converted = convert(&self.subject, runtime, &material, before, options, watch)?;
        warnings.extend(converted.note);
        let metadata = bundle::metadata(model, options);
        let mut staged = converted.form.stage(&place, &metadata)?;
        let compared = compare(runtime, model.path(), staged.path(), &material.batches, watch);
        let measured =
            compared.and_then(|found| Ok((found, self.subject.loss(runtime.0, &material, staged.path(), watch)?)));
        let (distances, after) = match measured {
            Ok(measured) => measured,
            Err(error) => (Vec::new(), unmeasured(error, (staged.path(), &place), options, &mut warnings)?),
        };
        if let Some(loader) = options.loader {
            let given = (material.batches.as_slice(), &self.usual);
            let from = (&staged, place.as_path());
            let interface = adapted::adapt_staged(runtime.0, from, (options, loader), given, &self.profile, &metadata)?;
            warnings.extend(interface.notes);
            (staged, self.profile) = (interface.staged, interface.profile);
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
            profile: self.profile,
            engine: None,
            warnings,
        };
        let published = staged.publish(&[])?;
        if let Some(builder) = &self.builder {
            report.engine = Some(place::engine(builder, (folder, options), &report.profile, watch)?);
        }
        let written: Vec<PathBuf> = std::iter::once(place)
            .chain(published.report.external)
            .chain(report.engine.iter().map(|engine| engine.file.clone()))
            .collect();
        let beside = bundle::files(model, folder, options, &report, &written)?;
        for (path, content) in &beside {
            files::write_file(path, content)?;
        }
        report.files = written.into_iter().chain(beside.into_iter().map(|(path, _)| path)).collect();
        Ok(report)
    }
}

/// Handles a network that can't be run in its precision here.
fn unmeasured(
    error: Error,
    (staged, place): (&Path, &Path),
    options: &DeployOptions,
    warnings: &mut Vec<String>,
) -> Result<Option<f64>, Error> {
    // ONNX Runtime has bfloat16 kernels for only a few operators on the CPU.
    if options.precision() == DeployPrecision::Bfloat16 && options.target != DeployTarget::Cpu {
        warnings.push(format!(
            "the error of bfloat16 was not measured: the network does not run in bfloat16 on this CPU ({error})"
        ));
        return Ok(None);
    }
    let error = error.instead_of_file(staged, place);
    if options.precision() == DeployPrecision::Bfloat16 {
        return Err(Error::unmet(format!("--precision bfloat16: the network does not run on the CPU: {error}")).hint(
            "ONNX Runtime has few bfloat16 kernels for the CPU: use float32 or int8, or keep nodes in float32 with --keep REGEX",
        ));
    }
    Err(match error.advice() {
        Some(_) => error,
        None => error.hint(
            "if ONNX Runtime has no kernel for a node in this precision, keep the node in float32 with --keep REGEX",
        ),
    })
}

/// Returns the symbols of first axes whose names do not suggest another meaning than the batch.
fn batch_symbols(graph: &Graph, facts: &crate::graph::facts::Facts) -> Vec<String> {
    let first = |input: &usize| facts.values[*input].as_ref()?.shape.as_ref()?.first()?.as_symbol();
    let symbols = graph.inputs.iter().filter_map(first);
    symbols.filter(|name| !crate::graph::sizes::has_telling_name(name)).collect()
}
