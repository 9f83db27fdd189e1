"""What a long call tells while it works."""

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
    """One thing that a long call tells.

    Every call that may take long has an argument ``progress``: a function that gets one of these each time. It is called
    on the thread that made the call. An exception in it stops the call and comes out of it, and no output is left: raise
    `CancelledError`, or any other.
    """

    kind: Literal["stage", "step", "evaluation", "network", "note", "warning"]
    """What it is about: how far a stage is; a step of training; a network that was judged in the middle of its training;
    what was taken for what in a denoising network; something that the user may want to know, or should."""

    stage: str | None = None
    """The stage that is under way: ``sampling``, ``losses``, ``gradients``, ``scoring``, ``comparing``, ``refitting``,
    ``training``, ``verifying``, ``counting``, ``timing``, ``features``, ``distances``, ``converting``, ``building`` or
    ``encoding``."""

    done: int | None = None
    """Steps of the stage that are done."""

    total: int | None = None
    """Steps of the stage in all."""

    seconds_left: float | None = None
    """Seconds that the stage still takes, if the steps that are left take as long as those before."""

    text: str | None = None
    """The text of a network, a note or a warning."""

    loss: float | None = None
    """The loss of a step of training, or the denoising loss on held-out samples of an evaluation."""


if TYPE_CHECKING:
    from typing import TypeAlias

    ProgressFunction: TypeAlias = Callable[[Progress], object]
    _Watch: TypeAlias = Callable[..., None]
else:
    ProgressFunction = object


def _watching(progress: ProgressFunction | None) -> _Watch:
    """What the extension module calls: passes all on to ``progress``, warnings also to `warnings`, notes to `logging`."""

    def watch(kind: Any, **fields: Any) -> None:
        if kind == "warning":
            warnings.warn(fields["text"], DiffpruneWarning, stacklevel=4)
        elif kind in ("note", "network"):
            _LOGGER.info("%s", fields["text"])
        if progress is not None:
            progress(Progress(kind, **fields))

    return watch
