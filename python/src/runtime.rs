//! ONNX Runtime.

use std::path::PathBuf;

use onnx_diffprune::{Device, Error, devices};
use pyo3::prelude::*;
use pythonize::pythonize;
use serde_json::json;

use crate::watching::detached;

/// See the package.
#[pyclass(frozen, module = "onnx_diffprune._native")]
pub(crate) struct Runtime(pub(crate) onnx_diffprune::Runtime);

#[pymethods]
impl Runtime {
    #[new]
    fn new(py: Python<'_>, library: Option<PathBuf>) -> PyResult<Self> {
        detached(py, || onnx_diffprune::Runtime::open(library.as_deref())).map(Self)
    }

    #[getter]
    fn version(&self) -> &str {
        self.0.version()
    }

    #[getter]
    fn library(&self) -> PathBuf {
        self.0.library().to_owned()
    }

    #[getter]
    fn how(&self) -> &'static str {
        self.0.how()
    }

    #[getter]
    fn execution_providers(&self) -> Vec<String> {
        self.0.execution_providers()
    }

    fn device_status<'py>(&self, py: Python<'py>, device: &str) -> PyResult<Bound<'py, PyAny>> {
        let runtime = self.0;
        let status = detached(py, || {
            let device: Device = device.parse().map_err(|error| Error::usage(format!("device: {error}")))?;
            Ok(runtime.device_status(device))
        })?;
        let status = json!({
            "device": status.device.to_string(),
            "usable": status.refused.is_none(),
            "refused": status.refused,
            "preloaded": status.preloaded,
        });
        Ok(pythonize(py, &status)?)
    }
}

/// Lists the places where ONNX Runtime is searched for, and the library found at each.
#[pyfunction]
pub(crate) fn candidates(py: Python<'_>, library: Option<PathBuf>) -> PyResult<Bound<'_, PyAny>> {
    let places: Vec<_> = devices::candidates(library.as_deref())
        .into_iter()
        .map(
            |place| json!({"place": place.place, "how": place.how, "library": place.library, "refused": place.refused}),
        )
        .collect();
    Ok(pythonize(py, &places)?)
}

/// Returns the version of a library and its execution providers.
#[pyfunction]
pub(crate) fn library_providers(py: Python<'_>, library: PathBuf) -> PyResult<(String, Vec<String>)> {
    detached(py, || devices::library_providers(&library))
}

/// Sets options for the execution providers of devices.
#[pyfunction]
pub(crate) fn set_provider_options(options: Vec<(String, String)>) {
    onnx_diffprune::Runtime::set_provider_options(options);
}

/// Sets the folder of the packages of this Python environment.
#[pyfunction]
pub(crate) fn set_python_packages(folder: PathBuf) {
    onnx_diffprune::Runtime::set_python_packages(folder);
}
