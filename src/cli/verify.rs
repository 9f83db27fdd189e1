//! The command `verify`: verifies a pruned network against its original, or all pruned components of a pipeline.

use std::collections::BTreeMap;
use std::path::PathBuf;

use onnx_diffprune::pipelines::Pipeline;
use onnx_diffprune::plans::plan_path;
use onnx_diffprune::{Analysis, Error, Model, Plan, Runtime, Sizes, VerifyOptions, VerifyReport};
use serde_json::json;

use super::args::{Cli, VerifyArgs};
use super::config::parse_sizes;
use super::cut_result::verification_text;
use super::diffusion_args::DiffusionArgs;
use super::folder::check_sizes;
use super::junit::{self, Check};
use super::open_runtime;
use super::printer::{Printer, table};
use super::surroundings::{Surroundings, network_of};

/// A network and its pruned version.
struct Pair {
    /// The component of a pipeline. `None`: a single network.
    component: Option<String>,
    original: PathBuf,
    pruned: PathBuf,
}

pub(super) fn run(args: &VerifyArgs, cli: &Cli, printer: &Printer) -> Result<bool, Error> {
    let runtime = open_runtime(cli)?;
    let pairs = pairs(args)?;
    let components = pairs.iter().filter_map(|pair| Some((pair.component.as_deref()?, pair.original.as_path())));
    if pairs.iter().any(|pair| pair.component.is_some()) {
        check_sizes(&parse_sizes(&args.size)?, components)?;
    }
    let mut reports = Vec::new();
    for pair in &pairs {
        reports.push(verified(args, pair, runtime, printer)?);
    }
    let passed = reports.iter().all(|report| report.passed);
    if printer.is_junit() {
        let of = |(pair, report): (&Pair, &VerifyReport)| {
            let class = pair.component.clone().unwrap_or_else(|| pair.pruned.display().to_string());
            junit::of_verification(&class, report, &text(report, printer))
        };
        let checks: Vec<Check> = pairs.iter().zip(&reports).flat_map(of).collect();
        printer.checks(&checks);
        return Ok(passed);
    }
    match reports.as_slice() {
        [report] => printer.result(report, || text(report, printer)),
        _ => {
            let names = || pairs.iter().filter_map(|pair| pair.component.as_deref());
            let components: BTreeMap<&str, &VerifyReport> = names().zip(&reports).collect();
            printer.result(&json!({ "passed": passed, "components": components }), || {
                let of = |(name, report)| format!("{name}:\n{}", text(report, printer));
                names().zip(&reports).map(of).collect::<Vec<_>>().join("\n\n")
            });
        }
    }
    Ok(passed)
}

/// Returns the networks to verify: the two files or, for two pipelines, every component with a plan beside it. If no
/// component has one, the denoiser.
fn pairs(args: &VerifyArgs) -> Result<Vec<Pair>, Error> {
    if args.plan.is_none() && [&args.input, &args.output].into_iter().all(|path| Pipeline::is_meant(path)) {
        let (original, pruned) = (Pipeline::open(&args.input)?, Pipeline::open(&args.output)?);
        let cut = pruned.components.iter().filter(|component| plan_path(&component.model).is_file());
        let pair = |component: &onnx_diffprune::pipelines::Component| {
            let original = original.component(&component.name)?.model.clone();
            Ok(Pair { component: Some(component.name.clone()), original, pruned: component.model.clone() })
        };
        let pairs: Vec<Pair> = cut.map(pair).collect::<Result<_, Error>>()?;
        if !pairs.is_empty() {
            return Ok(pairs);
        }
    }
    let (original, pruned) = (network_of(&args.input)?, network_of(&args.output)?);
    Ok(vec![Pair { component: None, original, pruned }])
}

/// Returns those of the given sizes that belong to this component.
fn sizes_of_component(pair: &Pair, analysis: &Analysis, given: Sizes) -> Result<Sizes, Error> {
    if pair.component.is_none() || given.is_empty() {
        return Ok(given);
    }
    let known = analysis.sizes(&Sizes::new())?;
    Ok(given.into_iter().filter(|(name, _)| known.contains_key(name)).collect())
}

fn verified(args: &VerifyArgs, pair: &Pair, runtime: Runtime, printer: &Printer) -> Result<VerifyReport, Error> {
    let path = args.plan.clone().unwrap_or_else(|| plan_path(&pair.pruned));
    let progress = printer.progress(3);
    progress.step("reading");
    let model = Model::open(&pair.original)?;
    let pruned = Model::open(&pair.pruned)?;
    let plan = Plan::read(&path).map_err(|error| {
        if args.plan.is_none() { error.hint("pass the plan of the cut with --plan") } else { error }
    })?;
    model.check_plan(&plan, &path)?;
    progress.pause(|| printer.notes(&model));
    progress.step("analysing the graph");
    let analysis = model.analyse()?;
    let inputs = args.inputs.as_deref().map(|path| model.read_inputs(path)).transpose()?;
    let surroundings = Surroundings::of(&DiffusionArgs::default(), &pair.original, false)?;
    let network = surroundings.diffusion.network_options(inputs.clone().unwrap_or_default())?;
    let sizes = sizes_of_component(pair, &analysis, parse_sizes(&args.size)?)?;
    let sizes = analysis.usual_sizes(&network, &sizes, None)?;
    let options = VerifyOptions { rtol: args.rtol, atol: args.atol, seed: args.seed, inputs, sizes };
    progress.step("verifying");
    analysis.verify(&pruned, (&plan, &path), &runtime, &options, &mut |progress| printer.pass(progress))
}

/// Describes the errors of all outputs and what was compared.
fn text(report: &VerifyReport, printer: &Printer) -> String {
    let mut rows = Vec::new();
    for (number, run) in report.runs.iter().enumerate() {
        for output in &run.outputs {
            rows.push(vec![
                format!("run {} {}", number + 1, output.output),
                format!("{:.2e}", output.absolute),
                format!("{:.2e}", output.relative),
                match (output.passed, output.moved_by_rounding) {
                    (true, None) => "ok",
                    (true, Some(_)) => "inconclusive",
                    (false, _) => "WRONG",
                }
                .to_owned(),
            ]);
        }
    }
    let errors = table(&["output", "worst absolute error", "relative", "result"], &rows);
    let verification = verification_text(report, printer.is_verbose());
    if rows.is_empty() { verification } else { format!("{errors}\n\n{verification}") }
}
