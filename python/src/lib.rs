//! The extension module `onnx_diffprune._native`: the library and its command line for Python.
//!
//! Nothing in this module is public. Users see the package around it, `python/onnx_diffprune`, which adds types and
//! documentation. This module converts values between the languages, releases the GIL while the library works, and
//! checks for Ctrl-C.

mod arrays;
mod commands;
mod cuts;
mod errors;
mod models;
mod network;
mod runtime;
mod watching;

/// The command line is compiled from its place in `src`. It is not part of the library and uses only the public API.
#[path = "../../src"]
mod tool {
    pub(crate) mod cli;
}

use pyo3::prelude::*;

/// See `_native.pyi`.
#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::commands::{call, commands, main};
    #[pymodule_export]
    use crate::cuts::{Cut, Scores, Staged};
    #[pymodule_export]
    use crate::models::{Analysis, Model};
    #[pymodule_export]
    use crate::network::{GeneratedSamples, Network};
    #[pymodule_export]
    use crate::runtime::{Runtime, candidates, library_providers, set_provider_options, set_python_packages};
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
