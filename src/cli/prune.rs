//! The main command: prunes, writes, verifies and measures.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use onnx_diffprune::data::Array;
use onnx_diffprune::options::Scope;
use onnx_diffprune::pipelines::{Part, Pipeline};
use onnx_diffprune::plans::plan_path;
use onnx_diffprune::ranks::{Collective, from_first};
use onnx_diffprune::{
    Analysis, CriterionOption, CutOptions, Error, Model, RefitSettings, Runtime, ScoreOptions, Scores, Sizes,
    VerifyOptions,
};
use serde_json::json;

use super::args::{Cli, PruneArgs};
use super::cut_result::Shown;
use super::ending::{Before, Ending};
use super::gradient_args::{self, checkpoint_path, refit_checkpoint_path, text_of};
use super::printer::{Printer, Watcher, percent};
use super::report_page::{PageParts, sources, write_report};
use super::surroundings::Surroundings;
use super::{folder, open_runtime, open_runtime_to_fold, rounds, run_files};

/// Runs the main command. With several ranks, all of them compute gradients, and the first one does everything else.
pub(super) fn run(given: &PruneArgs, cli: &Cli, ranks: &Arc<dyn Collective>, printer: &Printer) -> Result<bool, Error> {
    let args = given.with_config()?;
    let is_first = ranks.rank() == 0;
    if args.print_config {
        if is_first {
            printer.raw(&args.to_config()?);
        }
        return Ok(true);
    }
    let config = given.config.as_deref();
    if args.input.as_deref().is_some_and(Pipeline::is_meant) {
        return folder::run(&args, config, cli, ranks, printer);
    }
    if !args.components.is_empty() || !args.component_ratio.is_empty() {
        let text = "--components and --component-ratio: expected the folder of a pipeline as the input, found a single \
                    network";
        return Err(Error::usage(text).hint("use --ratio for a single network"));
    }
    job(&args, config, cli, ranks, printer)
}

/// Prunes one network.
pub(super) fn job(
    args: &PruneArgs,
    config: Option<&Path>,
    cli: &Cli,
    ranks: &Arc<dyn Collective>,
    printer: &Printer,
) -> Result<bool, Error> {
    let is_first = ranks.rank() == 0;
    let (cut, mut score) = (args.cut_options()?, args.score_options()?);
    let surroundings = match args.input.as_deref() {
        Some(input) => {
            // A report shows samples, so it needs the scheduler.
            let denoises = score.criterion.needs_gradients() || args.refits(score.criterion) || args.report.is_some();
            Surroundings::of(&args.diffusion, input, denoises)?
        }
        None => Surroundings::none(&args.diffusion),
    };
    surroundings.print(printer);
    let args = &PruneArgs { diffusion: surroundings.diffusion.clone(), ..args.clone() };
    if args.rounds.is_some() || args.finetune_steps.is_some() {
        return rounds::run(args, (&cut, score, config), &surroundings, cli, ranks, printer);
    }
    let refits = args.refits(score.criterion);
    if !score.criterion.needs_gradients() && !refits && ranks.size() > 1 {
        printer.warning(
            "this criterion computes no gradients that several ranks could share: all ranks but the first are idle",
        );
        if !is_first {
            return Ok(true);
        }
    }
    score.compares_groups &= is_first;
    let input = args.input.as_deref().ok_or_else(|| {
        Error::usage("no input is given")
            .hint("usage: onnx-diffprune IN.onnx OUT.onnx --ratio 0.5; --help lists all options")
    })?;
    let output = args.output.as_deref();
    if output.is_none() && !args.dry_run {
        return Err(Error::usage("no output is given").hint("give a path for the pruned network, or pass --dry-run"));
    }
    let progress = printer.progress(2);
    progress.step("reading");
    let model = Model::open(input)?;
    let model = if args.placed.is_some() { model.keeping_data_name() } else { model };
    // Conflicts between files are reported before anything is computed.
    if is_first {
        check_files(args, config, &model, cli, (score.criterion.needs_gradients(), refits))?;
    }
    if args.gradients.resume && !score.criterion.needs_gradients() && !refits {
        printer.warning("--resume has no effect: this criterion computes no gradients, and there is no refit");
    }
    let measures = score.criterion.needs_gradients() || cut.scope == Scope::Global && args.data.data.is_some();
    let has_prompts = args.diffusion.prompts.is_some();
    let needs_runtime = measures || refits || has_prompts || !(args.dry_run || args.no_verify);
    let runtime = if needs_runtime { Some(open_runtime(cli)?) } else { None };
    let given = surroundings.inputs(&model, args.inputs.as_deref(), runtime.as_ref())?;
    progress.step("coupling channels");
    let analysis = model.analyse()?;
    analysis.check_inputs(given.as_deref().unwrap_or_default())?;
    drop(progress);
    let mut score = gradient_args::score_options(score, args, (&cut, refits), given.as_deref(), ranks)?;
    if args.is_component {
        let known = analysis.sizes(&Sizes::new())?;
        score.sizes.retain(|name, _| known.contains_key(name));
    }
    score.sizes = analysis.usual_sizes(&score.gradients.network, &score.sizes, args.data.data.as_deref())?;
    let base = args.base().filter(|_| output.is_some());
    let refit = base.filter(|_| refits).map(|base| args.refit_settings(&score, base)).transpose()?;
    let options = args.verify_options(&score, given.as_deref());
    if is_first && runtime.is_some() && output.is_some() && !args.dry_run && !args.no_verify {
        analysis.check_memory(&options)?;
    }
    let mut watcher = Watcher::new(printer, text_of);
    let to_score = open_runtime_to_fold(&analysis, runtime, cli)?;
    if !is_first && !score.criterion.needs_gradients() {
        return follow(&analysis, to_score.as_ref(), output, (&score, refit.as_ref()));
    }
    let scores = analysis.score_with(&score, to_score.as_ref(), &mut |progress| watcher.see(progress))?;
    watcher.rest();
    if !is_first {
        return follow(&analysis, to_score.as_ref(), output, (&score, refit.as_ref()));
    }
    let gradients = scores.gradients();
    let progress = printer.progress(2);
    progress.step("selecting");
    let aligned = args.align.as_deref().map(|align| alignment(&scores, &cut, align)).transpose()?;
    let mut cut = scores.cut(cut)?;
    if let Some(text) = &aligned {
        progress.pause(|| printer.note(text));
    }
    progress.pause(|| cut.warnings().iter().for_each(|warning| printer.warning(warning)));
    let Some(output) = output.filter(|_| !args.dry_run) else {
        drop(progress);
        let sources = sources(&args.diffusion, &surroundings.json, &args.data, score.seed);
        let page =
            PageParts { sources, undrawn: Some("a dry run writes no network".to_owned()), ..PageParts::default() };
        let shown = Shown { gradients, around: &surroundings.json, page: Some(&page), ..Shown::new(&cut) };
        if let Some(path) = &args.report {
            write_report(path, &shown)?;
        }
        printer.result(&shown.summary(), || shown.text());
        return Ok(true);
    };
    progress.step("writing");
    if score.criterion.needs_gradients() || refits {
        cut.record("run", recorded(args)?);
    }
    if refits {
        from_first(&**ranks, Some(cut.plan()))?;
    }
    let plan = args.plan.clone().unwrap_or_else(|| plan_path(output));
    let staged = cut.stage(output)?.with_plan(Some(plan.clone()));
    let shown_output = args.shown_output().unwrap_or(output);
    let shown_plan = args.plan.clone().unwrap_or_else(|| plan_path(shown_output));
    let ending = Ending {
        printer,
        output: shown_output,
        plan: Some(&shown_plan),
        around: &surroundings.json,
        report: args.report.as_deref(),
        runtime: runtime.as_ref(),
        verify: (!args.no_verify).then_some(&options),
        measures_latency: !args.no_latency,
        refit: refit.as_ref().map(|settings| (&score, settings)),
        gradients,
        before: Before::default(),
        checkpoint: base.filter(|_| refits).map(checkpoint_path),
        advice: "use --no-refit to write the cut without a refit",
        sources: sources(&args.diffusion, &surroundings.json, &args.data, score.seed),
        draws: draws(args, &score, &surroundings.json),
    };
    drop(progress);
    ending.run(staged)
}

/// Returns how original and cut generate samples for the report of a cut without refit: by the process of the
/// criterion, or the given one. An error says why they do not.
pub(super) fn draws<'s>(
    args: &PruneArgs,
    score: &'s ScoreOptions,
    around: &serde_json::Value,
) -> Result<&'s ScoreOptions, &'static str> {
    if around["component"].as_str().is_some_and(|component| Part::of(component) != Part::Denoiser) {
        return Err("this component does not denoise");
    }
    match score.criterion.needs_gradients() || args.diffusion.schedule_option().is_some() {
        true => Ok(score),
        false => Err("no noise schedule is given or found (give --scheduler-config or --pipeline)"),
    }
}

/// Describes the cost of an alignment: the MACs that are kept without it, with aligned widths, and with even norm
/// groups in addition.
fn alignment(scores: &Scores, cut: &CutOptions, align: &str) -> Result<String, Error> {
    let share = |options: CutOptions| {
        let cut = scores.cut(options)?;
        Ok::<_, Error>(percent(cut.after().macs, cut.before().macs))
    };
    let free = share(CutOptions { round_to: 1, round_heads_to: 0, evens_norm_groups: false, ..cut.clone() })?;
    let widths = share(CutOptions { evens_norm_groups: false, ..cut.clone() })?;
    let both = share(cut.clone())?;
    Ok(format!(
        "aligned to {align}: widths in multiples of {} keep {widths} of the MACs (head sizes in multiples of {}), and \
         {both} with an even number of channels per norm group; without alignment, {free}",
        cut.round_to, cut.round_heads_to
    ))
}

/// Runs the part of every rank but the first after the scores: its share of the refit, of the cut that the first rank
/// sends.
fn follow(
    analysis: &Analysis,
    runtime: Option<&Runtime>,
    output: Option<&Path>,
    (score, refit): (&ScoreOptions, Option<&RefitSettings>),
) -> Result<bool, Error> {
    let (Some(output), Some(runtime), Some(settings)) = (output, runtime, refit) else { return Ok(true) };
    let plan = from_first(&*settings.options.ranks, None)?;
    let staged = analysis.repeat(&plan, &plan_path(output), Some(runtime))?.stage(output)?;
    staged.refit(runtime, score, settings, &mut |_| ControlFlow::Continue(())).map(|_| true)
}

impl PruneArgs {
    /// Returns the settings of a refit whose checkpoint is named after `base`.
    pub(super) fn refit_settings(&self, score: &ScoreOptions, base: &Path) -> Result<RefitSettings, Error> {
        Ok(RefitSettings {
            checkpoint: Some(refit_checkpoint_path(base)),
            resume: self.gradients.resume,
            ..self.refitting.settings(&score.gradients, self.report.is_some())?
        })
    }

    /// Returns how the output is verified.
    pub(super) fn verify_options(&self, score: &ScoreOptions, given: Option<&[(String, Array)]>) -> VerifyOptions {
        VerifyOptions {
            rtol: self.rtol,
            atol: self.atol.unwrap_or(1e-6),
            seed: score.seed,
            inputs: given.map(<[_]>::to_vec),
            sizes: score.sizes.clone(),
        }
    }

    /// Whether the weights are fitted after the cut: as the options say, else if there are clean samples.
    pub(super) fn refits(&self, criterion: CriterionOption) -> bool {
        let has_samples = self.data.data.is_some() || criterion.needs_gradients();
        self.output.is_some() && !self.dry_run && !self.no_refit && (self.refit || has_samples)
    }
}

/// Checks that the files that the run reads and writes do not conflict.
pub(super) fn check_files(
    args: &PruneArgs,
    config: Option<&Path>,
    model: &Model,
    cli: &Cli,
    checkpoints: (bool, bool),
) -> Result<(), Error> {
    let mut files = run_files::of_run(cli);
    run_files::reads_model(&mut files, "IN.onnx", model);
    let (inputs, scheduler) = (args.inputs.as_deref(), args.diffusion.scheduler_config.as_deref());
    let given = [
        ("--config", config),
        ("--inputs", inputs),
        ("--scheduler-config", scheduler),
        ("--prompts", args.diffusion.prompts.as_deref()),
    ];
    run_files::reads_given(&mut files, &given);
    run_files::reads_data(&mut files, args.data.data.as_deref())?;
    run_files::writes_of_pruning(&mut files, model, args, checkpoints);
    files.check()
}

/// Returns the options of the gradients for plan and metadata. Paths are left out, as they are private to the user.
pub(super) fn recorded(args: &PruneArgs) -> Result<serde_json::Value, Error> {
    let mut diffusion = args.diffusion.clone();
    (diffusion.scheduler_config, diffusion.pipeline, diffusion.prompts) = (None, None, None);
    let record = (serde_json::to_value(&args.gradients), serde_json::to_value(&diffusion));
    match record {
        (Ok(gradients), Ok(diffusion)) => Ok(json!({"gradients": gradients, "diffusion": diffusion})),
        (Err(error), _) | (_, Err(error)) => Err(Error::usage(format!("the options can't be recorded: {error}"))),
    }
}
