//! Models and their analyses.

use std::ffi::OsString;
use std::path::PathBuf;

use onnx_diffprune::pipelines::Pipeline;
use onnx_diffprune::{Plan, Sizes};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pythonize::pythonize;

use crate::arrays::{dict, named};
use crate::cuts::{Cut, Scores};
use crate::errors::Raised;
use crate::runtime::Runtime;
use crate::tool::cli::embedded;
use crate::watching::{detached, watched};

/// See the package.
#[pyclass(frozen, module = "onnx_diffprune._native")]
pub(crate) struct Model(pub(crate) onnx_diffprune::Model);

#[pymethods]
impl Model {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        detached(py, || onnx_diffprune::Model::open(&path)).map(Self)
    }

    #[getter]
    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    #[getter]
    fn notes(&self) -> Vec<String> {
        self.0.notes().to_vec()
    }

    #[getter]
    fn external_files(&self) -> Vec<PathBuf> {
        self.0.external_files()
    }

    fn read_inputs<'py>(&self, py: Python<'py>, path: PathBuf) -> PyResult<Bound<'py, PyDict>> {
        let arrays = detached(py, || self.0.read_inputs(&path))?;
        dict(py, arrays)
    }

    fn total_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        self.0.total_bytes().raised(py)
    }

    fn digest(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || Ok(self.0.digest()))
    }

    fn check_output(&self, py: Python<'_>, output: PathBuf) -> PyResult<()> {
        self.0.check_output(&output).raised(py)
    }

    fn data_path(&self, output: PathBuf) -> PathBuf {
        self.0.data_path(&output)
    }

    fn check_plan(&self, py: Python<'_>, plan: PathBuf) -> PyResult<()> {
        detached(py, || self.0.check_plan(&Plan::read(&plan)?, &plan))
    }

    fn encode_prompts<'py>(
        &self,
        py: Python<'py>,
        pipeline: PathBuf,
        prompts: Vec<String>,
        runtime: &Runtime,
    ) -> PyResult<Bound<'py, PyDict>> {
        let runtime = runtime.0;
        let arrays = detached(py, || self.0.encode_prompts(&Pipeline::open(&pipeline)?, &prompts, &runtime))?;
        dict(py, arrays)
    }

    fn analyse(&self, py: Python<'_>) -> PyResult<Analysis> {
        detached(py, || self.0.analyse()).map(Analysis)
    }
}

/// See the package.
#[pyclass(frozen, module = "onnx_diffprune._native")]
pub(crate) struct Analysis(pub(crate) onnx_diffprune::Analysis);

#[pymethods]
impl Analysis {
    fn sizes(&self, py: Python<'_>, given: Sizes) -> PyResult<Sizes> {
        self.0.sizes(&given).raised(py)
    }

    fn cost<'py>(&self, py: Python<'py>, sizes: Sizes) -> PyResult<Bound<'py, PyAny>> {
        let cost = detached(py, || self.0.cost(&sizes))?;
        Ok(pythonize(py, &cost)?)
    }

    fn check_inputs(&self, py: Python<'_>, inputs: &Bound<'_, PyDict>) -> PyResult<()> {
        let inputs = named(Some(inputs))?.unwrap_or_default();
        self.0.check_inputs(&inputs).raised(py)
    }

    #[getter]
    fn computes_weights(&self) -> bool {
        self.0.computes_weights()
    }

    fn coupling_texts(&self, py: Python<'_>) -> Vec<Option<String>> {
        py.detach(|| self.0.coupling_texts())
    }

    fn score(
        &self,
        py: Python<'_>,
        options: Vec<OsString>,
        inputs: Option<&Bound<'_, PyDict>>,
        runtime: Option<&Runtime>,
        watch: Py<PyAny>,
    ) -> PyResult<Scores> {
        let (inputs, runtime) = (named(inputs)?, runtime.map(|runtime| runtime.0));
        let scores = watched(py, watch, |mut watcher| {
            let options = embedded::score_options(options, &self.0, inputs, runtime.as_ref())?;
            self.0.score_with(&options, runtime.as_ref(), &mut |progress| watcher.hear(Some(progress)))
        })?;
        Ok(Scores(scores))
    }

    fn repeat(&self, py: Python<'_>, plan: PathBuf, runtime: Option<&Runtime>) -> PyResult<Cut> {
        let runtime = runtime.map(|runtime| runtime.0);
        detached(py, || self.0.repeat(&Plan::read(&plan)?, &plan, runtime.as_ref())).map(Cut::new)
    }

    fn verify<'py>(
        &self,
        py: Python<'py>,
        of: (Bound<'py, Model>, PathBuf),
        options: Vec<OsString>,
        inputs: Option<&Bound<'_, PyDict>>,
        runtime: &Runtime,
        watch: Py<PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (pruned, plan) = of;
        let (inputs, runtime, pruned) = (named(inputs)?, runtime.0, pruned.get().0.clone());
        let report = watched(py, watch, |mut watcher| {
            let options = embedded::verify_options(options, &self.0, inputs, &runtime)?;
            let read = Plan::read(&plan)?;
            self.0.verify(&pruned, (&read, &plan), &runtime, &options, &mut |progress| watcher.hear(Some(progress)))
        })?;
        Ok(pythonize(py, &report)?)
    }
}
