//! Several processes that work as one: started by `mpirun` or `srun`.

use std::time::Duration;

use onnx_diffprune::ranks::Collective;
use onnx_diffprune::{Device, Error};

use super::args::{Cli, Command};

/// How long a rank that failed leaves the word to the first: most failures are those of all ranks.
const PATIENCE: Duration = Duration::from_secs(1);

/// Refuses commands that several processes would all do.
///
/// # Errors
/// See above.
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
    let text = format!("{alone} is the work of one process, {} were started", ranks.size());
    Err(Error::usage(text).hint("start it without mpirun or srun"))
}

/// The device of an option.
pub(super) fn device(text: &str) -> Result<Device, Error> {
    text.parse().map_err(|error| Error::usage(format!("--device: {error}")))
}

/// The device of a rank where one is given, else the CPU.
pub(super) fn device_of_option(text: Option<&str>, ranks: &dyn Collective) -> Result<Device, Error> {
    text.map(|text| device_of_rank(text, ranks)).transpose().map(Option::unwrap_or_default)
}

/// The device of a rank: of a kind without a number, every rank of a machine takes another.
fn device_of_rank(text: &str, ranks: &dyn Collective) -> Result<Device, Error> {
    let own = u32::try_from(ranks.local_rank()).unwrap_or(0);
    Ok(match device(text)? {
        Device::Cuda(_) if !text.contains(':') => Device::Cuda(own),
        Device::TensorRt(_) if !text.contains(':') => Device::TensorRt(own),
        other => other,
    })
}

/// Lets the first rank speak, if it fails as well: it then ends this one.
pub(super) fn wait_for_first(ranks: &dyn Collective) {
    if ranks.rank() > 0 {
        std::thread::sleep(PATIENCE);
    }
}

/// Ends all ranks: others may be waiting for this one.
pub(super) fn end(ranks: &dyn Collective, code: u8) -> u8 {
    if ranks.size() > 1 { ranks.abort(code) } else { code }
}
