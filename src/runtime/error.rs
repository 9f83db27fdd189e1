//! What can go wrong between this package and ONNX Runtime.

use std::path::PathBuf;

use super::device::Device;
use super::locate::Candidate;
use super::places;
use crate::array::ElementType;
use crate::error::Error;

/// What an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeErrorKind {
    /// There is no usable library: the user must install or name one.
    Library,
    /// The library does not accept the model, or it has inputs or outputs of kinds that are not supported.
    Model,
    /// The arrays for a run do not fit the model.
    Input,
    /// The model was accepted, but a run failed.
    Run,
    /// The device that was asked for can't be used, or not for all of the model.
    Device,
}

/// An error from looking for, opening or using ONNX Runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No library was found anywhere.
    #[error("no usable ONNX Runtime library was found; looked at:{}", listed(.candidates))]
    LibraryMissing {
        /// Every place that was looked at.
        candidates: Vec<Candidate>,
    },
    /// What was found is not an ONNX Runtime, or one that is too old.
    #[error("{} cannot be used as the ONNX Runtime library: {reason}", .path.display())]
    LibraryRefused {
        /// The file, or the folder in which there is none.
        path: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
    /// A second library was asked for.
    #[error("this process already uses {}, it cannot also use {}", .open.display(), .wanted.display())]
    AlreadyOpen {
        /// The library in use.
        open: PathBuf,
        /// The library that was asked for.
        wanted: PathBuf,
    },
    /// The library was built without what a training session needs.
    #[cfg(feature = "ort-training")]
    #[error("{} has no training API", .path.display())]
    NoTraining {
        /// The library in use.
        path: PathBuf,
    },
    /// The library does not make a session from the model.
    #[error("ONNX Runtime does not load the model: {message}")]
    ModelRejected {
        /// The library's own words.
        message: String,
    },
    /// The file system refused what was needed to give the model to the library.
    #[error("cannot prepare the model in {}: {source}", .folder.display())]
    Folder {
        /// The folder in question.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An input or output is not a tensor of a supported element type.
    #[error("{name:?} is {found}, which is not supported")]
    UnsupportedType {
        /// The name of the input or output.
        name: String,
        /// Its type.
        found: String,
    },
    /// The model has no input of this name.
    #[error("the model has no input {name:?}; it has {}", .inputs.join(", "))]
    UnknownInput {
        /// The name that was given.
        name: String,
        /// The names that there are.
        inputs: Vec<String>,
    },
    /// An input was not given.
    #[error("input {name:?} of the model is missing")]
    MissingInput {
        /// The name of the input.
        name: String,
    },
    /// An input was given with another element type than the model declares.
    #[error("input {name:?} must be {expected}, found {found}")]
    InputType {
        /// The name of the input.
        name: String,
        /// The declared element type.
        expected: ElementType,
        /// The element type of the array.
        found: ElementType,
    },
    /// An input was given with another shape than the model declares.
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
        /// The device that was asked for.
        device: Device,
        /// Why.
        reason: String,
    },
    /// The device runs only a part of the model, or none.
    #[error("device {device} does not run all of the model: {found}")]
    FellBack {
        /// The device that was asked for.
        device: Device,
        /// Which nodes run elsewhere.
        found: String,
    },
    /// A run failed.
    #[error("ONNX Runtime failed on the model: {message}")]
    RunFailed {
        /// The library's own words.
        message: String,
    },
}

impl RuntimeError {
    /// What the error is about.
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

    /// What the user can do about it, for a line of its own.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::LibraryMissing { .. } | Self::LibraryRefused { .. } if places::has_own_packages() => Some(
                "`pip install \"onnx-diffprune[cpu]\"` installs ONNX Runtime beside this package, [gpu] in place of [cpu] the one \
                 for CUDA; or name the library with ORT_DYLIB_PATH",
            ),
            Self::LibraryMissing { .. } | Self::LibraryRefused { .. } => Some(
                "`pip install onnxruntime` in a virtual environment `.venv` of the project, or name the library with \
                 --onnxruntime or ORT_DYLIB_PATH",
            ),
            Self::DeviceUnavailable { .. } => Some(
                "`onnx-diffprune runtime` shows what each device lacks; --device cpu needs nothing, --allow-fallback lets \
                 the CPU take over",
            ),
            Self::FellBack { .. } => Some("--allow-fallback lets the CPU run what the device does not"),
            #[cfg(feature = "ort-training")]
            Self::NoTraining { .. } => Some(
                "name a build of ONNX Runtime 1.19 with training enabled (--enable_training_apis) with \
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

/// The places as indented lines.
fn listed(candidates: &[Candidate]) -> String {
    candidates.iter().map(|candidate| format!("\n  {candidate}")).collect()
}

/// The library's message on one line.
pub(super) fn plain<R>(error: &ort::Error<R>) -> String {
    error.message().trim().replace('\n', " ")
}
