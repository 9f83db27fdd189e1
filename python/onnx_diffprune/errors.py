"""The exceptions of the package: one class for each kind of failure, with a common base class.

Every message names the file, and the node with its operator if one is at fault, and states what was expected and found.
`DiffpruneError.hint` states what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "CancelledError",
    "DiffpruneError",
    "DiffpruneWarning",
    "InvalidModelError",
    "OutputError",
    "RuntimeMissingError",
    "UnmetError",
    "UnreadableError",
    "UnsupportedError",
    "UsageError",
    "VerificationFailedError",
]


class DiffpruneError(Exception):
    """An error, with the information needed to resolve it."""

    message: str
    """The message: what went wrong, and where."""

    hint: str | None
    """What to do about it. `None`: there is no advice."""

    exit_code: int
    """The exit code of a command that fails with it: 1 if the request can't be met, 2 for invalid usage or input."""

    causes: list[str]
    """The messages of the causes, the nearest cause first."""

    report: dict[str, Any] | None
    """The results from before the failure: the object that the command prints with ``--format json``."""

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        exit_code: int = 1,
        causes: Sequence[str] = (),
        report: dict[str, Any] | None = None,
    ) -> None:
        """Create an exception. The library calls this."""
        super().__init__(message, hint, exit_code, list(causes), report)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
        self.causes = list(causes)
        self.report = report

    def __str__(self) -> str:
        """Return the message, with the hint on a line of its own."""
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class UnreadableError(DiffpruneError):
    """A file can't be read, or has the wrong content: a plan, samples, a scheduler's configuration."""


class InvalidModelError(DiffpruneError):
    """The file is not an ONNX model, or it contradicts itself or its operators' specifications."""


class UnsupportedError(DiffpruneError):
    """The model or a configuration is valid, but needs something that this version does not support."""


class UnmetError(DiffpruneError):
    """The request is valid but can't be met: nothing to prune, a target out of reach, too little memory."""


class VerificationFailedError(DiffpruneError):
    """A pruned file differs from the masked reference; it was not written."""


class RuntimeMissingError(DiffpruneError):
    """ONNX Runtime is needed and can't be used: there is none, or the given one can't be loaded."""


class OutputError(DiffpruneError):
    """A file can't be written."""


class UsageError(DiffpruneError, ValueError):
    """An argument is invalid, by itself or for this model."""


class CancelledError(DiffpruneError):
    """Raised by a progress function to stop a call. Any other exception stops it too and is raised unchanged."""

    def __init__(
        self,
        message: str = "cancelled",
        hint: str | None = None,
        exit_code: int = 1,
        causes: Sequence[str] = (),
        report: dict[str, Any] | None = None,
    ) -> None:
        """Create an exception; the message is optional."""
        super().__init__(message, hint, exit_code, causes, report)


class DiffpruneWarning(UserWarning):
    """A warning about the result."""
