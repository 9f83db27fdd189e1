//! Scores, cuts, and pruned files before they are moved into place.

use std::ffi::OsString;
use std::path::PathBuf;

use onnx_diffprune::plans::plan_path;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pythonize::{depythonize, pythonize};
use serde_json::json;

use crate::arrays::named;
use crate::runtime::Runtime;
use crate::tool::cli::embedded;
use crate::watching::{detached, watched};

/// See the package.
#[pyclass(frozen, module = "onnx_diffprune._native")]
pub(crate) struct Scores(pub(crate) onnx_diffprune::Scores);

#[pymethods]
impl Scores {
    fn gradients<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        Ok(self.0.gradients().map(|report| pythonize(py, &embedded::gradients_json(report))).transpose()?)
    }

    fn cut(&self, py: Python<'_>, options: Vec<OsString>) -> PyResult<Cut> {
        detached(py, || self.0.cut(embedded::cut_options(options)?)).map(Cut::new)
    }
}

/// See the package.
#[pyclass(module = "onnx_diffprune._native")]
pub(crate) struct Cut(onnx_diffprune::Cut);

impl Cut {
    pub(crate) fn new(cut: onnx_diffprune::Cut) -> Self {
        Self(cut)
    }
}

#[pymethods]
impl Cut {
    fn plan<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(pythonize(py, self.0.plan())?)
    }

    fn record(&mut self, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.0.record(name, depythonize(value)?);
        Ok(())
    }

    #[getter]
    fn ratio(&self) -> f64 {
        self.0.ratio()
    }

    fn costs<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        Ok((pythonize(py, self.0.before())?, pythonize(py, self.0.after())?))
    }

    fn sizes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(pythonize(py, self.0.sizes())?)
    }

    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.0.warnings().to_vec()
    }

    #[getter]
    fn frozen(&self) -> Vec<String> {
        self.0.frozen().to_vec()
    }

    fn unfused<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(pythonize(py, self.0.unfused())?)
    }

    fn stage(&self, py: Python<'_>, output: PathBuf) -> PyResult<Staged> {
        let cut = self.0.clone();
        let staged = detached(py, || cut.stage(&output))?;
        Ok(Staged { plan: plan_path(&output), held: Some(staged) })
    }
}

/// See the package. Saving consumes it, and so does a failed refit.
#[pyclass(module = "onnx_diffprune._native")]
pub(crate) struct Staged {
    plan: PathBuf,
    held: Option<onnx_diffprune::Staged>,
}

impl Staged {
    fn held(&self) -> PyResult<&onnx_diffprune::Staged> {
        self.held.as_ref().ok_or_else(gone)
    }

    fn take(&mut self) -> PyResult<onnx_diffprune::Staged> {
        self.held.take().ok_or_else(gone)
    }
}

fn gone() -> PyErr {
    PyRuntimeError::new_err("the pruned file has already been saved or discarded: stage the cut again")
}

#[pymethods]
impl Staged {
    fn total_bytes(&self) -> PyResult<u64> {
        Ok(self.held()?.bytes())
    }

    fn cut(&self) -> PyResult<Cut> {
        Ok(Cut::new(self.held()?.cut().clone()))
    }

    fn check<'py>(
        &mut self,
        py: Python<'py>,
        options: Vec<OsString>,
        inputs: Option<&Bound<'_, PyDict>>,
        runtime: &Runtime,
        watch: Py<PyAny>,
    ) -> PyResult<(Bound<'py, PyAny>, Option<String>)> {
        let (inputs, runtime) = (named(inputs)?, runtime.0);
        let staged = self.held.as_mut().ok_or_else(gone)?;
        let report = watched(py, watch, |mut watcher| {
            let options = embedded::verify_options(options, staged.cut().analysis(), inputs, &runtime)?;
            staged.check(&runtime, &options, &mut |progress| watcher.hear(Some(progress))).cloned()
        })?;
        Ok((pythonize(py, &report)?, report.failure_text()))
    }

    fn refit<'py>(
        &mut self,
        py: Python<'py>,
        options: Vec<OsString>,
        inputs: Option<&Bound<'_, PyDict>>,
        runtime: &Runtime,
        watch: Py<PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (inputs, runtime) = (named(inputs)?, runtime.0);
        let analysis = self.held()?.cut().analysis().clone();
        let (score, settings) = detached(py, || embedded::refit_options(options, &analysis, inputs, &runtime))?;
        let staged = self.take()?;
        let staged = watched(py, watch, |mut watcher| {
            staged.refit(&runtime, &score, &settings, &mut |progress| watcher.hear(Some(progress)))
        })?;
        let report = staged.refit_report().map(embedded::refit_json);
        self.held = Some(staged);
        Ok(pythonize(py, &report)?)
    }

    fn latency<'py>(
        &self,
        py: Python<'py>,
        options: Vec<OsString>,
        inputs: Option<&Bound<'_, PyDict>>,
        runtime: &Runtime,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (inputs, runtime, staged) = (named(inputs)?, runtime.0, self.held()?);
        let latency = detached(py, || {
            let options = embedded::verify_options(options, staged.cut().analysis(), inputs, &runtime)?;
            staged.latency(&runtime, &options)
        })?;
        Ok(pythonize(py, &json!({"sizes": latency.sizes, "networks": latency.networks}))?)
    }

    fn add_file(&mut self, place: PathBuf, content: Vec<u8>) -> PyResult<()> {
        self.held = Some(self.take()?.with_file(place, content));
        Ok(())
    }

    fn save<'py>(&mut self, py: Python<'py>, plan: Option<PathBuf>, has_plan: bool) -> PyResult<Bound<'py, PyAny>> {
        py.check_signals()?;
        let plan = has_plan.then(|| plan.unwrap_or_else(|| self.plan.clone()));
        let staged = self.take()?.with_plan(plan);
        let written = detached(py, || staged.save())?;
        let written = json!({
            "output": written.output,
            "data": written.data,
            "plan": written.plan,
            "removed": written.removed,
            "bytes": written.bytes,
        });
        Ok(pythonize(py, &written)?)
    }

    fn discard(&mut self) {
        self.held = None;
    }
}
