//! The stages after a cut is staged: verification, refit, latency, and saving the files.

use std::path::{Path, PathBuf};

use onnx_diffprune::finetuning::FinetuneReport;
use onnx_diffprune::reports::{CutLatency, GradientReport, RefitReport};
use onnx_diffprune::{Error, ErrorKind, RefitSettings, Runtime, ScoreOptions, Staged, VerifyOptions};
use serde_json::Value;

use super::cut_result::Shown;
use super::printer::{Printer, Watcher};
use super::refit_args;
use super::report_page::{PageParts, report, write_report};

/// How a staged cut is finished and saved.
pub(super) struct Ending<'a> {
    pub(super) printer: &'a Printer,
    pub(super) output: &'a Path,
    pub(super) plan: Option<&'a Path>,
    pub(super) report: Option<&'a Path>,
    pub(super) runtime: Option<&'a Runtime>,
    /// How the cut is verified. `None`: not at all.
    pub(super) verify: Option<&'a VerifyOptions>,
    pub(super) measures_latency: bool,
    /// The samples that the weights are fitted on, and how. `None`: no refit.
    pub(super) refit: Option<(&'a ScoreOptions, &'a RefitSettings)>,
    pub(super) gradients: Option<&'a GradientReport>,
    /// The refit and the training that these weights already went through.
    pub(super) before: Before<'a>,
    /// The checkpoint of the gradients, which is deleted once all files are saved.
    pub(super) checkpoint: Option<PathBuf>,
    /// The pipeline that the network belongs to, as JSON; null if there is none.
    pub(super) around: &'a Value,
    /// What to do if the refit fails.
    pub(super) advice: &'a str,
    /// Where the inputs of the run come from, for the report.
    pub(super) sources: Vec<[String; 2]>,
    /// How original and cut generate samples for the report of a cut without refit, or why they do not.
    pub(super) draws: Result<&'a ScoreOptions, &'static str>,
}

/// Default number of samples of each network in a report.
pub(super) const PICTURES: usize = 16;

/// Maximum latency of the original, in milliseconds, for which the report also measures the latency by block.
const TIMED: f64 = 2000.0;

/// The earlier changes to the weights.
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

    /// Computes the parts of the report besides the cut. `None`: no report is written.
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
            (Ok(_), None) => parts.undrawn = Some("ONNX Runtime was not used (--no-verify)".to_owned()),
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

    /// Verifies, refits, verifies again, measures latency, saves, and prints the result.
    ///
    /// # Errors
    /// The error of a stage; a failed verification.
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
            // The report is saved together with the network that it describes.
            Some(path) if passed => staged = staged.with_file(path, report(&shown)),
            Some(path) => write_report(path, &shown)?,
            None => {}
        }
        printer.go_on()?;
        match staged.save() {
            Ok(written) => {
                if let Some(path) = &self.checkpoint {
                    // A short run writes no checkpoint, so that this may fail.
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
