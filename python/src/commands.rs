//! The command line: as a program, and as calls that return what a command prints.

use std::ffi::OsString;
use std::io::Write;

use pyo3::prelude::*;
use pythonize::pythonize;

use crate::tool::cli::embedded;
use crate::watching::watched;

/// Runs the program with these arguments, the first of which is the program name. Returns the exit code.
#[pyfunction]
pub(crate) fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| {
        let code = embedded::program(arguments);
        // Rust does not own the end of this process, so nothing else flushes standard output. A closed pipe is not an
        // error.
        let _ = std::io::stdout().flush();
        code
    })
}

/// Runs a command. Returns what it prints as JSON, and whether its checks passed.
#[pyfunction]
pub(crate) fn call<'py>(
    py: Python<'py>,
    arguments: Vec<OsString>,
    watch: Py<PyAny>,
) -> PyResult<(Bound<'py, PyAny>, bool)> {
    let outcome = watched(py, watch, |mut watcher| embedded::call(arguments, move |progress| watcher.hear(progress)))?;
    Ok((pythonize(py, &outcome.report)?, outcome.passed))
}

/// Returns the commands with their arguments.
#[pyfunction]
pub(crate) fn commands(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    Ok(pythonize(py, &embedded::commands())?)
}
