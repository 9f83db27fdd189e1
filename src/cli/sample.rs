//! Draws samples from a network.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use ndarray::ArrayD;
use serde_json::json;

use super::args::Cli;
use super::denoising::Network;
use super::diffusion_args::DiffusionArgs;
use super::open_runtime;
use super::printer::{Printer, Progress};
use crate::array::{Array, ArrayData};
use crate::diffusion::{SampleOptions, Sampler, Skip, generate, write_grid};
use crate::error::Error;
use crate::npz::to_npy;

#[derive(Args, Debug)]
pub(super) struct SampleArgs {
    /// The network.
    #[arg(value_name = "MODEL.onnx")]
    input: PathBuf,
    /// Where the samples go as one PNG image.
    #[arg(long, short, value_name = "FILE.png", required_unless_present = "save_npy")]
    output: Option<PathBuf>,
    /// Where the samples go as they are, as a NumPy array [count, channels, height, width].
    #[arg(long, value_name = "FILE.npy")]
    save_npy: Option<PathBuf>,
    /// The number of samples.
    #[arg(long, value_name = "N", default_value_t = 16)]
    count: usize,
    /// The number of evaluations of the network per sample.
    #[arg(long, value_name = "N", default_value_t = 50)]
    steps: usize,
    /// The sampler.
    #[arg(long, value_enum, default_value = "ddim")]
    sampler: Sampler,
    /// Which steps of a discrete schedule are visited.
    #[arg(long, value_enum, default_value = "uniform")]
    skip: Skip,
    /// DDIM's share of the noise that DDPM would add, from 0 to 1.
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    eta: f64,
    /// Seed of all noise.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Conditioning: arrays by the names of the network's inputs; sample i takes row i. What is not given is drawn.
    #[arg(long, value_name = "FILE.npz")]
    inputs: Option<PathBuf>,
    /// The size of a symbolic dimension; may be given again.
    #[arg(long, value_name = "NAME=N")]
    size: Vec<String>,
    #[command(flatten)]
    diffusion: DiffusionArgs,
}

pub(super) fn run(args: &SampleArgs, cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    // What would fail at the end fails at the start.
    args.output.iter().chain(&args.save_npy).try_for_each(|path| check_folder(path))?;
    let runtime = open_runtime(cli)?;
    let network = Network::open(&args.input, args.inputs.as_ref(), (&args.size, None), &args.diffusion, printer)?;
    let (roles, configured) = (&network.roles, &network.configured);
    let process = &configured.process;
    let in_file = |error: Error| error.in_file(&args.input);
    if args.count == 0 {
        return Err(Error::usage("--count: expected at least 1, found 0"));
    }
    let batch = args.diffusion.batch.or_else(|| roles.fixed_batch()).unwrap_or(args.count.min(16));
    if batch == 0 {
        return Err(Error::usage("--batch: expected at least 1, found 0"));
    }
    let (conditioning, mut denoiser) = network.start(runtime, batch, args.seed)?;
    let options = SampleOptions {
        steps: args.steps,
        sampler: args.sampler,
        eta: args.eta,
        skip: args.skip,
        variance: configured.variance,
        count: args.count,
        seed: args.seed,
    };
    network.describe(&conditioning, printer);
    let started = Instant::now();
    let mut bar: Option<Progress> = None;
    let samples = generate(&mut denoiser, process, &conditioning, &options, &mut |_, total| {
        bar.get_or_insert_with(|| printer.progress(total as u64)).step("sampling");
    })
    .map_err(in_file)?;
    drop(bar);
    let seconds = started.elapsed().as_secs_f64();
    if let Some(wrong) = samples.iter().find(|value| !value.is_finite()) {
        return Err(in_file(
            Error::unmet(format!("the samples contain {wrong}"))
                .hint("check --prediction-type, --schedule and --time-input; the time step of some networks is sigma under another name"),
        ));
    }
    if let Some(path) = &args.output {
        write_grid(path, &samples, args.diffusion.sample_range()?)?;
    }
    if let Some(path) = &args.save_npy {
        save(path, &samples)?;
    }
    let (mean, deviation) = statistics(&samples);
    let json = json!({
        "input": args.input,
        "output": args.output,
        "npy": args.save_npy,
        "roles": roles.summary(),
        "process": process.describe(),
        "conditioning_given": roles.conditioning.iter().filter(|port| conditioning.is_given(&port.name))
            .map(|port| &port.name).collect::<Vec<_>>(),
        "notes": configured.notes,
        "sampler": args.sampler,
        "skip": args.skip,
        "steps": args.steps,
        "seed": args.seed,
        "shape": samples.shape(),
        "mean": mean,
        "standard_deviation": deviation,
        "seconds": seconds,
    });
    printer.result(&json, || {
        let files: Vec<String> =
            args.output.iter().chain(&args.save_npy).map(|path| path.display().to_string()).collect();
        format!(
            "{} samples of {:?} in {seconds:.1} s (mean {mean:.3}, standard deviation {deviation:.3})\nwrote {}",
            args.count,
            &samples.shape()[1..],
            files.join(" and ")
        )
    });
    Ok(true)
}

fn check_folder(path: &Path) -> Result<(), Error> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match folder.is_dir() {
        true => Ok(()),
        false => Err(Error::io(path, format!("can't be written: there is no folder {}", folder.display()))),
    }
}

fn save(path: &Path, samples: &ArrayD<f32>) -> Result<(), Error> {
    let fail = |text: String| Error::io(path, format!("can't be written: {text}"));
    let array = Array::new(samples.shape().to_vec(), ArrayData::F32(samples.iter().copied().collect()))
        .map_err(|error| fail(error.to_string()))?;
    let bytes = to_npy(&array).map_err(|error| fail(error.to_string()))?;
    crate::write::write_file(path, &bytes)
}

fn statistics(samples: &ArrayD<f32>) -> (f64, f64) {
    let count = samples.len().max(1) as f64;
    let mean = samples.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    let variance = samples.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}
