//! What comes after a cut is staged: verification, the refit, latency, and the files in their places.

use std::path::{Path, PathBuf};

use onnx_diffprune::finetuning::FinetuneReport;
use onnx_diffprune::reports::{CutLatency, GradientReport, RefitReport};
use onnx_diffprune::{Error, ErrorKind, RefitSettings, Runtime, ScoreOptions, Staged, VerifyOptions};
use serde_json::Value;

use super::cut_result::Shown;
use super::printer::{Printer, Watcher};
use super::refit_args;
use super::report_page::{PageParts, report, write_report};

/// How a staged cut is brought to its place.
pub(super) struct Ending<'a> {
    pub(super) printer: &'a Printer,
    pub(super) output: &'a Path,
    pub(super) plan: Option<&'a Path>,
    pub(super) report: Option<&'a Path>,
    pub(super) runtime: Option<&'a Runtime>,
    /// How it is verified, if it is.
    pub(super) verify: Option<&'a VerifyOptions>,
    pub(super) measures_latency: bool,
    /// On what its weights are fitted, and how, if they are.
    pub(super) refit: Option<(&'a ScoreOptions, &'a RefitSettings)>,
    pub(super) gradients: Option<&'a GradientReport>,
    /// How an earlier fit of these weights went, and their training.
    pub(super) before: Before<'a>,
    /// The checkpoint of the gradients, which has done its work once all is saved.
    pub(super) checkpoint: Option<PathBuf>,
    /// The pipeline that the network belongs to, as it is told of; null where there is none.
    pub(super) around: &'a Value,
    /// What to do instead where the refit fails.
    pub(super) advice: &'a str,
    /// What a report tells of where things come from.
    pub(super) sources: Vec<[String; 2]>,
    /// By what original and cut are drawn for a report where nothing is fitted, or why they are not.
    pub(super) draws: Result<&'a ScoreOptions, &'static str>,
}

/// Samples of each network in a report, where nothing else is asked for.
pub(super) const PICTURES: usize = 16;

/// Milliseconds of a run of the original up to which the times of its blocks are measured as well.
const TIMED: f64 = 2000.0;

/// What was done to the weights before.
#[derive(Clone, Copy, Default)]
pub(super) struct Before<'a> {
    pub(super) refit: Option<&'a RefitReport>,
    pub(super) training: Option<&'a FinetuneReport>,
}

impl Ending<'_> {
    fn verify(&self, staged: &mut Staged) -> Result<bool, Error> {
        let (Some(runtime), Some(options)) = (self.runtime, self.verify) else { return Ok(true) };
        let progress = self.printer.progress(1);
        progress.step("verifying");
        let report = staged.check(runtime, options, &mut |progress| self.printer.pass(progress))?;
        Ok(report.passed)
    }

    /// What the report shows beside the cut, if one is asked for.
    fn page_parts(
        &self,
        staged: &Staged,
        latencies: Option<&CutLatency>,
        passed: bool,
    ) -> Result<Option<PageParts>, Error> {
        if self.report.is_none() {
            return Ok(None);
        }
        let outline = staged.cut().outline();
        let mut parts = PageParts { sources: self.sources.clone(), ..PageParts::default() };
        let is_quick = latencies
            .and_then(|latencies| latencies.networks.first())
            .is_some_and(|original| original.median_ms <= TIMED);
        if let (Some(runtime), Some(options), true) = (self.runtime, self.verify, is_quick) {
            let progress = self.printer.progress(1);
            progress.step("measuring latency by block");
            parts.times = staged.block_times(runtime, options, &outline).ok().flatten();
        }
        parts.outline = Some(outline);
        if staged.refit_report().or(self.before.refit).is_some() || self.before.training.is_some() || !passed {
            return Ok(Some(parts));
        }
        match (self.draws, self.runtime) {
            (Err(why), _) => parts.undrawn = Some(why.to_owned()),
            (Ok(_), None) => parts.undrawn = Some("nothing was run".to_owned()),
            (Ok(options), Some(runtime)) => {
                let mut watcher = Watcher::new(self.printer, refit_args::text_of);
                match staged.judge(runtime, options, PICTURES, &mut |progress| watcher.see(progress)) {
                    Ok(judged) => parts.judged = Some(judged),
                    Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                    Err(error) => parts.undrawn = Some(error.to_string()),
                }
            }
        }
        Ok(Some(parts))
    }

    /// Verifies, fits, verifies again, measures, shows and saves.
    ///
    /// # Errors
    /// What one of them says; verification failed.
    pub(super) fn run(&self, mut staged: Staged) -> Result<bool, Error> {
        let printer = self.printer;
        let mut passed = self.verify(&mut staged)?;
        let mut cut_verification = None;
        if let (Some((score, settings)), Some(runtime), true) = (self.refit, self.runtime, passed) {
            cut_verification = staged.verification().cloned();
            let mut watcher = Watcher::new(printer, refit_args::text_of);
            staged =
                staged.refit(runtime, score, settings, &mut |progress| watcher.see(progress)).map_err(|error| {
                    let own = error.advice().map(|own| format!("{own}; {}", self.advice));
                    error.hint(own.unwrap_or_else(|| self.advice.to_owned()))
                })?;
            drop(watcher);
            passed = self.verify(&mut staged)?;
        }
        let latencies = match (self.runtime, self.verify) {
            (Some(runtime), Some(options)) if passed && self.measures_latency => {
                let progress = printer.progress(1);
                progress.step("measuring latency");
                staged.latency(runtime, options).ok()
            }
            _ => None,
        };
        let (cut, refit) = (staged.cut().clone(), staged.refit_report().or(self.before.refit).cloned());
        let verification = staged.verification().cloned();
        let page = self.page_parts(&staged, latencies.as_ref(), passed)?;
        let mut shown = Shown {
            gradients: self.gradients,
            refit: refit.as_ref(),
            training: self.before.training,
            cut_verification: cut_verification.as_ref(),
            verification: verification.as_ref(),
            latencies: latencies.as_ref(),
            written: passed.then_some((self.output, self.plan)),
            bytes: passed.then(|| staged.bytes()),
            verbose: printer.is_verbose(),
            around: self.around,
            page: page.as_ref(),
            ..Shown::new(&cut)
        };
        match self.report {
            // It takes its place together with what it reports on.
            Some(path) if passed => staged = staged.with_file(path, report(&shown)),
            Some(path) => write_report(path, &shown)?,
            None => {}
        }
        printer.go_on()?;
        match staged.save() {
            Ok(written) => {
                if let Some(path) = &self.checkpoint {
                    // There is none after a short run.
                    let _ = std::fs::remove_file(path);
                }
                shown.removed = &written.removed;
                printer.result(&shown.summary(), || shown.text());
                Ok(true)
            }
            Err(error) if passed => Err(error),
            Err(error) => {
                printer.failure(shown.summary(), || shown.text(), &error);
                Err(error)
            }
        }
    }
}
