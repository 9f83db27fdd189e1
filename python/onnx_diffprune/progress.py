"""Progress reports of long calls."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .errors import DiffpruneWarning

__all__ = ["Progress"]

_LOGGER = logging.getLogger("onnx_diffprune")


@dataclass(frozen=True)
class Progress:
    """A progress report of a long call.

    Every long call has an argument ``progress``: a function that is called with each report, on the thread that made
    the call. An exception in it stops the call and is raised from it, and no output is left: raise `CancelledError`, or
    any other.
    """

    kind: Literal["stage", "step", "evaluation", "network", "note", "warning"]
    """The kind of report: ``stage`` progress, a training ``step``, an ``evaluation`` during training, the recognised
    roles of a denoising ``network``, a ``note`` or a ``warning``."""

    stage: str | None = None
    """The current stage: ``sampling``, ``losses``, ``gradients``, ``scoring``, ``comparing``, ``refitting``,
    ``training``, ``verifying``, ``counting``, ``timing``, ``features``, ``distances``, ``converting``, ``building`` or
    ``encoding``."""

    done: int | None = None
    """Number of steps of the stage that are done."""

    total: int | None = None
    """Total number of steps of the stage."""

    seconds_left: float | None = None
    """Estimated seconds until the end of the stage, from the average duration of its steps so far."""

    text: str | None = None
    """The text of a network, note or warning report."""

    loss: float | None = None
    """The loss of a training step, or the denoising loss of an evaluation on held-out samples."""


if TYPE_CHECKING:
    from typing import TypeAlias

    ProgressFunction: TypeAlias = Callable[[Progress], object]
    _Watch: TypeAlias = Callable[..., None]
else:
    ProgressFunction = object


def _watching(progress: ProgressFunction | None) -> _Watch:
    """Return the callback for the extension module: it calls ``progress``, emits warnings and logs notes."""

    def watch(kind: Any, **fields: Any) -> None:
        if kind == "warning":
            warnings.warn(fields["text"], DiffpruneWarning, stacklevel=4)
        elif kind in ("note", "network"):
            _LOGGER.info("%s", fields["text"])
        if progress is not None:
            progress(Progress(kind, **fields))

    return watch
