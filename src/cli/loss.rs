//! The command `loss`: measures the denoising loss of a network, for instance after a cut and before training.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use onnx_diffprune::networks::{LossOptions, Network};
use onnx_diffprune::ranks::Collective;
use onnx_diffprune::{Error, Model, Stage};
use serde_json::json;

use super::args::Cli;
use super::config::parse_sizes;
use super::diffusion_args::{DataArgs, DiffusionArgs};
use super::open_runtime;
use super::printer::{Printer, Watcher};
use super::surroundings::{Surroundings, network_of};

/// Default number of samples.
const COUNT: usize = 256;

#[derive(Args, Debug)]
pub(super) struct LossArgs {
    /// The network, pruned or not.
    #[arg(value_name = "MODEL.onnx")]
    input: PathBuf,
    /// Number of clean samples.
    #[arg(long, value_name = "N", default_value_t = COUNT)]
    count: usize,
    /// Number of timesteps, spread evenly over the schedule.
    #[arg(long, value_name = "N", default_value_t = 25)]
    timesteps: usize,
    /// Seed of the choice of samples and of the noise, which is the same at every timestep.
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
    data: DataArgs,
    #[command(flatten)]
    diffusion: DiffusionArgs,
}

pub(super) fn run(args: &LossArgs, cli: &Cli, ranks: &Arc<dyn Collective>, printer: &Printer) -> Result<bool, Error> {
    let Some(data) = &args.data.data else {
        return Err(Error::usage("--data is missing: the denoising loss is measured on clean samples")
            .hint("pass clean samples with --data, ideally ones that the network was not trained on"));
    };
    let runtime = open_runtime(cli)?;
    let input = network_of(&args.input)?;
    let surroundings = Surroundings::of(&args.diffusion, &input, true)?;
    surroundings.print(printer);
    let model = Model::open(&input)?;
    printer.notes(&model);
    let given = surroundings.inputs(&model, args.inputs.as_deref(), Some(&runtime))?.unwrap_or_default();
    let network_options = surroundings.diffusion.network_options(given)?;
    let network = Network::open(&model, &network_options, &parse_sizes(&args.size)?, Some(data))?.over(ranks.clone());
    network.notes().iter().for_each(|note| printer.warning(note));
    let options = LossOptions {
        data: data.clone(),
        data_range: args.data.range()?,
        count: args.count,
        timesteps: args.timesteps,
        seed: args.seed,
    };
    let mut watcher = Watcher::new(printer, |stage| (stage == Stage::Losses).then_some("measuring the denoising loss"));
    let report = network.loss(&runtime, &options, &mut |progress| watcher.see(progress))?;
    drop(watcher);
    let (curve, mean) = (&report.losses, report.mean());
    let json = json!({
        "input": args.input,
        "pipeline": surroundings.json,
        "samples": report.source,
        "process": report.process,
        "seed": args.seed,
        "mean": mean,
        "losses": curve.iter().map(|(t, loss)| json!({"t": t, "loss": loss})).collect::<Vec<_>>(),
    });
    printer.result(&json, || {
        let rows: Vec<String> = curve.iter().map(|(t, loss)| format!("  t = {t:<6} {loss:.5}")).collect();
        format!(
            "{}\nmean denoising loss {mean:.5} over {} timesteps and {}",
            rows.join("\n"),
            curve.len(),
            report.source
        )
    });
    Ok(true)
}
