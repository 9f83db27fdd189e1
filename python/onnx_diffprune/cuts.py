"""The last steps of a cut: scores, cuts, and pruned files before they are moved into place."""

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
    """The scores of all channels, from which cuts are made. `Analysis.score` returns it."""

    def __init__(self, native: _native.Scores, analysis: Analysis) -> None:
        """Wrap the result of `Analysis.score`."""
        self._native = native
        self._analysis = analysis

    @property
    def gradients(self) -> dict[str, Any] | None:
        """How the gradients were computed, with the losses by timestep. `None`: the criterion uses no gradients."""
        return self._native.gradients()

    def cut(self, **options: Unpack[CutOptions]) -> Cut:
        """Choose channels and build the smaller graph. Nothing is written yet.

        Args:
            **options: See `onnx_diffprune.options.CutOptions`: ``ratio``, ``target_macs`` or ``target_params`` is required.

        Raises:
            UsageError: Invalid options.
            UnmetError: A target that can't be met.
        """
        with step_arguments("cut", options) as arguments:
            return Cut(self._native.cut(arguments), self._analysis)


class Cut:
    """A cut that can be written. `Scores.cut` and `Analysis.repeat` return it."""

    def __init__(self, native: _native.Cut, analysis: Analysis) -> None:
        """Wrap the result of `Scores.cut`."""
        self._native = native
        self._analysis = analysis

    @property
    def analysis(self) -> Analysis:
        """The analysis of the original network."""
        return self._analysis

    @property
    def plan(self) -> dict[str, Any]:
        """The kept channels, with scores and reasons: the content of the plan file."""
        return self._native.plan()

    def record(self, name: str, value: object) -> None:
        """Add an entry to the options that are recorded in plan and metadata.

        Args:
            name: The name of the option.
            value: A value that can be converted to JSON.
        """
        self._native.record(name, value)

    @property
    def ratio(self) -> float:
        """The channel ratio that was used: the requested one, or the one found for a target."""
        return self._native.ratio

    @property
    def before(self) -> dict[str, Any]:
        """The cost of the original: parameters, MACs, bytes of activations."""
        return self._native.costs()[0]

    @property
    def after(self) -> dict[str, Any]:
        """The cost of the pruned network."""
        return self._native.costs()[1]

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of symbolic dimensions for which costs were counted."""
        return self._native.sizes()

    @property
    def warnings(self) -> list[str]:
        """Warnings for the user."""
        return self._native.warnings

    @property
    def frozen(self) -> list[str]:
        """Values computed from shapes that were frozen at their original values, such as an attention scale."""
        return self._native.frozen

    @property
    def unfused(self) -> list[dict[str, Any]]:
        """Fused nodes that are written in standard operators, for sizes that ONNX Runtime's kernel does not support."""
        return self._native.unfused()

    def stage(self, output: StrPath) -> Staged:
        """Write the pruned model into a hidden folder beside ``output``. It is removed unless the model is saved.

        Args:
            output: The final path of the file.

        Raises:
            OutputError: The output can't be written.
        """
        return Staged(self._native.stage(os.fspath(output)), self)


class Staged:
    """A complete pruned file that is not in its place yet. `Cut.stage` returns it.

    As a context manager, it discards a file that was not saved.
    """

    def __init__(self, native: _native.Staged, cut: Cut) -> None:
        """Wrap the result of `Cut.stage`."""
        self._native = native
        self._cut = cut
        self._verification: dict[str, Any] | None = None
        self._refit: dict[str, Any] | None = None

    @property
    def cut(self) -> Cut:
        """The cut. After a refit, its plan describes how the weights were fitted."""
        return Cut(self._native.cut(), self._cut.analysis)

    def total_bytes(self) -> int:
        """Return the number of bytes of the pruned file and its external data."""
        return self._native.total_bytes()

    @property
    def verification(self) -> dict[str, Any] | None:
        """The report of the last verification of these weights. `None`: they have not been verified."""
        return self._verification

    @property
    def refit_report(self) -> dict[str, Any] | None:
        """The report of the refit. `None`: there was none."""
        return self._refit

    def check(
        self,
        runtime: Runtime,
        *,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        progress: ProgressFunction | None = None,
        **options: Unpack[CheckOptions],
    ) -> dict[str, Any]:
        """Verify the pruned file against the original. A difference raises no exception.

        Args:
            runtime: The library that runs both.
            inputs: Inputs to use instead of random ones.
            progress: Called with every progress report.
            **options: See `onnx_diffprune.options.CheckOptions`.

        Returns:
            The report; ``passed`` states whether they agree. `save` refuses a file that did not pass.
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
        """Verify like `check`, but raise an exception for a difference.

        Returns:
            The object itself, for chained calls.

        Raises:
            VerificationFailedError: The pruned file differs from the masked reference.
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
        """Fit the kept weights by least squares, so that the outputs of the pruned network are close to the original's.

        An earlier verification is dropped, because the weights change.

        Args:
            runtime: The library that runs both networks.
            inputs: Conditioning: arrays keyed by the names of the network's inputs; row ``i`` belongs to sample ``i``.
            progress: Called with every progress report.
            **options: See `onnx_diffprune.options.FitOptions`. ``data`` are clean samples.

        Returns:
            The report: layers with their errors before and after, losses of original, cut and refitted network.
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
        """Measure the latency of original and pruned file on the CPU, in turn on the same inputs.

        Returns:
            The ``sizes`` of the inputs, and for both ``networks`` the median and other figures in milliseconds.
        """
        arrays = None if inputs is None else dict(inputs)
        with step_arguments("latency", options) as arguments:
            return self._native.latency(arguments, arrays, runtime._native)

    def add_file(self, place: StrPath, content: bytes) -> None:
        """Add a file, such as a report, that is moved into place together with the pruned one."""
        self._native.add_file(os.fspath(place), content)

    def save(self, plan: StrPath | bool = True) -> dict[str, Any]:
        """Move the pruned file, its plan and added files into place: either all of them or none.

        Args:
            plan: Path of the plan; `True` for the default path beside the output, `False` for no plan.

        Returns:
            ``output``, ``data``, ``plan``, the files that were ``removed``, and the number of ``bytes`` written.

        Raises:
            VerificationFailedError: The verification failed.
            OutputError: A file can't be written.
        """
        place = None if isinstance(plan, bool) else os.fspath(plan)
        return self._native.save(place, plan is not False)

    def discard(self) -> None:
        """Remove the pruned file."""
        self._native.discard()

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Discard the file if it was not saved."""
        self.discard()
