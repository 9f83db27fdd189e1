//! The errors of the library as exceptions. Their classes are written in Python, `onnx_diffprune.errors`.

use std::error::Error as _;

use onnx_diffprune::{Error, ErrorKind};
use pyo3::prelude::*;
use pythonize::pythonize;
use serde_json::Value;

/// The class of the exceptions of a kind.
fn class(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Unreadable => "UnreadableError",
        ErrorKind::InvalidModel => "InvalidModelError",
        ErrorKind::Unsupported => "UnsupportedError",
        ErrorKind::Unmet => "UnmetError",
        ErrorKind::VerificationFailed => "VerificationFailedError",
        ErrorKind::RuntimeMissing => "RuntimeMissingError",
        ErrorKind::Io => "OutputError",
        ErrorKind::Usage => "UsageError",
        ErrorKind::Cancelled => "CancelledError",
        // The base of them all, for kinds that are added.
        _ => "DiffpruneError",
    }
}

/// The exception for an error, with the report of what was done before, where there is one.
pub(crate) fn exception(py: Python<'_>, error: &Error, report: Option<&Value>) -> PyErr {
    let mut causes = Vec::new();
    let mut cause = error.source();
    while let Some(source) = cause {
        causes.push(source.to_string());
        cause = source.source();
    }
    let made = || -> PyResult<PyErr> {
        let report = report.map(|report| pythonize(py, report)).transpose()?;
        let class = py.import("onnx_diffprune.errors")?.getattr(class(error.kind()))?;
        let exception = class.call1((error.to_string(), error.advice(), error.exit_code(), causes, report))?;
        Ok(PyErr::from_value(exception))
    };
    // What failed on the way is an exception too.
    made().unwrap_or_else(|failed| failed)
}

/// A result of the library as one of Python.
pub(crate) trait Raised<T> {
    /// The value, or the exception.
    fn raised(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> Raised<T> for Result<T, Error> {
    fn raised(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| exception(py, &error, None))
    }
}
