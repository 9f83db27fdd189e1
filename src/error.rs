//! The error of the library: what was expected, what was found, what to do.

use std::fmt;
use std::path::{Path, PathBuf};

/// What kind of failure an [`Error`] is, for callers that act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file can't be read, or is not what it is given as: a plan, samples, a scheduler's configuration.
    Unreadable,
    /// The file is no ONNX model, or one that contradicts itself or its operators' specifications.
    InvalidModel,
    /// The model or a configuration is sound, but needs something that this version does not know.
    Unsupported,
    /// The request is sound but can't be met: nothing to prune, a target out of reach, too little memory.
    Unmet,
    /// A pruned file does not compute what the original computes under the cut; it was not written.
    VerificationFailed,
    /// ONNX Runtime is needed and can't be used: there is none, or not the one that was named.
    RuntimeMissing,
    /// A file can't be written.
    Io,
    /// An argument makes no sense, by itself or for this model.
    Usage,
    /// The caller's progress function asked to stop.
    Cancelled,
}

/// A failure with everything that a user needs to act on it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    /// Whether what was given is at fault and not the request: decides the exit code.
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

    /// A file that can't be read or is not what it is given as (exit code 2).
    pub fn unreadable(file: &Path, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unreadable, message).in_file(file)
    }

    /// A model that contradicts itself (exit code 2).
    pub(crate) fn invalid(file: &Path, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidModel, message).in_file(file)
    }

    /// A file that can't be written (exit code 2).
    pub(crate) fn io(file: &Path, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Io, message).in_file(file)
    }

    /// An argument that makes no sense (exit code 2).
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, message)
    }

    /// A sound request that can't be met (exit code 1).
    pub fn unmet(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unmet, message)
    }

    /// A sound request that needs what this version does not know (exit code 1).
    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// A pruned file that does not compute what it must (exit code 1).
    pub fn verification_failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::VerificationFailed, message)
    }

    /// ONNX Runtime is needed and can't be used (exit code 2).
    pub(crate) fn runtime_missing(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::RuntimeMissing, message)
    }

    /// The caller's progress function asked to stop (exit code 1).
    pub(crate) fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "cancelled")
    }

    /// Another kind with the same exit code: for a file or argument that asks for something unsupported, say.
    #[must_use]
    pub fn of_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// Names the node at which it failed.
    #[must_use]
    pub fn at_node(mut self, name: &str, op_type: impl Into<String>) -> Self {
        self.node = Some(Box::new((name.to_owned(), op_type.into())));
        self
    }

    /// Names the file at which it failed, if none is named yet.
    #[must_use]
    pub fn in_file(mut self, file: &Path) -> Self {
        self.file.get_or_insert_with(|| file.to_owned());
        self
    }

    /// Names `file` where the error names `staged`, the place where it was prepared.
    #[must_use]
    pub fn instead_of_file(mut self, staged: &Path, file: &Path) -> Self {
        if self.file.as_deref() == Some(staged) {
            self.file = Some(file.to_owned());
        }
        self
    }

    /// The same of a file that was prepared in one folder and has its place in another: the error speaks of the place.
    #[must_use]
    pub fn told_elsewhere(mut self, (prepared, place): (&Path, &Path)) -> Self {
        if let Some(inside) = self.file.as_ref().and_then(|file| file.strip_prefix(prepared).ok()) {
            self.file = Some(place.join(inside));
        }
        let [from, to] = [prepared, place].map(|path| path.display().to_string());
        self.message = self.message.replace(&from, &to);
        self.hint = self.hint.map(|hint| hint.replace(&from, &to));
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What to do about it, where there is something.
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The exit code of a run that ends with this error: 1 if the request can't be met, 2 for wrong use or broken input.
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
