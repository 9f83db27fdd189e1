//! The error of the library: what happened, where, and what to do.

use std::fmt;
use std::path::{Path, PathBuf};

/// The kind of an [`Error`], for callers that handle kinds differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file can't be read, or its contents are not of the expected kind: a plan, samples, a scheduler configuration.
    Unreadable,
    /// The file is not an ONNX model, or the model contradicts itself or the specification of an operator.
    InvalidModel,
    /// The model or configuration is valid, but needs something that this version does not support.
    Unsupported,
    /// The request is valid but can't be met: nothing to prune, a target out of reach, too little memory.
    Unmet,
    /// A pruned file does not compute what the original computes under the cut; it was not written.
    VerificationFailed,
    /// ONNX Runtime is needed but can't be used: no library was found, or the given one does not work.
    RuntimeMissing,
    /// A file can't be written.
    Io,
    /// An argument is invalid, by itself or for this model.
    Usage,
    /// The caller's progress function asked to stop.
    Cancelled,
}

/// An error, with everything that a user needs to act on it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    /// Whether the input is at fault, not the request: determines the exit code.
    is_input: bool,
    file: Option<PathBuf>,
    node: Option<Box<(String, String)>>,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let is_input = match kind {
            ErrorKind::Unreadable
            | ErrorKind::InvalidModel
            | ErrorKind::RuntimeMissing
            | ErrorKind::Io
            | ErrorKind::Usage => true,
            ErrorKind::Unsupported | ErrorKind::Unmet | ErrorKind::VerificationFailed | ErrorKind::Cancelled => false,
        };
        Self { kind, is_input, file: None, node: None, message: message.into(), hint: None, source: None }
    }

    /// Creates the error of a file that can't be read or has the wrong kind of contents (exit code 2).
    pub fn unreadable(file: &Path, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unreadable, message).in_file(file)
    }

    /// Creates the error of an invalid model (exit code 2).
    pub(crate) fn invalid(file: &Path, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidModel, message).in_file(file)
    }

    /// Creates the error of a model that contradicts itself or the specification (exit code 2), with a hint to correct
    /// it.
    pub(crate) fn malformed(file: &Path, message: impl Into<String>) -> Self {
        Self::invalid(file, message)
            .hint("correct the model or export it again; onnx.checker.check_model(path, full_check=True) checks it too")
    }

    /// Creates the error of a file that can't be written (exit code 2).
    pub(crate) fn io(file: &Path, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Io, message).in_file(file)
    }

    /// Creates the error of an invalid argument (exit code 2).
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// Creates the error of a valid request that can't be met (exit code 1).
    pub fn unmet(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unmet, message)
    }

    /// Creates the error of a valid request that this version does not support (exit code 1).
    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// Creates the error of a failed verification (exit code 1).
    pub fn verification_failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::VerificationFailed, message)
    }

    /// Creates the error of a missing or unusable ONNX Runtime (exit code 2).
    pub(crate) fn runtime_missing(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::RuntimeMissing, message)
    }

    /// Creates the error of a run that the caller's progress function stopped (exit code 1).
    pub(crate) fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "cancelled")
    }

    /// Changes the kind but not the exit code, for instance for a file or argument that asks for something unsupported.
    #[must_use]
    pub fn of_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// Adds the node that caused the error.
    #[must_use]
    pub fn at_node(mut self, name: &str, op_type: impl Into<String>) -> Self {
        self.node = Some(Box::new((name.to_owned(), op_type.into())));
        self
    }

    /// Adds the file that caused the error, unless the error has one already.
    #[must_use]
    pub fn in_file(mut self, file: &Path) -> Self {
        self.file.get_or_insert_with(|| file.to_owned());
        self
    }

    /// Replaces the file `staged`, a temporary path, by its final path `file`.
    #[must_use]
    pub fn instead_of_file(mut self, staged: &Path, file: &Path) -> Self {
        if self.file.as_deref() == Some(staged) {
            self.file = Some(file.to_owned());
        }
        self
    }

    /// Replaces the folder `prepared` by its final path `place` in the file, the message and the hint.
    #[must_use]
    pub fn with_final_paths(mut self, (prepared, place): (&Path, &Path)) -> Self {
        if let Some(inside) = self.file.as_ref().and_then(|file| file.strip_prefix(prepared).ok()) {
            self.file = Some(place.join(inside));
        }
        let [from, to] = [prepared, place].map(|path| path.display().to_string());
        self.message = self.message.replace(&from, &to);
        self.hint = self.hint.map(|hint| hint.replace(&from, &to));
        self
    }

    /// Adds a hint: what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Returns the kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns the hint. `None`: there is no advice.
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Returns the exit code of a run that ends with this error: 1 if the request can't be met, 2 for wrong use or invalid
    /// input.
    pub fn exit_code(&self) -> u8 {
        if self.is_input { 2 } else { 1 }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        if let Some((name, op_type)) = self.node.as_deref() {
            write!(f, "node {name:?} ({op_type}): ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as _)
    }
}
