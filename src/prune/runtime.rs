//! ONNX Runtime, as callers of the library hold it.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::runtime::{self, Device, DeviceStatus};

/// An opened ONNX Runtime library.
///
/// A process can load only one ONNX Runtime library and can't unload it. The first successful call of [`Runtime::open`]
/// decides for the whole process; later calls return the same library. This is the only global state of this crate.
/// Nothing opens ONNX Runtime implicitly: functions that need it take it as an argument.
#[derive(Clone, Copy, Debug)]
pub struct Runtime(pub(super) &'static runtime::Runtime);

impl Runtime {
    /// Opens the library at a path or in a folder. Without a path, it searches `ORT_DYLIB_PATH`, the folder of the
    /// executable, the Python environment, and the system.
    ///
    /// # Errors
    /// Fails with [`crate::error::ErrorKind::RuntimeMissing`] if no library can be used, or if another library is
    /// already open.
    pub fn open(library: Option<&Path>) -> Result<Self, Error> {
        Ok(Self(runtime::Runtime::open(library)?))
    }

    /// Sets options for the execution providers of all devices except the CPU, by their names in ONNX Runtime, such as
    /// `gpu_mem_limit` or `use_tf32` of CUDA. They apply to everything that this process runs on a device afterwards,
    /// and override the tool's settings. An option that the provider does not know makes the device unavailable.
    pub fn set_provider_options(options: Vec<(String, String)>) {
        runtime::Runtime::set_provider_options(options);
    }

    /// Declares that this process runs in Python with packages in this folder (`site-packages`). If no library is
    /// named, ONNX Runtime is searched there first, and messages name the package that provides it. Only the first call
    /// counts.
    pub fn set_python_packages(folder: impl Into<PathBuf>) {
        runtime::Runtime::set_python_packages(folder.into());
    }

    /// Returns the version that the library reports, for example `1.31.1`.
    pub fn version(&self) -> &str {
        self.0.version()
    }

    /// Returns the file that the library was loaded from.
    pub fn library(&self) -> &Path {
        self.0.library()
    }

    /// Describes how the library was found, in words.
    pub fn how(&self) -> &'static str {
        self.0.how()
    }

    /// Returns the execution providers that the library was built with, in its order of preference. Some may not be
    /// usable on this machine, see [`Runtime::device_status`].
    pub fn execution_providers(&self) -> Vec<String> {
        self.0.execution_providers()
    }

    /// Tests whether a device can be used: loads the libraries that it needs and runs a model with one node.
    pub fn device_status(&self, device: Device) -> DeviceStatus {
        self.0.device_status(device)
    }
}

/// Returns the runtime, or an error that `what` needs it.
pub(super) fn needed(runtime: Option<Runtime>, what: &str) -> Result<&'static runtime::Runtime, Error> {
    runtime.map(|runtime| runtime.0).ok_or_else(|| {
        Error::runtime_missing(format!("{what} needs ONNX Runtime, but none was passed"))
            .hint("pass a runtime that Runtime::open returns")
    })
}
