"""The exceptions of the package: one class for each kind of failure, under one base.

Every exception names the file, the node and its operator where one is at fault, says what was expected and found, and in
`DiffpruneError.hint` what to do.
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
    """What went wrong, with everything that is needed to act on it."""

    message: str
    """What went wrong, in one text."""

    hint: str | None
    """What to do about it, where there is something."""

    exit_code: int
    """The exit code of a command that ends with it: 1 if the request can't be met, 2 for wrong use or broken input."""

    causes: list[str]
    """What caused it, the nearest cause first."""

    report: dict[str, Any] | None
    """What the command had found before it failed: the object that it prints with ``--format json``."""

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        exit_code: int = 1,
        causes: Sequence[str] = (),
        report: dict[str, Any] | None = None,
    ) -> None:
        """Make an exception; the library does."""
        super().__init__(message, hint, exit_code, list(causes), report)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
        self.causes = list(causes)
        self.report = report

    def __str__(self) -> str:
        """The message, and the hint on a line of its own."""
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class UnreadableError(DiffpruneError):
    """A file can't be read, or is not what it is given as: a plan, samples, a scheduler's configuration."""


class InvalidModelError(DiffpruneError):
    """The file is no ONNX model, or one that contradicts itself or its operators' specifications."""


class UnsupportedError(DiffpruneError):
    """The model or a configuration is sound, but needs something that this version does not know."""


class UnmetError(DiffpruneError):
    """The request is sound but can't be met: nothing to prune, a target out of reach, too little memory."""


class VerificationFailedError(DiffpruneError):
    """A pruned file does not compute what the original computes under the cut; it was not written."""


class RuntimeMissingError(DiffpruneError):
    """ONNX Runtime is needed and can't be used: there is none, or not the one that was named."""


class OutputError(DiffpruneError):
    """A file can't be written."""


class UsageError(DiffpruneError, ValueError):
    """An argument makes no sense, by itself or for this model."""


class CancelledError(DiffpruneError):
    """What a progress function may raise to stop a call; any other exception does too, and comes out as it is."""

    def __init__(
        self,
        message: str = "cancelled",
        hint: str | None = None,
        exit_code: int = 1,
        causes: Sequence[str] = (),
        report: dict[str, Any] | None = None,
    ) -> None:
        """Make an exception, which needs no text."""
        super().__init__(message, hint, exit_code, causes, report)


class DiffpruneWarning(UserWarning):
    """Something that the user should know before the result."""
