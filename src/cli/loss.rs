//! Measures the denoising loss of a network: how much a cut costs before anything is trained.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::Cli;
use super::denoising::Network;
use super::diffusion_args::{DataArgs, DiffusionArgs};
use super::open_runtime;
use super::printer::{Printer, Progress};
use crate::diffusion::{Samples, denoising_losses, noise};
use crate::error::Error;

/// Samples that are evaluated where nothing is said.
const COUNT: usize = 256;

#[derive(Args, Debug)]
pub(super) struct LossArgs {
    /// The network, pruned or not.
    #[arg(value_name = "MODEL.onnx")]
    input: PathBuf,
    /// The number of samples.
    #[arg(long, value_name = "N", default_value_t = COUNT)]
    count: usize,
    /// The number of timesteps, spread evenly over the schedule.
    #[arg(long, value_name = "N", default_value_t = 25)]
    timesteps: usize,
    /// Seed of the choice of samples and of the noise, which is the same at every timestep.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Conditioning: arrays by the names of the network's inputs; sample i takes row i. What is not given is drawn.
    #[arg(long, value_name = "FILE.npz")]
    inputs: Option<PathBuf>,
    /// The size of a symbolic dimension; may be given again.
    #[arg(long, value_name = "NAME=N")]
    size: Vec<String>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    diffusion: DiffusionArgs,
}

pub(super) fn run(args: &LossArgs, cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    let Some(data) = &args.data.data else {
        return Err(Error::usage("no data is given")
            .hint("name clean samples, best ones that were not trained on, with --data"));
    };
    let runtime = open_runtime(cli)?;
    let network = Network::open(&args.input, args.inputs.as_ref(), (&args.size, Some(data)), &args.diffusion, printer)?;
    let (roles, process) = (&network.roles, &network.configured.process);
    let in_file = |error: Error| error.in_file(&args.input);
    let batch = args.diffusion.batch.or_else(|| roles.fixed_batch()).unwrap_or(args.count.min(32));
    if batch == 0 || args.count == 0 || !args.count.is_multiple_of(batch) {
        let text = format!("--count: expected a multiple of the batch of {batch}, found {}", args.count);
        return Err(Error::usage(text).hint("--batch sets the batch where the network does not fix it"));
    }
    let (conditioning, mut denoiser) = network.start(runtime, batch, args.seed)?;
    let ranges = args.data.ranges(&args.diffusion)?;
    let dims = denoiser.dims().to_vec();
    let samples = Samples::load(data, (&roles.sample.name, &dims), &ranges, args.count, args.seed)?;
    let noise = noise(&dims, args.count, args.seed.wrapping_add(1));
    network.describe(&conditioning, printer);
    let mut bar: Option<Progress> = None;
    let curve = denoising_losses(
        &mut denoiser,
        process,
        &conditioning,
        (&samples, &noise),
        args.timesteps,
        &mut |done, total| {
            bar.get_or_insert_with(|| printer.progress(total as u64)).at(done as u64, "denoising");
        },
    )
    .map_err(in_file)?;
    drop(bar);
    let mean = curve.iter().map(|(_, loss)| loss).sum::<f64>() / curve.len() as f64;
    let json = json!({
        "input": args.input,
        "samples": samples.source,
        "process": process.describe(),
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
            samples.source
        )
    });
    Ok(true)
}
