//! The command line: as the program that it is, and as calls that return what it prints.

use std::ffi::OsString;
use std::io::Write;

use pyo3::prelude::*;
use pythonize::pythonize;

use crate::tool::cli::embedded;
use crate::watching::watched;

/// Runs the program with these arguments, of which the first is its name; returns the exit code.
#[pyfunction]
pub(crate) fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| {
        let code = embedded::program(arguments);
        // Nothing else does, where Rust does not own the end of the process. A closed pipe is no error.
        let _ = std::io::stdout().flush();
        code
    })
}

/// Runs a command; returns what it prints as JSON, and whether what it checks holds.
#[pyfunction]
pub(crate) fn call<'py>(
    py: Python<'py>,
    arguments: Vec<OsString>,
    watch: Py<PyAny>,
) -> PyResult<(Bound<'py, PyAny>, bool)> {
    let outcome = watched(py, watch, |mut watcher| embedded::call(arguments, move |progress| watcher.hear(progress)))?;
    Ok((pythonize(py, &outcome.report)?, outcome.passed))
}

/// The commands with their arguments.
#[pyfunction]
pub(crate) fn commands(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    Ok(pythonize(py, &embedded::commands())?)
}
