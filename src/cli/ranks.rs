//! Several processes that work as one, started by `mpirun` or `srun`.

use std::time::Duration;

use onnx_diffprune::ranks::Collective;
use onnx_diffprune::{Device, Error};

use super::args::{Cli, Command};

/// How long a failed rank waits for the first rank to print the error: most failures happen on all ranks.
const PATIENCE: Duration = Duration::from_secs(1);

/// Refuses commands that can't be divided over several processes.
///
/// # Errors
/// Such a command was started as several processes.
pub(super) fn check(cli: &Cli, ranks: &dyn Collective) -> Result<(), Error> {
    let alone = match &cli.command {
        _ if ranks.size() == 1 => return Ok(()),
        None
        | Some(
            Command::Finetune(_) | Command::Refit(_) | Command::Loss(_) | Command::Evaluate(_) | Command::Sample(_),
        ) => return Ok(()),
        Some(Command::Apply(_)) => "apply",
        Some(Command::Verify(_)) => "verify",
        Some(Command::Inspect(_)) => "inspect",
        Some(Command::Encode(_)) => "encode",
        Some(Command::Artifacts(_)) => "artifacts",
        Some(Command::Bench(_)) => "bench",
        Some(Command::Deploy(_)) => "deploy",
        Some(Command::Runtime) => "runtime",
        Some(Command::Completions { .. }) => "completions",
        Some(Command::Man { .. }) => "man",
    };
    let text = format!("{alone} runs in one process, but {} were started", ranks.size());
    Err(Error::usage(text).hint("start it without mpirun or srun"))
}

/// Parses the value of `--device`.
pub(super) fn device(text: &str) -> Result<Device, Error> {
    text.parse().map_err(|error| Error::usage(format!("--device: {error}")))
}

/// Returns the device of this rank. `None`: the CPU.
pub(super) fn device_of_option(text: Option<&str>, ranks: &dyn Collective) -> Result<Device, Error> {
    text.map(|text| device_of_rank(text, ranks)).transpose().map(Option::unwrap_or_default)
}

/// Returns the device of this rank. If the device has no number, every rank of a machine uses another GPU.
fn device_of_rank(text: &str, ranks: &dyn Collective) -> Result<Device, Error> {
    let own = u32::try_from(ranks.local_rank()).unwrap_or(0);
    Ok(match device(text)? {
        Device::Cuda(_) if !text.contains(':') => Device::Cuda(own),
        Device::TensorRt(_) if !text.contains(':') => Device::TensorRt(own),
        other => other,
    })
}

/// Waits for the first rank, which prints the error and ends this rank if it fails as well.
pub(super) fn wait_for_first(ranks: &dyn Collective) {
    if ranks.rank() > 0 {
        std::thread::sleep(PATIENCE);
    }
}

/// Ends all ranks, as others may be waiting for this one.
pub(super) fn end(ranks: &dyn Collective, code: u8) -> u8 {
    if ranks.size() > 1 { ranks.abort(code) } else { code }
}
