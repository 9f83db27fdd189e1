//! Several processes that work as one: started by `mpirun` or `srun`.

use std::process::ExitCode;
use std::time::Duration;

use onnx_diffprune::Error;
use onnx_diffprune::ranks::Collective;

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
        None | Some(Command::Finetune(_)) => return Ok(()),
        Some(Command::Apply(_)) => "apply",
        Some(Command::Refit(_)) => "refit",
        Some(Command::Verify(_)) => "verify",
        Some(Command::Inspect(_)) => "inspect",
        Some(Command::Loss(_)) => "loss",
        Some(Command::Evaluate(_)) => "evaluate",
        Some(Command::Encode(_)) => "encode",
        Some(Command::Sample(_)) => "sample",
        Some(Command::Artifacts(_)) => "artifacts",
        Some(Command::Runtime) => "runtime",
    };
    let text = format!("{alone} is the work of one process, {} were started", ranks.size());
    Err(Error::usage(text).hint("start it without mpirun or srun"))
}

/// Lets the first rank speak, if it fails as well: it then ends this one.
pub(super) fn wait_for_first(ranks: &dyn Collective) {
    if ranks.rank() > 0 {
        std::thread::sleep(PATIENCE);
    }
}

/// Ends all ranks: others may be waiting for this one.
pub(super) fn end(ranks: &dyn Collective, code: u8) -> ExitCode {
    if ranks.size() > 1 { ranks.abort(code) } else { ExitCode::from(code) }
}
