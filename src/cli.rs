//! The command line: converts arguments into files, tables and exit codes.

mod apply;

mod args;

mod artifacts;

mod bench;

mod config;

mod cut_result;

mod decoder;
mod deploy;

mod destination;

mod diffusion_args;

#[cfg(feature = "python")]
pub(crate) mod embedded;

mod encode;

mod ending;

mod evaluate;

mod evaluate_result;

mod features_args;
mod finetune;

mod finetune_args;

mod folder;

mod gradient_args;

mod inspect;

mod invocation;

mod junit;

mod loss;

mod manual;

mod printer;

mod progress;

mod prune;

mod ranks;

mod rounds;

mod refit;

mod refit_args;

mod report_page;

mod run_files;

mod runtime;

mod sample;

mod signals;

mod surroundings;

mod verify;

use std::ffi::OsString;
use std::sync::Arc;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use onnx_diffprune::ranks::Collective;
use onnx_diffprune::{Analysis, Error, Runtime};

use args::{Cli, Command, Format};
use printer::Printer;

/// Runs the command line tool with these arguments; the first is the name of the program. Returns the exit code: 0
/// success, 1 the request can't be met or verification failed, 2 wrong use or invalid input.
pub(super) fn run(arguments: Vec<OsString>) -> u8 {
    outlive_file_size_limits();
    signals::watch();
    invocation::begin(&arguments);
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse_arguments(&error),
    };
    let printer = Printer::new(cli.format, cli.quiet).listing_all(cli.verbose);
    Runtime::set_provider_options(cli.provider_options.clone());
    // MPI must be initialised before ONNX Runtime is loaded.
    let ranks = match onnx_diffprune::ranks::open() {
        Ok(ranks) => ranks,
        Err(error) => {
            printer.error(&error);
            return error.exit_code();
        }
    };
    let printer = printer.of_rank(ranks.rank());
    let checked = junit::check(&cli).and_then(|()| ranks::check(&cli, &*ranks));
    let done = checked.and_then(|()| command(&cli, &ranks, &printer));
    signals::settle();
    match done {
        Ok(passed) => u8::from(!passed),
        Err(error) => {
            ranks::wait_for_first(&*ranks);
            printer.error(&error);
            ranks::end(&*ranks, error.exit_code())
        }
    }
}

/// Runs the command. Returns whether its checks passed.
fn command(cli: &Cli, ranks: &Arc<dyn Collective>, printer: &Printer) -> Result<bool, Error> {
    match &cli.command {
        Some(Command::Apply(args)) => apply::run(args, cli, printer),
        Some(Command::Refit(args)) => refit::run(args, cli, ranks, printer),
        Some(Command::Finetune(args)) => finetune::run(args, cli, ranks, printer),
        Some(Command::Verify(args)) => verify::run(args, cli, printer),
        Some(Command::Inspect(args)) => inspect::run(args, printer),
        Some(Command::Loss(args)) => loss::run(args, cli, ranks, printer),
        Some(Command::Evaluate(args)) => evaluate::run(args, cli, ranks, printer),
        Some(Command::Sample(args)) => sample::run(args, cli, ranks, printer),
        Some(Command::Encode(args)) => encode::run(args, cli, printer),
        Some(Command::Artifacts(args)) => artifacts::run(args, cli, printer),
        Some(Command::Deploy(args)) => deploy::run(args, cli, printer),
        Some(Command::Bench(args)) => bench::run(args, cli, printer),
        Some(Command::Runtime) => runtime::run(cli, printer),
        Some(Command::Completions { shell }) => manual::completions(*shell, printer),
        Some(Command::Man { command }) => manual::page(command.as_deref(), printer),
        None => prune::run(&cli.prune, cli, ranks, printer),
    }
}

/// Prints what is wrong with the arguments, or the help if they ask for it.
fn refuse_arguments(error: &clap::Error) -> u8 {
    let arguments = invocation::arguments();
    let asks = |format: &str| {
        arguments.iter().any(|argument| argument.strip_prefix("--format=") == Some(format))
            || arguments.windows(2).any(|pair| pair[0] == "--format" && pair[1] == format)
    };
    let asked = [Format::Json, Format::Junit].into_iter().zip(["json", "junit"]).find(|(_, name)| asks(name));
    if let Some((format, _)) = asked.filter(|_| error.use_stderr()) {
        Printer::new(format, false).error(&usage(error));
    } else if let Some(clearer) = clearer(error) {
        Printer::new(Format::Text, false).error(&clearer);
    } else {
        // A closed pipe is not an error.
        let _ = error.print();
    }
    if error.use_stderr() { 2 } else { 0 }
}

/// Returns a clearer error for arguments that the parser takes for something else. `None`: its error is clear.
fn clearer(error: &clap::Error) -> Option<Error> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    match error.kind() {
        // An argument after OUT.onnx is taken for the name of a command.
        ErrorKind::ArgumentConflict => text(ContextKind::InvalidSubcommand).map(|argument| {
            Error::usage(format!("unexpected argument {argument:?} after IN.onnx and OUT.onnx")).hint(
                "to prune, give IN.onnx and OUT.onnx without the name of a command; other commands come before their \
                 arguments: --help lists them",
            )
        }),
        ErrorKind::UnknownArgument => {
            let argument = text(ContextKind::InvalidArg).filter(|argument| argument.parse::<f64>().is_ok())?;
            let hint = format!("write a negative value with an equals sign, as in --option={argument}");
            Some(Error::usage(format!("unexpected argument {argument:?}")).hint(hint))
        }
        _ => None,
    }
}

/// Converts an error of the argument parser into one of the library.
fn usage(error: &clap::Error) -> Error {
    if let Some(error) = clearer(error) {
        return error;
    }
    let text = error.to_string();
    let text = text.trim_start_matches("error: ").lines().take_while(|line| !line.is_empty());
    Error::usage(text.map(str::trim).collect::<Vec<_>>().join(" ")).hint("--help lists all options")
}

/// Ignores SIGXFSZ, so that a write beyond `ulimit -f` fails with an error that can be reported. Otherwise the signal
/// would end the process and leave a partial output behind.
fn outlive_file_size_limits() {
    // SAFETY: a signal that is ignored runs no handler.
    #[cfg(unix)]
    #[allow(unsafe_code)]
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Opens ONNX Runtime if the model computes weights that must be folded, unless it is open already.
fn open_runtime_to_fold(analysis: &Analysis, opened: Option<Runtime>, cli: &Cli) -> Result<Option<Runtime>, Error> {
    if opened.is_some() || !analysis.computes_weights() { Ok(opened) } else { open_runtime(cli).map(Some) }
}

/// Opens the ONNX Runtime library that the options select.
fn open_runtime(cli: &Cli) -> Result<Runtime, Error> {
    Runtime::open(cli.onnxruntime.as_deref())
}
