//! The error of the library: what was expected, what was found, what to do.

use std::fmt;
use std::path::{Path, PathBuf};

/// What kind of failure an [`Error`] is; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file or an argument is broken or can't be used (exit code 2).
    Input,
    /// The request is sound but can't be met: nothing to prune, a verification that failed (exit code 1).
    Unmet,
}

/// A failure with everything that a user needs to act on it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    file: Option<PathBuf>,
    node: Option<Box<(String, String)>>,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, file: None, node: None, message: message.into(), hint: None, source: None }
    }

    /// A file that is broken or can't be used.
    pub fn input(file: &Path, message: impl Into<String>) -> Self {
        Self { file: Some(file.to_owned()), ..Self::new(ErrorKind::Input, message) }
    }

    /// An argument that makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Input, message)
    }

    /// A sound request that can't be met.
    pub fn unmet(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unmet, message)
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

    /// The exit code of a run that ends with this error: 1 if the request can't be met, 2 for broken input.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::Input => 2,
            ErrorKind::Unmet => 1,
        }
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
