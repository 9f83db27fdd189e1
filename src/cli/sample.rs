//! The command `sample`: generates samples with a network.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use ndarray::ArrayD;
use onnx_diffprune::networks::{Network, SampleOptions, Sampler, Skip};
use onnx_diffprune::ranks::Collective;
use onnx_diffprune::{Error, Model, Stage};
use serde_json::json;

use super::args::Cli;
use super::config::parse_sizes;
use super::diffusion_args::DiffusionArgs;
use super::printer::{Printer, Watcher};
use super::surroundings::{Surroundings, network_of};
use super::{open_runtime, run_files};

#[derive(Args, Debug)]
pub(super) struct SampleArgs {
    /// The network.
    #[arg(value_name = "MODEL.onnx")]
    input: PathBuf,
    /// Path for the samples as one PNG image; required unless --save-npy is given.
    #[arg(long, short, value_name = "FILE.png", required_unless_present = "save_npy")]
    output: Option<PathBuf>,
    /// Path for the sample values as a NumPy array [count, channels, height, width].
    #[arg(long, value_name = "FILE.npy")]
    save_npy: Option<PathBuf>,
    /// Number of samples.
    #[arg(long, value_name = "N", default_value_t = 16)]
    count: usize,
    /// Number of network evaluations per sample [default: 50; dpm++2m: 20].
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// The sampler.
    #[arg(long, value_enum, default_value = "ddim")]
    sampler: Sampler,
    /// Which timesteps of a discrete schedule the sampler uses.
    #[arg(long, value_enum, default_value = "uniform")]
    skip: Skip,
    /// Stochasticity of DDIM, from 0 (deterministic) to 1 (as much noise as DDPM adds).
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    eta: f64,
    /// Seed of all noise.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Conditioning: arrays with the names of the network's inputs; sample i uses row i. Inputs that are not given are
    /// random.
    #[arg(long, value_name = "FILE.npz")]
    inputs: Option<PathBuf>,
    /// The size of a symbolic dimension. Can be given several times.
    #[arg(long, value_name = "NAME=N")]
    size: Vec<String>,
    #[command(flatten)]
    diffusion: DiffusionArgs,
}

pub(super) fn run(args: &SampleArgs, cli: &Cli, ranks: &Arc<dyn Collective>, printer: &Printer) -> Result<bool, Error> {
    let input = network_of(&args.input)?;
    let surroundings = Surroundings::of(&args.diffusion, &input, true)?;
    let diffusion = &surroundings.diffusion;
    let model = Model::open(&input)?;
    // Conflicts between files are reported before anything is computed.
    let mut files = run_files::of_run(cli);
    run_files::reads_model(&mut files, "MODEL.onnx", &model);
    let (inputs, scheduler) = (args.inputs.as_deref(), diffusion.scheduler_config.as_deref());
    run_files::reads_given(
        &mut files,
        &[("--inputs", inputs), ("--scheduler-config", scheduler), ("--prompts", diffusion.prompts.as_deref())],
    );
    for (what, path) in [("--output", &args.output), ("--save-npy", &args.save_npy)] {
        if let Some(path) = path {
            files.add_output(what, path);
        }
    }
    files.check()?;
    let runtime = open_runtime(cli)?;
    surroundings.print(printer);
    printer.notes(&model);
    let given = surroundings.inputs(&model, args.inputs.as_deref(), Some(&runtime))?.unwrap_or_default();
    let network_options = diffusion.network_options(given)?;
    let network = Network::open(&model, &network_options, &parse_sizes(&args.size)?, None)?.over(ranks.clone());
    network.notes().iter().for_each(|note| printer.warning(note));
    if args.output.is_some() {
        network.check_png(args.count)?;
    }
    let steps = args.steps.unwrap_or(args.sampler.default_steps());
    let options = SampleOptions {
        steps,
        sampler: args.sampler,
        eta: args.eta,
        skip: args.skip,
        count: args.count,
        seed: args.seed,
        ..SampleOptions::default()
    };
    let mut watcher = Watcher::new(printer, |stage| (stage == Stage::Sampling).then_some("generating samples"));
    let drawn = network.sample(&runtime, &options, &mut |progress| watcher.see(progress))?;
    drop(watcher);
    if ranks.rank() > 0 {
        return Ok(true);
    }
    printer.go_on()?;
    drawn.save(args.output.as_deref(), args.save_npy.as_deref())?;
    let (samples, seconds) = (&drawn.values, drawn.seconds);
    let (mean, deviation) = statistics(samples);
    let json = json!({
        "input": args.input,
        "pipeline": surroundings.json,
        "output": args.output,
        "npy": args.save_npy,
        "roles": drawn.roles,
        "process": drawn.process,
        "conditioning_given": drawn.conditioning_given,
        "notes": network.notes(),
        "sampler": args.sampler,
        "skip": args.skip,
        "steps": steps,
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

/// Returns mean and standard deviation.
fn statistics(samples: &ArrayD<f32>) -> (f64, f64) {
    let count = samples.len().max(1) as f64;
    let mean = samples.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    let variance = samples.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}
