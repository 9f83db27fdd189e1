//! The command `deploy`: prepares a network for a runtime.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use onnx_diffprune::deployment::{
    Calibration, Capability, DeployOptions, DeployPrecision, DeployReport, DeployTarget, EngineOptions, Loader, deploy,
};
use onnx_diffprune::pipelines::{Pipeline, PipelineOutput};
use onnx_diffprune::{Error, Model, Stage};

use super::args::Cli;
use super::config::{parse_sizes, pattern};
use super::diffusion_args::{DataArgs, DiffusionArgs};
use super::printer::{Printer, Watcher, bytes_text, table};
use super::surroundings::{Surroundings, network_of};
use super::{open_runtime, run_files};

/// Number of nodes kept in float32 to list without `--verbose`.
const KEPT_SHOWN: usize = 12;

#[derive(Args, Debug)]
pub(super) struct DeployArgs {
    /// The network, or the folder of a pipeline: its denoiser is prepared and all other files are copied.
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The folder for the network, a README with commands, and files for the tools of the target; created if it does
    /// not exist.
    #[arg(value_name = "BUNDLE")]
    output: PathBuf,
    /// The runtime that will run the network.
    #[arg(long, value_enum)]
    target: DeployTarget,
    /// Precision of the network [default: float16; float32 for openvino and cpu].
    #[arg(long, value_enum)]
    precision: Option<DeployPrecision>,
    /// Element type of the network's floating point inputs and outputs; float16 means half precision of either kind
    /// [default: float32; with --io demodiffusion and webnn, that of the network].
    #[arg(long, value_enum)]
    io_precision: Option<Interface>,
    /// The program whose names, ranks and types the inputs and outputs follow [default: those of the network].
    #[arg(long, value_enum)]
    io: Option<Loader>,
    /// Sizes of symbolic dimensions: NAME=N, NAME=MIN..MAX or NAME=MIN..OPT..MAX, with commas between several. Engines
    /// are built for them [default: a batch of 1..2..8, latents of 64 x 64, 77 tokens].
    #[arg(long, value_name = "NAME=SIZES,...", value_delimiter = ',')]
    profile: Vec<String>,
    /// The size of a symbolic dimension that the profile does not set. Can be given several times.
    #[arg(long, value_name = "NAME=N")]
    size: Vec<String>,
    /// Build the engine into the bundle (tensorrt and tensorrt-rtx only). This needs trtexec or tensorrt_rtx on the
    /// PATH, or a Python with the bindings.
    #[arg(long)]
    engine: bool,
    /// Compute capabilities to build an engine of TensorRT for RTX for, such as 8.9,12.0 [default: 8.0 and later].
    #[arg(long, value_name = "N.N,...", value_delimiter = ',', requires = "engine")]
    compute_capability: Vec<Capability>,
    /// The Python whose tensorrt or tensorrt_rtx package builds the engine [default: programs and the Python on the
    /// PATH].
    #[arg(long, value_name = "PATH", requires = "engine")]
    python: Option<PathBuf>,
    /// Keep the nodes whose name matches in float32; with int8, also layers whose weight has a matching name. Can be
    /// given several times.
    #[arg(long, value_name = "REGEX")]
    keep: Vec<String>,
    /// How the ranges of activations are calibrated for int8.
    #[arg(long, value_enum, default_value = "min-max")]
    calibration: Calibration,
    /// Largest mean squared error of int8, relative to the denoising loss or to the mean square of the prediction,
    /// whichever is smaller. The layers with the largest errors are kept in float32.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, allow_hyphen_values = true)]
    budget: f64,
    /// Number of clean samples to run the network on, to find the ranges of values and to compare outputs.
    #[arg(long, value_name = "N", default_value_t = 16)]
    count: usize,
    /// Number of timesteps to run, spread evenly over the schedule.
    #[arg(long, value_name = "N", default_value_t = 10)]
    timesteps: usize,
    /// Seed of the choice of samples and of all noise.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Conditioning, or the inputs of a network that does not denoise: arrays with the names of the network's inputs.
    /// Inputs that are not given are random.
    #[arg(long, value_name = "FILE.npz")]
    inputs: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    diffusion: DiffusionArgs,
}

/// The element type of inputs and outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Interface {
    #[value(alias = "fp32")]
    Float32,
    #[value(alias = "fp16", alias = "bfloat16", alias = "bf16")]
    Float16,
}

impl DeployArgs {
    fn budget(&self) -> Result<f64, Error> {
        match self.budget.is_finite() && self.budget >= 0.0 {
            true => Ok(self.budget),
            false => Err(Error::usage(format!("--budget: expected a share of at least 0, found {}", self.budget))),
        }
    }

    fn engine(&self) -> Result<Option<EngineOptions>, Error> {
        if !self.compute_capability.is_empty() && self.target != DeployTarget::TensorrtRtx {
            return Err(Error::usage(
                "--compute-capability: an engine of TensorRT only runs on the kind of GPU that builds it",
            )
            .hint("use --target tensorrt-rtx to build for other GPUs, or leave out --compute-capability"));
        }
        let (capabilities, python) = (self.compute_capability.clone(), self.python.clone());
        Ok(self.engine.then_some(EngineOptions { capabilities, python }))
    }

    fn options(&self, diffusion: &DiffusionArgs) -> Result<DeployOptions, Error> {
        Ok(DeployOptions {
            precision: self.precision,
            halves_interface: self.io_precision.map(|asked| asked == Interface::Float16),
            loader: self.io,
            engine: self.engine()?,
            profile: self.profile.iter().map(|text| named_size(text)).collect::<Result<_, _>>()?,
            sizes: parse_sizes(&self.size)?,
            keep: self.keep.iter().map(|text| pattern("--keep", text)).collect::<Result<_, _>>()?,
            calibration: self.calibration,
            budget: self.budget()?,
            network: diffusion.network_options(Vec::new())?,
            data: self.data.data.clone(),
            data_range: self.data.range()?,
            count: self.count,
            timesteps: self.timesteps,
            seed: self.seed,
            ..DeployOptions::to(self.target)
        })
    }
}

/// Parses a dimension with its sizes, such as `batch=1..4`.
fn named_size(text: &str) -> Result<(String, String), Error> {
    let form = || Error::usage(format!("--profile: expected NAME=SIZES, found {text:?}"));
    let (name, sizes) = text.rsplit_once('=').ok_or_else(form)?;
    Ok((name.trim().to_owned(), sizes.trim().to_owned()))
}

fn text_of(stage: Stage) -> Option<&'static str> {
    match stage {
        Stage::Sampling => Some("generating samples"),
        Stage::Losses => Some("measuring the denoising loss"),
        Stage::Converting => Some("observing the ranges of values"),
        Stage::Comparing => Some("measuring the error of each layer in int8"),
        Stage::Verifying => Some("comparing outputs"),
        Stage::Building => Some("building the engine"),
        _ => None,
    }
}

pub(super) fn run(args: &DeployArgs, cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    let pipeline = Pipeline::is_meant(&args.input).then(|| Pipeline::open(&args.input)).transpose()?;
    let input = network_of(&args.input)?;
    let surroundings = Surroundings::of(&args.diffusion, &input, true)?;
    surroundings.print(printer);
    let model = Model::open(&input)?;
    // Conflicts between files are reported before anything is computed.
    let mut files = run_files::of_run(cli);
    run_files::reads_model(&mut files, "IN.onnx", &model);
    let (inputs, scheduler) = (args.inputs.as_deref(), args.diffusion.scheduler_config.as_deref());
    run_files::reads_given(&mut files, &[("--inputs", inputs), ("--scheduler-config", scheduler)]);
    run_files::reads_data(&mut files, args.data.data.as_deref())?;
    if pipeline.is_none() {
        files.add_outputs_in("a file of BUNDLE", &args.output, &["model.onnx", "model.onnx.data", "README.md"]);
    }
    files.check()?;
    let mut options = args.options(&surroundings.diffusion)?;
    let runtime = open_runtime(cli)?;
    options.network.inputs = surroundings.inputs(&model, inputs, Some(&runtime))?.unwrap_or_default();
    printer.notes(&model);
    let output = match &pipeline {
        Some(pipeline) => Some(PipelineOutput::beside(pipeline, &args.output, &[pipeline.denoiser()])?),
        None => None,
    };
    let staged = output.as_ref().map(|output| output.staged(&input));
    let folder = staged.as_deref().and_then(Path::parent).unwrap_or(&args.output).to_owned();
    if let Some(name) = staged.as_deref().and_then(Path::file_name) {
        options.name = name.to_string_lossy().into_owned();
    }
    if let Some(name) = args.io.and_then(Loader::file_name) {
        name.clone_into(&mut options.name);
    }
    let mut watcher = Watcher::new(printer, text_of);
    let made = deploy(&model, &folder, &runtime, &options, &mut |progress| watcher.see(progress));
    drop(watcher);
    let mut report = made.map_err(|error| match &output {
        Some(output) => error.with_final_paths(output.roots()),
        None => error,
    })?;
    if let Some(output) = output {
        printer.go_on()?;
        let (prepared, place) = output.roots();
        let moved = |path: &PathBuf| path.strip_prefix(prepared).map_or_else(|_| path.clone(), |path| place.join(path));
        report.files = report.files.iter().map(moved).collect();
        report.engine = report.engine.take().map(|engine| engine.in_place(moved));
        report.files.extend(output.publish()?.copied.iter().map(|name| args.output.join(name)));
    }
    report.warnings.iter().for_each(|warning| printer.warning(warning));
    printer.result(&report, || text(&report, printer.is_verbose()));
    Ok(true)
}

fn text(report: &DeployReport, is_verbose: bool) -> String {
    let (before, after) = report.bytes;
    let mut rows = vec![vec![
        "file".to_owned(),
        bytes_text(before as f64),
        bytes_text(after as f64),
        format!("{:+.1} %", 100.0 * (after as f64 / before as f64 - 1.0)),
    ]];
    if let Some((before, after)) = report.loss {
        rows.push(vec![
            "denoising loss".to_owned(),
            format!("{before:.5}"),
            format!("{after:.5}"),
            format!("{:+.2} %", 100.0 * (after / before - 1.0)),
        ]);
    }
    let mut parts = vec![table(&["", "before", report.precision.name(), "change"], &rows)];
    let distances: Vec<String> = report
        .distances
        .iter()
        .map(|distance| {
            let (output, relative, worst) = (&distance.output, distance.relative, distance.worst);
            format!("{output}: root mean square error {relative:.2e}, largest error {worst:.2e} (both relative)")
        })
        .collect();
    parts.push(format!("{}\nmeasured on {}", distances.join("\n"), report.samples));
    if let Some(half) = &report.half {
        let mut text = format!("{} nodes in {}, {} casts", half.half, report.precision.name(), half.casts);
        let shown = if is_verbose { half.kept.len() } else { half.kept.len().min(KEPT_SHOWN) };
        if !half.kept.is_empty() {
            text += &format!("; {} kept in float32:", half.kept.len());
        }
        for kept in &half.kept[..shown] {
            text += &format!("\n  {} ({}): {}", kept.node, kept.op, kept.reason);
        }
        if shown < half.kept.len() {
            text += &format!("\n  and {} more: --verbose lists them", half.kept.len() - shown);
        }
        parts.push(text);
    }
    if let Some(int8) = &report.int8 {
        let mut text = format!(
            "{} layers in int8; mean squared error of the output {:.2e}, and {:.2e} with all layers in int8",
            int8.quantized, int8.difference, int8.difference_of_all
        );
        if !int8.kept.is_empty() {
            text += &format!("; {} kept in float32:", int8.kept.len());
        }
        let shown = if is_verbose { int8.kept.len() } else { int8.kept.len().min(KEPT_SHOWN) };
        for kept in &int8.kept[..shown] {
            text += &format!("\n  {} ({}): {}", kept.node, kept.op, kept.reason);
        }
        if shown < int8.kept.len() {
            text += &format!("\n  and {} more: --verbose lists them", int8.kept.len() - shown);
        }
        parts.push(text);
    }
    if let Some(engine) = &report.engine {
        let bytes = bytes_text(engine.bytes as f64);
        parts.push(format!("engine of {bytes} in {:.0} s by {}", engine.seconds, engine.builder));
    }
    let files: Vec<String> = report.files.iter().map(|path| format!("wrote {}", path.display())).collect();
    parts.push(files.join("\n"));
    parts.join("\n\n")
}
