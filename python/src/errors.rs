//! Converts errors of the library to exceptions. The exception classes are defined in Python, in
//! `onnx_diffprune.errors`.

use std::error::Error as _;

use onnx_diffprune::{Error, ErrorKind};
use pyo3::prelude::*;
use pythonize::pythonize;
use serde_json::Value;

/// Returns the name of the exception class for a kind of error.
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
        // The base class, for kinds added later.
        _ => "DiffpruneError",
    }
}

/// Creates the exception for an error, with the report of the work done before the error, if there is one.
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
    // If the conversion fails, returns the exception of that failure.
    made().unwrap_or_else(|failed| failed)
}

/// Conversion of a library result to a Python result.
pub(crate) trait Raised<T> {
    /// Returns the value, or raises the exception.
    fn raised(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> Raised<T> for Result<T, Error> {
    fn raised(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| exception(py, &error, None))
    }
}
