//! ONNX Runtime as callers of the library hold it.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::runtime::{self, Device, DeviceStatus};

/// ONNX Runtime, opened.
///
/// A process can load only one library of ONNX Runtime, and never lets go of it: the first call of [`Runtime::open`]
/// that succeeds decides for the whole process, later ones return the same. This is the only state that the library
/// keeps outside its values. Nothing opens ONNX Runtime by itself: what needs it takes it as an argument.
#[derive(Clone, Copy, Debug)]
pub struct Runtime(pub(super) &'static runtime::Runtime);

impl Runtime {
    /// Opens the library at a path (or in a folder), or looks for one: `ORT_DYLIB_PATH`, beside the executable, the
    /// Python environment, the system.
    ///
    /// # Errors
    /// No library can be used, or another one than the open one is asked for; of the kind
    /// [`crate::error::ErrorKind::RuntimeMissing`].
    pub fn open(library: Option<&Path>) -> Result<Self, Error> {
        Ok(Self(runtime::Runtime::open(library)?))
    }

    /// Gives options to the execution provider of every device but the CPU, by the names of ONNX Runtime, such as
    /// `gpu_mem_limit` or `use_tf32` of CUDA. They hold for all that this process runs on a device afterwards and overrule what
    /// the tool sets itself; an option that the provider does not know makes the device unavailable.
    pub fn set_provider_options(options: Vec<(String, String)>) {
        runtime::Runtime::set_provider_options(options);
    }

    /// Says that this process runs in Python, whose packages lie in this folder (`site-packages`): where no library is named,
    /// ONNX Runtime is looked for there first, and messages name the package that brings it. The first call counts.
    pub fn set_python_packages(folder: impl Into<PathBuf>) {
        runtime::Runtime::set_python_packages(folder.into());
    }

    /// The version that the library reports, for example `1.31.1`.
    pub fn version(&self) -> &str {
        self.0.version()
    }

    /// The file that the library was loaded from.
    pub fn library(&self) -> &Path {
        self.0.library()
    }

    /// How the library was found, in words.
    pub fn how(&self) -> &'static str {
        self.0.how()
    }

    /// The execution providers that the library was built with, in its own order of preference. Not all of them need to
    /// be usable on this machine, see [`Runtime::device_status`].
    pub fn execution_providers(&self) -> Vec<String> {
        self.0.execution_providers()
    }

    /// Whether a device can be used, by using it: the libraries that it needs are loaded and a model of one node runs.
    pub fn device_status(&self, device: Device) -> DeviceStatus {
        self.0.device_status(device)
    }
}

/// The runtime that a call needs.
pub(super) fn needed(runtime: Option<Runtime>, what: &str) -> Result<&'static runtime::Runtime, Error> {
    runtime.map(|runtime| runtime.0).ok_or_else(|| {
        Error::runtime_missing(format!("{what} needs ONNX Runtime; none is given"))
            .hint("pass one that Runtime::open opens")
    })
}
