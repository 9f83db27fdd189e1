//! Pruning in rounds: each round cuts the network of the round before, fits it and trains it. All of them are cuts of
//! the first original.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use onnx_diffprune::data::Array;
use onnx_diffprune::finetuning::{FinetuneReport, FinetuneSettings, Recipe};
use onnx_diffprune::plans::{DigestKind, plan_path};
use onnx_diffprune::ranks::{Collective, from_first};
use onnx_diffprune::reports::RefitReport;
use onnx_diffprune::rounds::RoundFolder;
use onnx_diffprune::{
    Analysis, CutOptions, Error, Model, Plan, Runtime, ScoreOptions, Scores, Staged, Target, VerifyOptions,
};
use serde_json::{Value, json};

use super::args::{Cli, PruneArgs};
use super::ending::{Before, Ending, PICTURES};
use super::gradient_args::{self, checkpoint_path};
use super::printer::{Printer, Watcher, human, percent};
use super::prune::{check_files, draws, recorded};
use super::report_page::sources;
use super::surroundings::Surroundings;
use super::{finetune, open_runtime, refit_args};

/// Runs all rounds. With several ranks, all of them compute gradients and train, and the first one does everything
/// else.
pub(super) fn run(
    args: &PruneArgs,
    (cut, mut score, config): (&CutOptions, ScoreOptions, Option<&Path>),
    surroundings: &Surroundings,
    cli: &Cli,
    ranks: &Arc<dyn Collective>,
    printer: &Printer,
) -> Result<bool, Error> {
    let (rounds, steps) = (args.rounds.unwrap_or(1), args.finetune_steps.unwrap_or(0));
    if rounds == 0 {
        return Err(Error::usage("--rounds: expected at least 1, found 0"));
    }
    let (Some(input), Some(output), false) = (&args.input, &args.output, args.dry_run) else {
        let text = "--rounds and --finetune-steps: expected IN.onnx, OUT.onnx and no --dry-run, as a round cuts the \
                    network that the round before wrote";
        return Err(Error::usage(text));
    };
    if steps > 0 && args.data.data.is_none() {
        return Err(Error::usage("--finetune-steps: training needs clean samples, but --data is missing")
            .hint("pass them with --data"));
    }
    let is_first = ranks.rank() == 0;
    score.compares_groups &= is_first;
    let model = Model::open(input)?;
    let model = if args.placed.is_some() { model.keeping_data_name() } else { model };
    let refits = args.refits(score.criterion);
    let needs_gradients = score.criterion.needs_gradients();
    if is_first {
        check_files(args, config, &model, cli, (needs_gradients, refits))?;
    }
    let runtime = open_runtime(cli)?;
    let given = surroundings.inputs(&model, args.inputs.as_deref(), Some(&runtime))?;
    let original = model.analyse()?;
    original.check_inputs(given.as_deref().unwrap_or_default())?;
    let verify = args.verify_options(&score, given.as_deref());
    if is_first && !args.no_verify {
        original.check_memory(&verify)?;
    }
    let base = args.base().unwrap_or(output);
    // The output is excluded from the fingerprint, as another run prepares it under another path.
    let of_run = PruneArgs { output: Some(base.to_owned()), report: args.shown_report(), ..args.clone() };
    let fingerprint = format!("{} {} {}", DigestKind::default().name(), model.digest(), of_run.to_config()?);
    let folder = RoundFolder::open(base.with_extension("rounds"), &fingerprint, args.gradients.resume, &**ranks)?;
    let done = folder.done();
    let given = given.unwrap_or_default();
    let network = args.diffusion.network_options(given.clone())?;
    score.sizes = original.usual_sizes(&network, &score.sizes, args.data.data.as_deref())?;
    let verify = VerifyOptions { sizes: score.sizes.clone(), ..verify };
    let mut run = Rounds {
        args,
        asked: (cut, score),
        given: &given,
        extent: (rounds, steps),
        places: (input, output),
        plan: args.plan.clone().unwrap_or_else(|| plan_path(output)),
        shown_plan: args.plan.clone().unwrap_or_else(|| plan_path(args.shown_output().unwrap_or(output))),
        around: &surroundings.json,
        original,
        verify,
        runtime,
        ranks,
        printer,
        folder,
        refit: None,
        scores: None,
    };
    if done >= rounds {
        let text = format!("all {rounds} rounds are complete: an earlier run wrote {}", output.display());
        printer.result(&json!({"output": output, "rounds": rounds, "done": done}), || text);
        return Ok(true);
    }
    if done > 0 {
        printer.note(&format!("resuming: {done} of {rounds} rounds are complete"));
    }
    for round in done + 1..=rounds {
        printer.note(&format!("round {round} of {rounds}"));
        run.round(round)?;
        // In the next round, all ranks read what the first rank wrote.
        ranks.barrier()?;
    }
    Ok(true)
}

/// A run of several rounds.
struct Rounds<'a> {
    args: &'a PruneArgs,
    /// What all rounds together remove, and how channels are scored.
    asked: (&'a CutOptions, ScoreOptions),
    given: &'a [(String, Array)],
    /// Number of rounds, and of training steps in each.
    extent: (usize, u64),
    /// Paths of the original and of the final network.
    places: (&'a Path, &'a Path),
    /// Path to which the plan of the final network is written, and its final path for messages.
    plan: PathBuf,
    shown_plan: PathBuf,
    /// The pipeline that the network belongs to, as JSON.
    around: &'a Value,
    original: Analysis,
    verify: VerifyOptions,
    runtime: Runtime,
    ranks: &'a Arc<dyn Collective>,
    printer: &'a Printer,
    folder: RoundFolder,
    /// The report of the last refit.
    refit: Option<RefitReport>,
    /// The last scores.
    scores: Option<Scores>,
}

impl Rounds<'_> {
    fn is_first(&self) -> bool {
        self.ranks.rank() == 0
    }

    /// Returns the path of the network that a round ends with; for round 0, the original.
    fn result(&self, round: usize) -> PathBuf {
        let (rounds, steps) = self.extent;
        match round {
            0 => self.places.0.to_owned(),
            _ if round == rounds => self.places.1.to_owned(),
            _ if steps > 0 => self.folder.trained(round),
            _ => self.folder.cut(round),
        }
    }

    fn round(&mut self, round: usize) -> Result<(), Error> {
        let (_, steps) = self.extent;
        if !self.folder.has_cut(round) {
            self.cut(round)?;
            self.folder.mark_cut(round)?;
        }
        if steps > 0 {
            self.ranks.barrier()?;
            self.train(round)?;
        }
        self.folder.mark_done(round)
    }

    /// Returns what a round removes from the network that it begins with.
    fn options(&self, round: usize, analysis: &Analysis) -> Result<CutOptions, Error> {
        let sizes = &self.asked.1.sizes;
        let (before, now) = (self.original.cost(sizes)?, analysis.cost(sizes)?);
        let left = match self.asked.0.target {
            Target::Params(_) => now.parameters as f64 / (before.parameters as f64).max(1.0),
            _ => now.macs / before.macs.max(1.0),
        };
        Ok(self.asked.0.of_round(round, self.extent.0, left))
    }

    /// Cuts and refits. Writes to the folder of the rounds or, if nothing follows, to the final path.
    fn cut(&mut self, round: usize) -> Result<(), Error> {
        let before = self.result(round - 1);
        let analysis = match round {
            1 => self.original.clone(),
            _ => Model::open(&before)?.analyse()?,
        };
        let options = self.options(round, &analysis)?;
        let is_end = round == self.extent.0 && self.extent.1 == 0;
        let output = if is_end { self.places.1.to_owned() } else { self.folder.cut(round) };
        let placed = self.args.placed.clone().filter(|_| is_end);
        let args = PruneArgs { output: Some(output.clone()), placed, ..self.args.clone() };
        let base = args.base().unwrap_or(&output);
        let (criterion, refits) = (self.asked.1.criterion, args.refits(self.asked.1.criterion));
        let score = (self.asked.1.clone(), Some(self.given));
        let score = gradient_args::score_options(score.0, &args, (&options, refits), score.1, self.ranks)?;
        let refit = refits.then(|| args.refit_settings(&score, base)).transpose()?;
        let stage = |cut: &onnx_diffprune::Cut| match round {
            1 => cut.stage(&output),
            _ => {
                let path = plan_path(&before);
                cut.stage_after(&self.original, (&Plan::read(&path)?, &path), Some(&self.runtime), &output)
            }
        };
        let follow = || -> Result<(), Error> {
            // The share of this rank in the refit, of the cut that the first rank sends.
            let Some(settings) = &refit else { return Ok(()) };
            let plan = from_first(&**self.ranks, None)?;
            let cut = analysis.repeat(&plan, &plan_path(&output), Some(&self.runtime))?;
            stage(&cut)?.refit(&self.runtime, &score, settings, &mut |_| ControlFlow::Continue(())).map(drop)
        };
        if !self.is_first() && !criterion.needs_gradients() {
            return follow();
        }
        let mut watcher = Watcher::new(self.printer, gradient_args::text_of);
        let scores = analysis.score_with(&score, Some(&self.runtime), &mut |progress| watcher.see(progress))?;
        drop(watcher);
        if !self.is_first() {
            return follow();
        }
        let mut cut = scores.cut(options)?;
        cut.warnings().iter().for_each(|warning| self.printer.warning(warning));
        self.record(&mut cut)?;
        if refits {
            from_first(&**self.ranks, Some(cut.plan()))?;
        }
        let staged = stage(&cut)?;
        self.scores = Some(scores);
        if is_end {
            let refit = refit.as_ref().map(|settings| (&score, settings));
            let staged = staged.with_plan(Some(self.plan.clone()));
            return self
                .ending(refit, draws(self.args, &score, self.around), Some(checkpoint_path(base)), None)
                .run(staged)
                .map(drop);
        }
        let mut staged = self.check(staged)?;
        if let Some(settings) = &refit {
            let mut watcher = Watcher::new(self.printer, refit_args::text_of);
            staged = staged.refit(&self.runtime, &score, settings, &mut |progress| watcher.see(progress))?;
            drop(watcher);
            staged = self.check(staged)?;
            self.refit = staged.refit_report().cloned();
        }
        self.summarise(round, &staged, None);
        staged.save()?;
        // A short run writes no checkpoint, so that this may fail.
        let _ = std::fs::remove_file(checkpoint_path(base));
        Ok(())
    }

    /// Records the options of the whole run in the plan.
    fn record(&self, cut: &mut onnx_diffprune::Cut) -> Result<(), Error> {
        let (name, asked) = match self.asked.0.target {
            Target::Ratio(ratio) => ("ratio", ratio),
            Target::Macs(share) => ("target-macs", share),
            Target::Params(share) => ("target-params", share),
        };
        cut.record(name, json!(asked));
        cut.record("max-ratio", json!(self.asked.0.max_ratio));
        cut.record("rounds", json!(self.extent.0));
        cut.record("finetune-steps", json!(self.extent.1));
        cut.record("run", recorded(self.args)?);
        Ok(())
    }

    /// Trains the cut. Writes to the folder of the rounds or, after the last round, to the final path.
    fn train(&mut self, round: usize) -> Result<(), Error> {
        let (rounds, steps) = self.extent;
        let (file, output) = (self.folder.cut(round), self.result(round));
        let analysis = Model::open(&file)?.analyse()?;
        let Some(data) = &self.args.data.data else { return Ok(()) };
        let score = &self.asked.1;
        let network = self.args.diffusion.network_options(self.given.to_vec())?;
        let settings = FinetuneSettings {
            network: onnx_diffprune::networks::NetworkOptions { batch: None, ..network },
            sizes: score.sizes.clone(),
            data_range: self.args.data.range()?,
            teacher: Some(self.original.model()),
            steps,
            seed: score.seed,
            resume: self.args.gradients.resume,
            ranks: self.ranks.clone(),
            pictures: if self.args.report.is_some() && round == rounds { PICTURES } else { 0 },
            ..FinetuneSettings::new(data, self.folder.training(round), Recipe::Quick)
        };
        let tuned = finetune::train(&analysis, &self.runtime, &settings, self.printer)?;
        if tuned.report.is_stopped {
            let text = format!("stopped in round {round} of {rounds}, after {} of {steps} steps", tuned.report.steps);
            return Err(Error::unmet(text).hint("continue with --resume"));
        }
        if !self.is_first() {
            return Ok(());
        }
        let path = plan_path(&file);
        let mut plan = Plan::read(&path)?;
        let changed = plan.changed.take();
        let cut = self.original.repeat(&plan, &path, Some(&self.runtime))?;
        let staged = tuned.stage_cut(&cut, changed.as_ref(), &output)?;
        if round == rounds {
            let staged = staged.with_plan(Some(self.plan.clone()));
            return self.ending(None, Err("the network was trained"), None, Some(&tuned.report)).run(staged).map(drop);
        }
        let staged = self.check(staged)?;
        self.summarise(round, &staged, Some(&tuned.report));
        staged.save().map(drop)
    }

    /// Verifies against the original, unless `--no-verify` is given.
    fn check(&self, mut staged: Staged) -> Result<Staged, Error> {
        if !self.args.no_verify {
            let progress = self.printer.progress(1);
            progress.step("verifying");
            staged.check(&self.runtime, &self.verify, &mut |progress| self.printer.pass(progress))?;
        }
        Ok(staged)
    }

    /// Prints the result of a round in one line.
    fn summarise(&self, round: usize, staged: &Staged, training: Option<&FinetuneReport>) {
        let (before, after) = (staged.cut().before().macs, staged.cut().after().macs);
        let mut text = format!("round {round}: {} MACs ({})", human(after), percent(after, before));
        if training.is_none()
            && let Some(losses) = self.refit.as_ref().and_then(|refit| refit.losses.as_ref())
        {
            let [original, cut, refitted] = losses.means();
            text += &format!("; denoising loss: original {original:.4}, cut {cut:.4}, refitted {refitted:.4}");
        }
        let last = training.and_then(|training| training.evaluations.iter().find(|of| of.step == training.best_step));
        if let Some(evaluation) = last {
            text += &format!("; denoising loss {:.4} after {} steps", evaluation.loss, evaluation.step);
        }
        self.printer.note(&text);
    }

    fn ending<'e>(
        &'e self,
        refit: Option<(&'e ScoreOptions, &'e onnx_diffprune::RefitSettings)>,
        draws: Result<&'e ScoreOptions, &'static str>,
        checkpoint: Option<PathBuf>,
        training: Option<&'e FinetuneReport>,
    ) -> Ending<'e> {
        Ending {
            printer: self.printer,
            output: self.args.shown_output().unwrap_or(self.places.1),
            plan: Some(&self.shown_plan),
            around: self.around,
            report: self.args.report.as_deref(),
            runtime: Some(&self.runtime),
            verify: (!self.args.no_verify).then_some(&self.verify),
            measures_latency: !self.args.no_latency,
            refit,
            gradients: self.scores.as_ref().and_then(Scores::gradients),
            before: Before { refit: self.refit.as_ref(), training },
            checkpoint,
            advice: "use --no-refit to write the cut without a refit",
            sources: sources(&self.args.diffusion, self.around, &self.args.data, self.asked.1.seed),
            draws,
        }
    }
}
