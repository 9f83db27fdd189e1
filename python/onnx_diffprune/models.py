"""The first steps of a cut: models and their analyses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _native, commands
from ._arguments import Files, model_path, step_arguments
from .cuts import Cut, Scores
from .options import ModelLike, StrPath
from .progress import ProgressFunction, _watching
from .runtimes import Runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from .options import CheckOptions, InspectOptions, ScoreOptions

__all__ = ["Analysis", "Model"]


class Model:
    """An ONNX model. Its file is mapped, not copied."""

    def __init__(self, model: ModelLike) -> None:
        """Read and check a model.

        Args:
            model: The path of a file, an `onnx.ModelProto` or its bytes. A model in memory is written to a temporary file,
                which lives as long as the model and the objects derived from it; its external data must be loaded.

        Raises:
            UnreadableError: The file can't be read.
            InvalidModelError: It is not an ONNX model, or it contradicts itself.
        """
        self._files = Files()
        self._native = _native.Model(model_path(model, self._files))

    @property
    def path(self) -> Path:
        """The path of the model."""
        return self._native.path

    @property
    def notes(self) -> list[str]:
        """Deviations of the file from the ONNX format."""
        return self._native.notes

    @property
    def external_files(self) -> list[Path]:
        """The external data files that the model names."""
        return self._native.external_files

    def total_bytes(self) -> int:
        """Return the number of bytes of the model file and of the external files it uses."""
        return self._native.total_bytes()

    def digest(self) -> str:
        """Return the BLAKE3 digest of the model file followed by its external data files, in hexadecimal, as in a plan."""
        return self._native.digest()

    def read_inputs(self, path: StrPath) -> dict[str, NDArray[Any]]:
        """Read the arrays of a ``.npz`` file, keyed by the names of the model's inputs.

        Raises:
            UnreadableError: A name or shape that fits no input, or more data than fits into memory.
        """
        return self._native.read_inputs(os.fspath(path))

    def check_output(self, output: StrPath) -> None:
        """Raise an exception if an output would replace the model or one of its data files."""
        self._native.check_output(os.fspath(output))

    def data_path(self, output: StrPath) -> Path:
        """Return the path of an output's external data, which is written if there is any."""
        return self._native.data_path(os.fspath(output))

    def check_plan(self, plan: StrPath) -> None:
        """Raise an exception if a plan file was made for another model."""
        self._native.check_plan(os.fspath(plan))

    def encode_prompts(self, pipeline: StrPath, prompts: Sequence[str], runtime: Runtime) -> dict[str, NDArray[Any]]:
        """Encode prompts with the text encoders of a pipeline.

        Args:
            pipeline: The folder of the pipeline.
            prompts: One prompt for each sample.
            runtime: The library that runs the encoders.

        Returns:
            Arrays keyed by the names of the model's inputs, with one row for each prompt, for the argument ``inputs``.
        """
        return self._native.encode_prompts(os.fspath(pipeline), list(prompts), runtime._native)

    def analyse(self) -> Analysis:
        """Build the graph, infer shapes, and find the channels that must be removed together.

        Raises:
            InvalidModelError: The model contradicts itself.
        """
        return Analysis(self._native.analyse(), self)

    def __repr__(self) -> str:
        """Return a description with the path."""
        return f"Model({str(self.path)!r})"


class Analysis:
    """A model with its graph, shapes and coupling. `Model.analyse` returns it."""

    def __init__(self, native: _native.Analysis, model: Model) -> None:
        """Wrap the result of `Model.analyse`."""
        self._native = native
        self._model = model

    @property
    def model(self) -> Model:
        """The analysed model."""
        return self._model

    def sizes(self, given: Mapping[str, int] | None = None) -> dict[str, int]:
        """Return a size for every symbolic dimension: given sizes, and small defaults chosen by name.

        Raises:
            UsageError: A given dimension does not exist in the model.
        """
        return self._native.sizes(dict(given or {}))

    def cost(self, sizes: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Return the costs of the network at these sizes: parameters, MACs, bytes of activations."""
        return self._native.cost(dict(sizes or {}))

    def check_inputs(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Raise an exception for arrays that fit no input of the model."""
        self._native.check_inputs(dict(inputs))

    @property
    def computes_weights(self) -> bool:
        """Whether the model computes weights from constants. If so, scoring by any criterion needs ONNX Runtime."""
        return self._native.computes_weights

    def coupling_texts(self) -> list[str | None]:
        """Return the coupling of every node as text: axes as letters, as in einsum, and blocks as digits.

        `None` stands for nodes that are folded.
        """
        return self._native.coupling_texts()

    def inspect(self, **options: Unpack[InspectOptions]) -> dict[str, Any]:
        """Describe this model, as `onnx_diffprune.inspect` does."""
        return commands.inspect(self._model.path, **options)

    def score(
        self,
        runtime: Runtime | None = None,
        *,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        progress: ProgressFunction | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Scores:
        """Score all channels.

        Args:
            runtime: The library that computes gradients. ``criterion="magnitude"`` and ``"random"`` need none, unless the
                model `computes_weights`.
            inputs: Conditioning: arrays keyed by the names of the network's inputs; row ``i`` belongs to sample ``i``.
            progress: Called with every progress report.
            **options: See `onnx_diffprune.options.ScoreOptions`. ``data`` are clean samples, a path or an array
                ``[count, channels, height, width]``; without it, the network generates samples.

        Raises:
            DiffpruneError: Nothing can be pruned, the network does not denoise, data does not fit, an operator has no
                gradient, or there is too little memory.
        """
        arrays = None if inputs is None else dict(inputs)
        with step_arguments("score", options) as arguments:
            native = self._native.score(
                arguments, arrays, None if runtime is None else runtime._native, _watching(progress)
            )
        return Scores(native, self)

    def repeat(self, plan: StrPath, runtime: Runtime | None = None) -> Cut:
        """Repeat the cut of a plan file exactly.

        Args:
            plan: The plan file.
            runtime: Required if the model `computes_weights`.
        """
        return Cut(self._native.repeat(os.fspath(plan), None if runtime is None else runtime._native), self)

    def verify(
        self,
        pruned: Model,
        plan: StrPath,
        runtime: Runtime,
        *,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        progress: ProgressFunction | None = None,
        **options: Unpack[CheckOptions],
    ) -> dict[str, Any]:
        """Verify a pruned file against this model, its original, by a plan.

        Args:
            pruned: The pruned network.
            plan: The plan file of the cut.
            runtime: The library that runs both.
            inputs: Inputs to use instead of random ones.
            progress: Called with every progress report.
            **options: See `onnx_diffprune.options.CheckOptions`.

        Returns:
            The report; ``passed`` states whether they agree.
        """
        arrays = None if inputs is None else dict(inputs)
        with step_arguments("verify", options) as arguments:
            of = (pruned._native, os.fspath(plan))
            return self._native.verify(of, arguments, arrays, runtime._native, _watching(progress))

    def __repr__(self) -> str:
        """Return a description with the path of the model."""
        return f"Analysis({str(self._model.path)!r})"
