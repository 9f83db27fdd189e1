//! The errors of ONNX Runtime and of this package's use of it.

use std::path::PathBuf;

use super::device::Device;
use super::locate::Candidate;
use super::search_paths;
use crate::array::ElementType;
use crate::error::Error;

/// The kind of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeErrorKind {
    /// There is no usable library: the user must install one or pass its path.
    Library,
    /// The library rejects the model, or an input or output has an unsupported type.
    Model,
    /// The arrays for a run do not match the inputs of the model.
    Input,
    /// The model was accepted, but a run failed.
    Run,
    /// The requested device can't be used, or not for the whole model.
    Device,
}

/// An error of finding, opening or using ONNX Runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No library was found.
    #[error("no usable ONNX Runtime library was found; searched:{}", listed(.candidates))]
    LibraryMissing {
        /// All files and folders that were searched.
        candidates: Vec<Candidate>,
    },
    /// The library that was found is not ONNX Runtime, or is too old.
    #[error("{} cannot be used as the ONNX Runtime library: {reason}", .path.display())]
    LibraryRefused {
        /// The file, or the folder that contains none.
        path: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
    /// A second library was requested.
    #[error("this process already uses {}, it cannot also use {}", .open.display(), .wanted.display())]
    AlreadyOpen {
        /// The library in use.
        open: PathBuf,
        /// The requested library.
        wanted: PathBuf,
    },
    /// The library was built without the training API.
    #[cfg(feature = "ort-training")]
    #[error("{} has no training API", .path.display())]
    NoTraining {
        /// The library in use.
        path: PathBuf,
    },
    /// The library can't create a session from the model.
    #[error("ONNX Runtime does not load the model: {message}")]
    ModelRejected {
        /// The message of the library.
        message: String,
    },
    /// A file or folder needed for passing the model to the library could not be created.
    #[error("cannot prepare the model in {}: {source}", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// An input or output is not a tensor of a supported element type.
    #[error("input or output {name:?} is {found}, which is not supported")]
    UnsupportedType {
        /// The name of the input or output.
        name: String,
        /// Its type.
        found: String,
    },
    /// The model has no input of this name.
    #[error("the model has no input {name:?}; its inputs are {}", .inputs.join(", "))]
    UnknownInput {
        /// The given name.
        name: String,
        /// The names of the model's inputs.
        inputs: Vec<String>,
    },
    /// An input was not given.
    #[error("input {name:?} of the model is missing")]
    MissingInput {
        /// The name of the input.
        name: String,
    },
    /// An input has another element type than the model declares.
    #[error("input {name:?} must be {expected}, found {found}")]
    InputType {
        /// The name of the input.
        name: String,
        /// The declared element type.
        expected: ElementType,
        /// The element type of the array.
        found: ElementType,
    },
    /// An input has another shape than the model declares.
    #[error("input {name:?} must be {expected}, found {found:?}")]
    InputShape {
        /// The name of the input.
        name: String,
        /// The declared dimensions.
        expected: String,
        /// The dimensions of the array.
        found: Vec<usize>,
    },
    /// The device can't be used at all.
    #[error("device {device} cannot be used: {reason}")]
    DeviceUnavailable {
        /// The requested device.
        device: Device,
        /// The reason.
        reason: String,
    },
    /// The device runs only a part of the model, or none.
    #[error("device {device} does not run the whole model: {found}")]
    FellBack {
        /// The requested device.
        device: Device,
        /// The nodes that run elsewhere.
        found: String,
    },
    /// A run failed.
    #[error("ONNX Runtime failed to run the model: {message}")]
    RunFailed {
        /// The message of the library.
        message: String,
    },
}

impl RuntimeError {
    /// Returns the kind of the error.
    pub fn kind(&self) -> RuntimeErrorKind {
        match self {
            Self::LibraryMissing { .. } | Self::LibraryRefused { .. } | Self::AlreadyOpen { .. } => {
                RuntimeErrorKind::Library
            }
            #[cfg(feature = "ort-training")]
            Self::NoTraining { .. } => RuntimeErrorKind::Library,
            Self::ModelRejected { .. } | Self::UnsupportedType { .. } | Self::Folder { .. } => RuntimeErrorKind::Model,
            Self::UnknownInput { .. }
            | Self::MissingInput { .. }
            | Self::InputType { .. }
            | Self::InputShape { .. } => RuntimeErrorKind::Input,
            Self::RunFailed { .. } => RuntimeErrorKind::Run,
            Self::DeviceUnavailable { .. } | Self::FellBack { .. } => RuntimeErrorKind::Device,
        }
    }

    /// Returns what the user can do about it, as one line.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::LibraryMissing { .. } | Self::LibraryRefused { .. } if search_paths::has_own_packages() => Some(
                "`pip install \"onnx-diffprune[cpu]\"` installs ONNX Runtime beside this package ([gpu] instead of \
                 [cpu] for CUDA); or set ORT_DYLIB_PATH to the library",
            ),
            Self::LibraryMissing { .. } | Self::LibraryRefused { .. } => Some(
                "run `pip install onnxruntime` in a virtual environment `.venv` of the project, or pass the library \
                 with --onnxruntime or ORT_DYLIB_PATH",
            ),
            Self::DeviceUnavailable { .. } => Some(
                "`onnx-diffprune runtime` shows what each device lacks; --device cpu needs nothing, --allow-fallback \
                 runs on the CPU instead",
            ),
            Self::FellBack { .. } => Some("--allow-fallback runs on the CPU what the device does not support"),
            #[cfg(feature = "ort-training")]
            Self::NoTraining { .. } => Some(
                "pass a build of ONNX Runtime 1.19 with training enabled (--enable_training_apis) with \
                 --onnxruntime or ORT_DYLIB_PATH",
            ),
            _ => None,
        }
    }
}

impl From<RuntimeError> for Error {
    fn from(error: RuntimeError) -> Self {
        let text = error.to_string();
        let public = match error.kind() {
            RuntimeErrorKind::Library => Self::runtime_missing(text),
            _ => Self::unmet(text),
        };
        match error.hint() {
            Some(hint) => public.hint(hint),
            None => public,
        }
    }
}

/// Formats the candidates as indented lines.
fn listed(candidates: &[Candidate]) -> String {
    candidates.iter().map(|candidate| format!("\n  {candidate}")).collect()
}

/// Returns the library's message on one line.
pub(super) fn plain<R>(error: &ort::Error<R>) -> String {
    error.message().trim().replace('\n', " ")
}
