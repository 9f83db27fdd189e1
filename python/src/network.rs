//! Denoising networks: their loss, and samples from them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ValueEnum;
use onnx_diffprune::Error;
use onnx_diffprune::networks::{LossOptions, SampleOptions, Sampler, Skip};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use pythonize::pythonize;
use serde_json::json;

use crate::arrays::{named, samples};
use crate::models::Model;
use crate::runtime::Runtime;
use crate::tool::cli::embedded;
use crate::watching::{detached, watched};

/// See the package.
#[pyclass(frozen, module = "onnx_diffprune._native")]
pub(crate) struct Network(onnx_diffprune::networks::Network);

/// Parses an option by its name on the command line.
fn choice<T: ValueEnum>(name: &str, text: &str) -> Result<T, Error> {
    T::from_str(text, true).map_err(|_| {
        let choices = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let names: Vec<String> = choices.map(|choice| choice.get_name().to_owned()).collect();
        Error::usage(format!("{name}: expected one of {}, found {text:?}", names.join(", ")))
    })
}

#[pymethods]
impl Network {
    #[new]
    fn new(
        py: Python<'_>,
        model: &Model,
        options: Vec<OsString>,
        inputs: Option<&Bound<'_, PyDict>>,
        runtime: Option<&Runtime>,
    ) -> PyResult<Self> {
        let (inputs, runtime) = (named(inputs)?, runtime.map(|runtime| runtime.0));
        detached(py, || embedded::network(options, &model.0, inputs, runtime.as_ref())).map(Self)
    }

    #[getter]
    fn notes(&self) -> Vec<String> {
        self.0.notes().to_vec()
    }

    fn loss<'py>(
        &self,
        py: Python<'py>,
        of: (PathBuf, Option<(f64, f64)>),
        extent: (usize, usize, u64),
        runtime: &Runtime,
        watch: Py<PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let ((data, data_range), (count, timesteps, seed)) = (of, extent);
        let runtime = runtime.0;
        let options = LossOptions { data_range, count, timesteps, seed, ..LossOptions::on(data) };
        let report = watched(py, watch, |mut watcher| {
            self.0.loss(&runtime, &options, &mut |progress| watcher.hear(Some(progress)))
        })?;
        let losses: Vec<_> = report.losses.iter().map(|(t, loss)| json!({"t": t, "loss": loss})).collect();
        let report = json!({
            "samples": report.source,
            "process": report.process,
            "seed": seed,
            "mean": report.mean(),
            "losses": losses,
        });
        Ok(pythonize(py, &report)?)
    }

    #[expect(clippy::too_many_arguments, reason = "all are named in Python")]
    fn sample(
        &self,
        py: Python<'_>,
        extent: (usize, Option<usize>, u64),
        sampler: &str,
        skip: &str,
        eta: f64,
        runtime: &Runtime,
        watch: Py<PyAny>,
    ) -> PyResult<GeneratedSamples> {
        let (count, steps, seed) = extent;
        let runtime = runtime.0;
        let drawn = watched(py, watch, |mut watcher| {
            let sampler: Sampler = choice("sampler", sampler)?;
            let skip: Skip = choice("skip", skip)?;
            let steps = steps.unwrap_or(sampler.default_steps());
            let options = SampleOptions { steps, sampler, eta, skip, count, seed, ..SampleOptions::default() };
            self.0.sample(&runtime, &options, &mut |progress| watcher.hear(Some(progress)))
        })?;
        Ok(GeneratedSamples(drawn))
    }
}

/// See the package.
#[pyclass(frozen, module = "onnx_diffprune._native")]
pub(crate) struct GeneratedSamples(onnx_diffprune::networks::GeneratedSamples);

#[pymethods]
impl GeneratedSamples {
    #[getter]
    fn values<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        samples(py, &self.0.values).into_any()
    }

    #[getter]
    fn report<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let drawn = &self.0;
        let report = json!({
            "roles": drawn.roles,
            "process": drawn.process,
            "conditioning_given": drawn.conditioning_given,
            "seconds": drawn.seconds,
        });
        Ok(pythonize(py, &report)?)
    }

    fn png<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = detached(py, || self.0.png())?;
        Ok(PyBytes::new(py, &bytes))
    }

    fn save(&self, py: Python<'_>, png: Option<PathBuf>, npy: Option<PathBuf>) -> PyResult<()> {
        detached(py, || self.0.save(png.as_deref(), npy.as_deref()))
    }
}
