"""Scores, cuts, and pruned files before they take their places: the last steps of a cut."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import _native
from ._arguments import step_arguments
from .errors import VerificationFailedError
from .options import StrPath
from .progress import ProgressFunction, _watching
from .runtimes import Runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self, Unpack

    from .models import Analysis
    from .options import CheckOptions, CutOptions, FitOptions

__all__ = ["Cut", "Scores", "Staged"]


class Scores:
    """The scores of all channels, from which cuts are made. `Analysis.score` makes them."""

    def __init__(self, native: _native.Scores, analysis: Analysis) -> None:
        """Hold what `Analysis.score` made."""
        self._native = native
        self._analysis = analysis

    @property
    def gradients(self) -> dict[str, Any] | None:
        """How the gradients came about, with the losses by timestep, where the criterion takes them."""
        return self._native.gradients()

    def cut(self, **options: Unpack[CutOptions]) -> Cut:
        """Choose channels and make the smaller graph. Nothing is written yet.

        Args:
            **options: See `onnx_diffprune.options.CutOptions`: ``ratio``, ``target_macs`` or ``target_params`` is needed.

        Raises:
            UsageError: Options that make no sense.
            UnmetError: A target that can't be met.
        """
        with step_arguments("cut", options) as arguments:
            return Cut(self._native.cut(arguments), self._analysis)


class Cut:
    """A cut that can be written. `Scores.cut` and `Analysis.repeat` make it."""

    def __init__(self, native: _native.Cut, analysis: Analysis) -> None:
        """Hold what `Scores.cut` made."""
        self._native = native
        self._analysis = analysis

    @property
    def analysis(self) -> Analysis:
        """What is cut."""
        return self._analysis

    @property
    def plan(self) -> dict[str, Any]:
        """What the cut keeps, with scores and reasons: the content of the plan file."""
        return self._native.plan()

    def record(self, name: str, value: object) -> None:
        """Add an entry to the options that plan and metadata record.

        Args:
            name: Its name.
            value: What JSON can hold.
        """
        self._native.record(name, value)

    @property
    def ratio(self) -> float:
        """The channel ratio that was used: the one that was asked for, or found for a target."""
        return self._native.ratio

    @property
    def before(self) -> dict[str, Any]:
        """The cost of the original: parameters, MACs, bytes of activations."""
        return self._native.costs()[0]

    @property
    def after(self) -> dict[str, Any]:
        """The cost of what is left."""
        return self._native.costs()[1]

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of symbolic dimensions at which costs were counted."""
        return self._native.sizes()

    @property
    def warnings(self) -> list[str]:
        """Things that the user should know."""
        return self._native.warnings

    @property
    def frozen(self) -> list[str]:
        """Values computed from shapes that were frozen at their old values, such as an attention scale."""
        return self._native.frozen

    @property
    def unfused(self) -> list[dict[str, Any]]:
        """Fused nodes that are written in standard operators, because ONNX Runtime's kernel does not take their sizes."""
        return self._native.unfused()

    def stage(self, output: StrPath) -> Staged:
        """Write the pruned model into a hidden folder beside ``output``, which disappears unless it is saved.

        Args:
            output: Where the file goes in the end.

        Raises:
            OutputError: The output can't be written.
        """
        return Staged(self._native.stage(os.fspath(output)), self)


class Staged:
    """A pruned file that is complete but not yet in its place. `Cut.stage` makes it.

    As a context manager it discards what was not saved.
    """

    def __init__(self, native: _native.Staged, cut: Cut) -> None:
        """Hold what `Cut.stage` made."""
        self._native = native
        self._cut = cut
        self._verification: dict[str, Any] | None = None
        self._refit: dict[str, Any] | None = None

    @property
    def cut(self) -> Cut:
        """The cut; after a refit its plan says how the weights were fitted."""
        return Cut(self._native.cut(), self._cut.analysis)

    def total_bytes(self) -> int:
        """Bytes of the pruned file and its external data."""
        return self._native.total_bytes()

    @property
    def verification(self) -> dict[str, Any] | None:
        """The report of the last verification of these weights, if there was one."""
        return self._verification

    @property
    def refit_report(self) -> dict[str, Any] | None:
        """How the refit went, if there was one."""
        return self._refit

    def check(
        self,
        runtime: Runtime,
        *,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        progress: ProgressFunction | None = None,
        **options: Unpack[CheckOptions],
    ) -> dict[str, Any]:
        """Compare the pruned file with the original under the cut. A file that differs is no error yet.

        Args:
            runtime: Where both run.
            inputs: Inputs to use instead of random ones.
            progress: Gets what there is to tell.
            **options: See `onnx_diffprune.options.CheckOptions`.

        Returns:
            The report; ``passed`` says whether the two agree. `save` refuses a file that did not pass.
        """
        return self._checked(runtime, inputs, progress, options)[0]

    def _checked(
        self,
        runtime: Runtime,
        inputs: Mapping[str, NDArray[Any]] | None,
        progress: ProgressFunction | None,
        options: CheckOptions,
    ) -> tuple[dict[str, Any], str | None]:
        arrays = None if inputs is None else dict(inputs)
        with step_arguments("check", options) as arguments:
            report, failure = self._native.check(arguments, arrays, runtime._native, _watching(progress))
        self._verification = report
        return report, failure

    def verify(
        self,
        runtime: Runtime,
        *,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        progress: ProgressFunction | None = None,
        **options: Unpack[CheckOptions],
    ) -> Self:
        """As `check`, but a file that differs is an error.

        Returns:
            This, for the next call.

        Raises:
            VerificationFailedError: The pruned file does not compute what the original does under the cut.
        """
        report, failure = self._checked(runtime, inputs, progress, options)
        if failure is not None:
            raise VerificationFailedError(f"verification failed: {failure}", report=report)
        return self

    def refit(
        self,
        runtime: Runtime,
        *,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        progress: ProgressFunction | None = None,
        **options: Unpack[FitOptions],
    ) -> dict[str, Any]:
        """Fit the weights that are left by least squares, so that the pruned network computes what the original does.

        A verification of the cut before is forgotten: the weights are other ones.

        Args:
            runtime: Where both networks run.
            inputs: Conditioning: arrays by the names of the network's inputs; sample ``i`` takes row ``i``.
            progress: Gets what there is to tell.
            **options: See `onnx_diffprune.options.FitOptions`. ``data`` are clean samples.

        Returns:
            How it went: layers with their errors before and after, losses of original, cut and refitted network.
        """
        arrays = None if inputs is None else dict(inputs)
        with step_arguments("refit", options) as arguments:
            self._refit = self._native.refit(arguments, arrays, runtime._native, _watching(progress))
        self._verification = None
        return self._refit

    def latency(
        self,
        runtime: Runtime,
        *,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        **options: Unpack[CheckOptions],
    ) -> dict[str, Any]:
        """Time original and pruned file on the CPU, in turn on the same inputs.

        Returns:
            ``sizes`` of the inputs, and for both ``networks`` the median and other figures in milliseconds.
        """
        arrays = None if inputs is None else dict(inputs)
        with step_arguments("latency", options) as arguments:
            return self._native.latency(arguments, arrays, runtime._native)

    def add_file(self, place: StrPath, content: bytes) -> None:
        """Add a file that takes its place together with the pruned one, such as a report."""
        self._native.add_file(os.fspath(place), content)

    def save(self, plan: StrPath | bool = True) -> dict[str, Any]:
        """Move the pruned file to its place, and the plan and what was added to theirs: all of them or none.

        Args:
            plan: Where the plan goes; `True` for its place beside the output, `False` for no plan.

        Returns:
            ``output``, ``data``, ``plan``, the files that were ``removed``, and the ``bytes`` that were written.

        Raises:
            VerificationFailedError: The verification failed.
            OutputError: A file can't be written.
        """
        place = None if isinstance(plan, bool) else os.fspath(plan)
        return self._native.save(place, plan is not False)

    def discard(self) -> None:
        """Remove the file. Nothing is left of it."""
        self._native.discard()

    def __enter__(self) -> Self:
        """This."""
        return self

    def __exit__(self, *_: object) -> None:
        """Discard what was not saved."""
        self.discard()
