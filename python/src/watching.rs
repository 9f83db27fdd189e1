//! Passes the progress of a long call to a Python function, and checks for Ctrl-C at every report.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use onnx_diffprune::{Error, Progress, Stage};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::exception;
use crate::tool::cli::embedded::{Failure, is_cancelled};

/// An exception raised during a call of the library, which stopped it.
#[derive(Clone, Default)]
struct Raised(Arc<Mutex<Option<PyErr>>>);

impl Raised {
    fn set(&self, error: PyErr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn take(&self) -> Option<PyErr> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The watcher of one call.
pub(crate) struct Watcher {
    callback: Py<PyAny>,
    raised: Raised,
    /// The current stage, the number of steps done at its first report, and the time of that report.
    since: Option<(Stage, usize, Instant)>,
}

impl Watcher {
    /// Reports progress to Python, if there is any.
    fn tell(&mut self, py: Python<'_>, progress: Option<Progress<'_>>) -> PyResult<()> {
        py.check_signals()?;
        let Some(progress) = progress else { return Ok(()) };
        let told = PyDict::new(py);
        let kind = match progress {
            Progress::At { stage, done, total } => {
                told.set_item("stage", format!("{stage:?}").to_lowercase())?;
                told.set_item("done", done)?;
                told.set_item("total", total)?;
                told.set_item("seconds_left", self.seconds_left(stage, done, total))?;
                "stage"
            }
            Progress::Network(text) => {
                told.set_item("text", text)?;
                "network"
            }
            Progress::Note(text) => {
                told.set_item("text", text)?;
                "note"
            }
            Progress::Warning(text) => {
                told.set_item("text", text)?;
                "warning"
            }
            Progress::Trained { report, total } => {
                told.set_item("stage", "training")?;
                told.set_item("done", report.step)?;
                told.set_item("total", total)?;
                told.set_item("loss", report.loss)?;
                "step"
            }
            Progress::Evaluated(evaluation) => {
                told.set_item("stage", "training")?;
                told.set_item("done", evaluation.step)?;
                told.set_item("loss", evaluation.loss)?;
                "evaluation"
            }
            // Kinds added later.
            _ => return Ok(()),
        };
        self.callback.call(py, (kind,), Some(&told))?;
        py.check_signals()
    }

    /// Estimates the time left from the average duration of the steps so far.
    fn seconds_left(&mut self, stage: Stage, done: usize, total: usize) -> Option<f64> {
        let (since, from, began) = *self.since.get_or_insert((stage, done, Instant::now()));
        if since != stage || done < from {
            self.since = Some((stage, done, Instant::now()));
            return None;
        }
        (done > from)
            .then(|| began.elapsed().as_secs_f64() * (total.saturating_sub(done)) as f64 / (done - from) as f64)
    }

    /// Receives progress on the thread on which the library works.
    pub(crate) fn hear(&mut self, progress: Option<Progress<'_>>) -> ControlFlow<()> {
        Python::attach(|py| match self.tell(py, progress) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.raised.set(error);
                ControlFlow::Break(())
            }
        })
    }
}

/// Runs `work` without the GIL, and passes its progress to `callback`. Raises an exception that stopped it.
pub(crate) fn watched<T, E>(
    py: Python<'_>,
    callback: Py<PyAny>,
    work: impl FnOnce(Watcher) -> Result<T, E> + Send,
) -> PyResult<T>
where
    T: Send,
    E: Into<Failure> + Send,
{
    py.check_signals()?;
    let raised = Raised::default();
    let watcher = Watcher { callback, raised: raised.clone(), since: None };
    match py.detach(|| work(watcher)) {
        Ok(done) => Ok(done),
        Err(failure) => {
            let Failure { error, report } = failure.into();
            match raised.take() {
                Some(own) if is_cancelled(&error) => Err(own),
                _ => Err(exception(py, &error, report.as_ref())),
            }
        }
    }
}

/// Runs work without progress in the same way.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T, Error> + Send) -> PyResult<T> {
    let done = py.detach(work);
    done.map_err(|error| exception(py, &error, None))
}
