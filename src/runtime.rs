//! ONNX Runtime: finding its library, opening it, and running models with it.
//!
//! This is the only part of the package that uses the `ort` crate. [`Runtime::open`] takes a path, or none, and returns a
//! [`Runtime`], of which there is at most one per process. It creates [`Session`]s from models, which map [`Array`]s to
//! arrays. `ort` only gets libraries that [`probe()`] has accepted, because it would panic or hang on one that is too old
//! or is not ONNX Runtime at all.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

mod bound;
mod device;
mod elf;
mod error;
mod execution;
mod latency;
mod locate;
mod memory;
mod placement;
mod preload;
mod probe;
mod search_paths;

mod profile;

mod provider;
pub mod random_inputs;
mod session;
#[cfg(feature = "ort-training")]
mod training;
mod transfer;
mod values;

pub use crate::array::{Array, ArrayData, ElementType};
pub use bound::{BoundSession, DeviceTensor};
pub use device::{Device, UnknownDevice};
pub use error::{RuntimeError, RuntimeErrorKind};
pub use execution::{DeviceStatus, Execution};
pub use latency::{Latency, interleaved_latency};
pub use locate::{Candidate, LibraryFound, candidates, find_library};
pub use memory::available_memory;
pub(crate) use memory::peak_of;
pub use placement::{Placement, ProviderNodes};
pub use probe::{MINIMUM_VERSION, library_providers, probe};
pub use profile::{OperatorTime, node_times, operator_times};
pub use session::{IoInfo, Optimization, Session, SessionOptions};
#[cfg(feature = "ort-training")]
pub use training::{TrainingModels, TrainingSession};
pub use transfer::Transfer;

/// An opened ONNX Runtime library. Clones are handles to the same library.
#[derive(Clone)]
pub struct Runtime {
    /// The file that the library was loaded from.
    library: PathBuf,
    /// How that file was found.
    how: &'static str,
    /// The version that the library reports.
    version: String,
    /// The environment of sessions. It is kept for the whole process, since the library can't be unloaded safely.
    environment: ort::environment::Environment,
}

/// The library of this process. `None`: none was opened yet.
static OPENED: Mutex<Option<&'static Runtime>> = Mutex::new(None);

impl Runtime {
    /// Opens the library that [`find_library`] finds, or returns the one that this process has already opened.
    ///
    /// A process can have only one ONNX Runtime: asking explicitly for another one than the open one is an error. After an
    /// error, another attempt is possible.
    pub fn open(explicit: Option<&Path>) -> Result<&'static Runtime, RuntimeError> {
        // A panic while the lock was held leaves either nothing or a complete runtime, so poisoning is harmless.
        let mut opened = OPENED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(runtime) = *opened {
            return match explicit {
                Some(_) => {
                    let wanted = find_library(explicit)?.path;
                    if wanted == runtime.library {
                        Ok(runtime)
                    } else {
                        Err(RuntimeError::AlreadyOpen { open: runtime.library.clone(), wanted })
                    }
                }
                None => Ok(runtime),
            };
        }
        let LibraryFound { path, how, version } = find_library(explicit)?;
        let refused = |reason: String| RuntimeError::LibraryRefused { path: path.clone(), reason };
        let environment = ort::init_from(&path)
            .map_err(|error| refused(error.to_string()))?
            .with_name("onnx-diffprune")
            // Without this logger, the library would write to standard error. Failures are returned as errors, so its
            // messages are dropped.
            .with_logger(std::sync::Arc::new(|_, _, _, _, _| {}))
            .with_telemetry(false)
            .build()
            .map_err(|error| refused(error.to_string()))?;
        environment.set_log_level(ort::logging::LogLevel::Fatal);
        let runtime = Box::leak(Box::new(Runtime { library: path, how, version, environment }));
        *opened = Some(runtime);
        Ok(runtime)
    }

    /// Sets options of the execution provider of every device but the CPU, with ONNX Runtime's names, such as
    /// `gpu_mem_limit` or `use_tf32` of CUDA. They apply to all sessions that this process creates afterwards and override
    /// those that the tool sets itself. An option that the provider does not know makes the device unavailable.
    pub fn set_provider_options(options: Vec<(String, String)>) {
        provider::set_given(options);
    }

    /// Sets the folder of the Python packages if this process runs in Python: ONNX Runtime is searched there first. Only
    /// the first call has an effect.
    pub fn set_python_packages(folder: PathBuf) {
        search_paths::set_own_packages(folder);
    }

    /// Returns the version that the library reports, for example `1.31.1`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Returns the file that the library was loaded from.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Returns how the library was found, in words.
    pub fn how(&self) -> &'static str {
        self.how
    }

    /// Returns the execution providers that the library was built with, in its own order of preference. Some of them may
    /// not be usable on this machine, see [`Runtime::device_status`].
    pub fn execution_providers(&self) -> Vec<String> {
        probe::available_providers()
    }

    /// Tests whether a device can be used: loads the libraries that it needs and runs a model of one node.
    pub fn device_status(&self, device: Device) -> DeviceStatus {
        execution::status(self, device)
    }

    /// Creates a session for the model with these bytes.
    ///
    /// If the model has external data, [`SessionOptions::external_data_folder`] must be the folder of their files.
    pub fn session_from_bytes(&self, model: &[u8], options: &SessionOptions) -> Result<Session, RuntimeError> {
        session::from_bytes(self, model, options)
    }

    /// Creates a session for the model in a file. External data is found beside the file.
    pub fn session_from_file(&self, path: &Path, options: &SessionOptions) -> Result<Session, RuntimeError> {
        session::from_file(self, path, options)
    }

    /// Creates a training session.
    ///
    /// # Errors
    /// The library has no training API, or can't load the models or the checkpoint.
    #[cfg(feature = "ort-training")]
    pub fn training_session(
        &self,
        models: &TrainingModels<'_>,
        options: &SessionOptions,
    ) -> Result<TrainingSession, RuntimeError> {
        training::open(self, models, options)
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("library", &self.library).field("version", &self.version).finish()
    }
}

/// Returns freed memory to the system, if the C library can (glibc).
pub(crate) fn release_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "calling the C library; it takes no pointers and only touches what is free")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes the C library keep freed memory for later allocations, also large blocks, which it otherwise requests from the
/// system and returns each time. [`release_free_memory`] still returns it. Returns whether the C library does so (glibc).
pub(crate) fn keep_free_memory() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(
            unsafe_code,
            reason = "calling the C library; it takes no pointers and changes when memory is returned"
        )]
        // Versions that limit the threshold reject this value; large blocks can then be disabled altogether.
        unsafe {
            let is_kept =
                libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX) == 1 || libc::mallopt(libc::M_MMAP_MAX, 0) == 1;
            is_kept && libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX) == 1
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    false
}

/// Checks that there is memory to read this many bytes.
///
/// # Errors
/// There is not enough memory; the error describes this in words.
pub(crate) fn check_memory(bytes: u64) -> Result<(), String> {
    match available_memory() {
        Some(available) if bytes > available => Err(format!(
            "it needs {:.1} GB of memory, but only {:.1} GB are available",
            bytes as f64 / 1e9,
            available as f64 / 1e9
        )),
        _ => Ok(()),
    }
}
