//! A pruned file before it is moved to its path: verified, measured, saved.

use std::path::{Path, PathBuf};

use super::cut::Cut;
use super::progress::{Progress, Stage, Watch, notify, unwatched};
use super::refit::RefitReport;
use super::runtime::Runtime;
use crate::error::Error;
use crate::graph::sizes::Sizes;
use crate::inputs::{InputOptions, Purpose, input_variants};
use crate::load::load;
use crate::lower;
use crate::plan::Plan;
use crate::runtime::{Latency, RuntimeError, SessionOptions, interleaved_latency};
use crate::verify::{VerifyOptions, VerifyReport, verify_plan};
use crate::write::{self, Published};

/// Maximum number of timed runs of each network, and the seconds they may take together.
const LATENCY_RUNS: usize = 30;
const LATENCY_SECONDS: f64 = 6.0;

/// A complete pruned file that is not yet at its path.
#[derive(Debug)]
pub struct Staged {
    cut: Cut,
    staged: write::Staged,
    output: PathBuf,
    plan: Option<PathBuf>,
    beside: Vec<(PathBuf, Vec<u8>)>,
    verification: Option<VerifyReport>,
    refit: Option<RefitReport>,
}

/// The latencies of original and pruned file.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct CutLatency {
    /// The sizes of the inputs' symbolic dimensions: given ones, and small ones chosen by name.
    pub sizes: Sizes,
    /// The latencies of the original and of the pruned file.
    pub networks: Vec<Latency>,
}

/// The files that were written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// The pruned file.
    pub output: PathBuf,
    /// Its external data. `None`: it has none.
    pub data: Option<PathBuf>,
    /// The plan. `None`: it was not written.
    pub plan: Option<PathBuf>,
    /// Data files that only the replaced output file referred to. They were removed with it.
    pub removed: Vec<PathBuf>,
    /// Bytes of the pruned file and its external data.
    pub bytes: u64,
}

impl Staged {
    pub(super) fn new(cut: Cut, staged: write::Staged, output: &Path) -> Self {
        let (plan, output) = (Some(plan_path(output)), output.to_owned());
        Self { cut, staged, plan, output, beside: Vec::new(), verification: None, refit: None }
    }

    pub(super) fn path(&self) -> &Path {
        self.staged.path()
    }

    pub(super) fn output(&self) -> &Path {
        &self.output
    }

    /// Replaces the file and its plan.
    pub(super) fn replaced(self, plan: Plan, staged: write::Staged) -> Self {
        Self { cut: self.cut.with_plan(plan), staged, verification: None, ..self }
    }

    /// Adds the report of a refit.
    pub(super) fn refitted(self, plan: Plan, report: RefitReport) -> Self {
        Self { cut: self.cut.with_plan(plan), refit: Some(report), ..self }
    }

    /// Returns the report of the refit; `None` if there was none.
    pub fn refit_report(&self) -> Option<&RefitReport> {
        self.refit.as_ref()
    }

    /// Returns the cut.
    pub fn cut(&self) -> &Cut {
        &self.cut
    }

    /// Returns the report of the verification; `None` if there was none.
    pub fn verification(&self) -> Option<&VerifyReport> {
        self.verification.as_ref()
    }

    /// Sets the path of the plan, by default [next to the output](plan_path); `None` writes no plan.
    #[must_use]
    pub fn with_plan(mut self, plan: Option<PathBuf>) -> Self {
        self.plan = plan;
        self
    }

    /// Adds a file that is written together with the pruned one, such as a report.
    #[must_use]
    pub fn with_file(mut self, place: impl Into<PathBuf>, content: impl Into<Vec<u8>>) -> Self {
        self.beside.push((place.into(), content.into()));
        self
    }

    /// Returns the bytes of the pruned file and its external data.
    pub fn bytes(&self) -> u64 {
        self.staged.bytes()
    }

    /// Verifies that the pruned file computes what the original computes with every removed index masked.
    ///
    /// # Errors
    /// Fails with [`crate::error::ErrorKind::VerificationFailed`] if it does not, or fails if the original can't be
    /// run.
    pub fn verify(mut self, runtime: &Runtime) -> Result<Self, Error> {
        self.check(runtime, &VerifyOptions::default(), &mut unwatched)?;
        self.refuse_failed()?;
        Ok(self)
    }

    /// Does the same as [`Staged::verify`], but a pruned file that does not run or differs is no error yet: the report
    /// states it, and [`Staged::save`] refuses the file.
    ///
    /// # Errors
    /// Fails if the original can't be run, or if the caller stopped.
    pub fn check(
        &mut self,
        runtime: &Runtime,
        options: &VerifyOptions,
        watch: &mut Watch<'_>,
    ) -> Result<&VerifyReport, Error> {
        notify(watch, Progress::At { stage: Stage::Verifying, done: 0, total: 1 })?;
        let analysis = &self.cut.analysis().0;
        let pruned = load(self.staged.path())?;
        let mut report = verify_plan(analysis, self.cut.plan(), &self.output, &pruned, runtime.0, options)?;
        // Messages of ONNX Runtime name the temporary file.
        let (staged, output) = (self.staged.path().display().to_string(), self.output.display().to_string());
        report.failure = report.failure.map(|text| text.replace(&staged, &output));
        Ok(self.verification.insert(report))
    }

    /// Measures the latencies of original and pruned file on the CPU, in turn on the same inputs, at the sizes of
    /// `options`.
    ///
    /// # Errors
    /// Fails if a network does not run.
    pub fn latency(&self, runtime: &Runtime, options: &VerifyOptions) -> Result<CutLatency, Error> {
        let fail = |error: RuntimeError| Error::unmet(error.to_string());
        let analysis = &self.cut.analysis().0;
        let timing = InputOptions { purpose: Purpose::Timing, ..options.inputs() };
        let (sizes, inputs) = input_variants(analysis, &timing)?.into_iter().next().unwrap_or_default();
        let options = SessionOptions::default();
        let mut original = lower::session(runtime.0, &analysis.model, &options)?;
        let mut pruned = lower::session(runtime.0, &load(self.staged.path())?, &options)?;
        let both = [inputs.as_slice(), inputs.as_slice()];
        let networks = interleaved_latency(&mut [&mut original, &mut pruned], &both, LATENCY_RUNS, 3, LATENCY_SECONDS)
            .map_err(fail)?;
        Ok(CutLatency { sizes, networks })
    }

    /// Returns an error if the verification failed.
    fn refuse_failed(&self) -> Result<(), Error> {
        let Some(failure) = self.verification.as_ref().and_then(VerifyReport::failure_text) else { return Ok(()) };
        let text = format!("verification failed, {} was not written: {failure}", self.output.display());
        Err(Error::verification_failed(text).in_file(self.cut.model().path()))
    }

    /// Moves the pruned file to its path, and the plan and [added files](Self::with_file) to theirs: all of them or
    /// none. A file without a verification is saved too.
    ///
    /// # Errors
    /// Fails if the verification failed, a file can't be written, or a file would replace another of these or of the
    /// original.
    pub fn save(mut self) -> Result<Written, Error> {
        self.refuse_failed()?;
        if let Some(path) = &self.plan {
            self.beside.insert(0, (path.clone(), self.cut.plan().to_bytes(path)?));
        }
        let Published { report, removed } = self.staged.publish(&self.beside)?;
        Ok(Written { output: self.output, data: report.external, plan: self.plan, removed, bytes: report.bytes })
    }
}

/// Returns the default path of the plan: the output's path with the extension `.plan.json`.
pub fn plan_path(output: &Path) -> PathBuf {
    output.with_extension("plan.json")
}

impl VerifyReport {
    /// Describes in one line what went wrong; `None` if verification passed.
    pub fn failure_text(&self) -> Option<String> {
        if self.passed {
            return None;
        }
        if let Some(failure) = &self.failure {
            return Some(failure.clone());
        }
        let errors = self.runs.iter().find(|run| !run.passed()).map_or_else(
            || "the outputs agree, but intermediate values differ".to_owned(),
            |run| {
                let precision = if run.widened { " in float32" } else { "" };
                format!("the worst relative error is {:.1e}{precision}, allowed {:.1e}", run.worst(), run.rtol)
            },
        );
        Some(match &self.first_difference {
            Some(first) if first.expected_elements != first.found_elements => format!(
                "value {:?} of node {:?} ({}) has {} elements, expected {}",
                first.value, first.node, first.op, first.found_elements, first.expected_elements
            ),
            Some(first) => format!(
                "{errors}; the first value that differs is {:?} of node {:?} ({}), by {:.1e} of its largest magnitude",
                first.value, first.node, first.op, first.relative
            ),
            None => errors,
        })
    }
}
