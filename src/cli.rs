//! The command line: arguments in, files, tables and exit codes out.

mod apply;

mod args;

mod artifacts;

mod config;

mod cut_result;

mod diffusion_args;

mod gradient_args;

mod inspect;

mod loss;

mod printer;

mod progress;

mod prune;

mod runtime;

mod sample;

mod verify;

use std::process::ExitCode;

use clap::Parser;
use onnx_diffprune::{Analysis, Error, Runtime};

use args::{Cli, Command};
use printer::Printer;

/// Runs the command line tool. Exit codes: 0 done, 1 the request can't be met or verification failed, 2 wrong use or
/// broken input.
pub(super) fn run() -> ExitCode {
    outlive_file_size_limits();
    let cli = Cli::parse();
    let printer = Printer::new(cli.format, cli.quiet);
    let done = match &cli.command {
        Some(Command::Apply(args)) => apply::run(args, &cli, &printer),
        Some(Command::Verify(args)) => verify::run(args, &cli, &printer),
        Some(Command::Inspect(args)) => inspect::run(args, &printer),
        Some(Command::Loss(args)) => loss::run(args, &cli, &printer),
        Some(Command::Sample(args)) => sample::run(args, &cli, &printer),
        Some(Command::Artifacts(args)) => artifacts::run(args, &printer),
        Some(Command::Runtime) => runtime::run(&cli, &printer),
        None => prune::run(&cli.prune, &cli, &printer),
    };
    match done {
        Ok(passed) => ExitCode::from(if passed { 0 } else { 1 }),
        Err(error) => {
            printer.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Lets a write beyond `ulimit -f` fail with an error that can be reported, where the signal would end the process
/// and leave a part of the output behind.
fn outlive_file_size_limits() {
    // SAFETY: ignoring a signal installs no handler, so no code can run at a bad moment.
    #[cfg(unix)]
    #[allow(unsafe_code)]
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Opens ONNX Runtime where weights are computed ahead of time, or where it is open already.
fn open_runtime_to_fold(analysis: &Analysis, opened: Option<Runtime>, cli: &Cli) -> Result<Option<Runtime>, Error> {
    if opened.is_some() || !analysis.computes_weights() { Ok(opened) } else { open_runtime(cli).map(Some) }
}

/// Opens ONNX Runtime as the options say.
fn open_runtime(cli: &Cli) -> Result<Runtime, Error> {
    Runtime::open(cli.onnxruntime.as_deref())
}
