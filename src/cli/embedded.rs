//! The command line for programs in another language. Commands are called with arguments and return as JSON what they
//! would print. The arguments of `prune` are converted into the options of the library.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::rc::Rc;

use clap::{ArgAction, CommandFactory, Parser};
use onnx_diffprune::data::Array;
use onnx_diffprune::networks::{Network, NetworkOptions};
use onnx_diffprune::reports::{GradientReport, RefitReport};
use onnx_diffprune::{
    Analysis, CutOptions, Error, ErrorKind, Model, Progress, Ratio, RefitSettings, Runtime, ScoreOptions, Sizes,
    VerifyOptions,
};
use serde_json::{Value, json};

use super::args::{Cli, PruneArgs};
use super::config::parse_sizes;
use super::printer::Printer;
use super::surroundings::Surroundings;
use super::{command, gradient_args, invocation, refit_args, usage};

/// Arrays with the names of a network's inputs.
pub(crate) type Inputs = Vec<(String, Array)>;

/// Runs as the main program of a process does, and returns its exit code.
pub(crate) fn program(arguments: Vec<OsString>) -> u8 {
    super::run(arguments)
}

/// The result of a command: the JSON that `--format json` prints.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) report: Value,
    /// Whether the checks of the command passed; if not, the exit code is 1.
    pub(crate) passed: bool,
}

/// The error of a command, with the JSON that it would have printed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Box<Error>,
    pub(crate) report: Option<Value>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error: Box::new(error), report: None }
    }
}

/// Runs a command. Nothing is printed and no signal is handled. `listener` receives all messages and progress, is called
/// once more before outputs are moved to their final paths, and stops the command by returning `Break`.
///
/// # Errors
/// The error of the command; arguments that it does not accept.
pub(crate) fn call(
    arguments: Vec<OsString>,
    listener: impl FnMut(Option<Progress<'_>>) -> ControlFlow<()> + 'static,
) -> Result<Outcome, Failure> {
    invocation::begin(&arguments);
    let cli = Cli::try_parse_from(arguments).map_err(|error| usage(&error))?;
    if !cli.provider_options.is_empty() {
        Runtime::set_provider_options(cli.provider_options.clone());
    }
    let printer = Printer::for_listener(Rc::new(RefCell::new(listener)));
    let ranks = onnx_diffprune::ranks::open()?;
    let done = super::ranks::check(&cli, &*ranks).and_then(|()| command(&cli, &ranks, &printer));
    let report = printer.held().pop().map(|(report, _)| report);
    match done {
        Ok(passed) => Ok(Outcome { report: report.unwrap_or_default(), passed }),
        Err(error) => Err(Failure { error: Box::new(error), report }),
    }
}

/// Returns the arguments of every command, to generate typed bindings from: `{name: {about, arguments: [...]}}`. The main
/// command, which has no name, is called `prune`.
pub(crate) fn commands() -> Value {
    let mut main = Cli::command();
    main.build();
    let globals: BTreeSet<String> =
        main.get_arguments().filter(|argument| argument.is_global_set()).map(|arg| arg.get_id().to_string()).collect();
    let all = std::iter::once(("prune".to_owned(), &main))
        .chain(main.get_subcommands().map(|command| (command.get_name().to_owned(), command)));
    let of = |(name, command): (String, &clap::Command)| {
        let text = |text: Option<&clap::builder::StyledStr>| text.map(ToString::to_string);
        let argument = |argument: &clap::Arg| {
            let choices: Vec<Value> = argument
                .get_possible_values()
                .iter()
                .map(|choice| json!({"name": choice.get_name(), "help": text(choice.get_help())}))
                .collect();
            let takes_value = argument.get_action().takes_values();
            json!({
                "name": argument.get_id().as_str(),
                "option": argument.get_long(),
                "value": argument.get_value_names().and_then(|names| names.first()).map(|name| name.as_str()),
                "takes_value": takes_value,
                "repeats": matches!(argument.get_action(), ArgAction::Append),
                "is_required": argument.is_required_set(),
                "is_global": globals.contains(argument.get_id().as_str()),
                "defaults": argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect::<Vec<_>>(),
                "choices": if takes_value { choices } else { Vec::new() },
                "heading": argument.get_help_heading(),
                "help": text(argument.get_long_help().or(argument.get_help())),
            })
        };
        let shown = command.get_arguments().filter(|argument| {
            !matches!(
                argument.get_action(),
                ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
            )
        });
        let arguments: Vec<Value> = shown.map(argument).collect();
        (name, json!({"about": text(command.get_about()), "arguments": arguments}))
    };
    // These print files in other formats, not JSON.
    let printing = ["help", "completions", "man"];
    Value::Object(all.filter(|(name, _)| !printing.contains(&name.as_str())).map(of).collect())
}

/// Parses the options of the main command, and completes them from its configuration file. `options` are those that
/// begin with dashes.
fn prune_args(options: Vec<OsString>) -> Result<PruneArgs, Error> {
    let arguments = std::iter::once(OsString::from("onnx-diffprune")).chain(options);
    let cli = Cli::try_parse_from(arguments).map_err(|error| usage(&error))?;
    cli.prune.with_config()
}

/// Completes the arguments from the pipeline of the model, and returns them with the arrays for the inputs of the
/// network.
fn around(
    args: PruneArgs,
    model: &Model,
    given: Option<Inputs>,
    runtime: Option<&Runtime>,
    denoises: bool,
) -> Result<(PruneArgs, Option<Inputs>), Error> {
    let surroundings = Surroundings::of(&args.diffusion, model.path(), denoises)?;
    let from_file = surroundings.inputs(model, args.inputs.as_deref(), runtime)?;
    let inputs = match (given, from_file) {
        (Some(mut given), Some(others)) => {
            given.extend(
                others.into_iter().filter(|(name, _)| given.iter().all(|(own, _)| own != name)).collect::<Vec<_>>(),
            );
            Some(given)
        }
        (given, others) => given.or(others),
    };
    Ok((PruneArgs { diffusion: surroundings.diffusion, ..args }, inputs))
}

/// Returns the settings of `Analysis::score` for options of the main command.
///
/// # Errors
/// Invalid options; files that can't be read.
pub(crate) fn score_options(
    options: Vec<OsString>,
    analysis: &Analysis,
    inputs: Option<Inputs>,
    runtime: Option<&Runtime>,
) -> Result<ScoreOptions, Error> {
    let args = prune_args(options)?;
    let score = args.score_options()?;
    let denoises = score.criterion.needs_gradients();
    let (args, inputs) = around(args, &analysis.model(), inputs, runtime, denoises)?;
    // The cut by which an adaptive run decides whether the selection still changes.
    let cut = if args.gradients.adaptive { args.cut_options()? } else { CutOptions::new(Ratio(0.0)) };
    let ranks = onnx_diffprune::ranks::open()?;
    let mut score = gradient_args::score_options(score, &args, (&cut, false), inputs.as_deref(), &ranks)?;
    score.sizes = analysis.usual_sizes(&score.gradients.network, &score.sizes, args.data.data.as_deref())?;
    Ok(score)
}

/// Returns the settings of `Scores::cut` for options of the main command.
///
/// # Errors
/// Invalid options.
pub(crate) fn cut_options(options: Vec<OsString>) -> Result<CutOptions, Error> {
    prune_args(options)?.cut_options()
}

/// Returns the settings of a verification for options of the main command.
///
/// # Errors
/// Invalid options; files that can't be read.
pub(crate) fn verify_options(
    options: Vec<OsString>,
    analysis: &Analysis,
    inputs: Option<Inputs>,
    runtime: &Runtime,
) -> Result<VerifyOptions, Error> {
    let args = prune_args(options)?;
    let mut score = args.score_options()?;
    let (args, inputs) = around(args, &analysis.model(), inputs, Some(runtime), false)?;
    let network = args.diffusion.network_options(inputs.clone().unwrap_or_default())?;
    score.sizes = analysis.usual_sizes(&network, &score.sizes, args.data.data.as_deref())?;
    Ok(args.verify_options(&score, inputs.as_deref()))
}

/// Returns the samples and the settings of `Staged::refit` for options of the main command.
///
/// # Errors
/// As [`score_options`].
pub(crate) fn refit_options(
    options: Vec<OsString>,
    analysis: &Analysis,
    inputs: Option<Inputs>,
    runtime: &Runtime,
) -> Result<(ScoreOptions, RefitSettings), Error> {
    let settings = prune_args(options.clone())?;
    let score = score_options(options, analysis, inputs, Some(runtime))?;
    let settings = settings.refitting.settings(&score.gradients, false)?;
    Ok((score, settings))
}

/// Opens a denoising network with options of the main command.
///
/// # Errors
/// The network does not denoise, or the options do not fit it; files that can't be read.
pub(crate) fn network(
    options: Vec<OsString>,
    model: &Model,
    inputs: Option<Inputs>,
    runtime: Option<&Runtime>,
) -> Result<Network, Error> {
    let args = prune_args(options)?;
    let sizes: Sizes = parse_sizes(&args.size)?;
    let (args, inputs) = around(args, model, inputs, runtime, true)?;
    let options: NetworkOptions = args.diffusion.network_options(inputs.unwrap_or_default())?;
    Network::open(model, &options, &sizes, args.data.data.as_deref())
}

/// Returns the report of the gradients as the commands print it.
pub(crate) fn gradients_json(report: &GradientReport) -> Value {
    gradient_args::json(report)
}

/// Returns the report of a refit as the commands print it.
pub(crate) fn refit_json(report: &RefitReport) -> Value {
    refit_args::json(report)
}

/// Whether this is the error of a call that its listener stopped.
pub(crate) fn is_cancelled(error: &Error) -> bool {
    error.kind() == ErrorKind::Cancelled
}
