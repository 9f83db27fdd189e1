"""Models, and what is known of them: the first steps of a cut."""

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
    """An ONNX model; its file is mapped, not copied."""

    def __init__(self, model: ModelLike) -> None:
        """Read and check a model.

        Args:
            model: The path of a file, an `onnx.ModelProto` or its bytes. One in memory is written into a temporary file,
                which lives as long as the model and what is made of it; its external data must be loaded.

        Raises:
            UnreadableError: The file can't be read.
            InvalidModelError: It is no ONNX model, or contradicts itself.
        """
        self._files = Files()
        self._native = _native.Model(model_path(model, self._files))

    @property
    def path(self) -> Path:
        """Where the model was read from."""
        return self._native.path

    @property
    def notes(self) -> list[str]:
        """What of the file is not as the format asks for, in words."""
        return self._native.notes

    @property
    def external_files(self) -> list[Path]:
        """The external data files that the model names."""
        return self._native.external_files

    def total_bytes(self) -> int:
        """Bytes of the model file and of the external files it uses."""
        return self._native.total_bytes()

    def digest(self) -> str:
        """The BLAKE3 of the model file followed by its external data files, in hexadecimal: what a plan names."""
        return self._native.digest()

    def read_inputs(self, path: StrPath) -> dict[str, NDArray[Any]]:
        """The arrays of a ``.npz`` file by the names of the model's inputs.

        Raises:
            UnreadableError: A name or sizes that no input takes, more than fits into memory.
        """
        return self._native.read_inputs(os.fspath(path))

    def check_output(self, output: StrPath) -> None:
        """Refuse an output that would replace the model or one of its data files."""
        self._native.check_output(os.fspath(output))

    def data_path(self, output: StrPath) -> Path:
        """Where the external data of an output goes, if it has some."""
        return self._native.data_path(os.fspath(output))

    def check_plan(self, plan: StrPath) -> None:
        """Refuse a plan file that was made for another model."""
        self._native.check_plan(os.fspath(plan))

    def encode_prompts(self, pipeline: StrPath, prompts: Sequence[str], runtime: Runtime) -> dict[str, NDArray[Any]]:
        """Make conditioning of prompts by the text encoders of a pipeline.

        Args:
            pipeline: The folder of the pipeline.
            prompts: One for each sample.
            runtime: Where the encoders run.

        Returns:
            Arrays by the names of the model's inputs, with a row for each prompt: what ``inputs`` takes.
        """
        return self._native.encode_prompts(os.fspath(pipeline), list(prompts), runtime._native)

    def analyse(self) -> Analysis:
        """Build the graph, infer shapes, and find out which channels live or die together.

        Raises:
            InvalidModelError: The model contradicts itself.
        """
        return Analysis(self._native.analyse(), self)

    def __repr__(self) -> str:
        """The path."""
        return f"Model({str(self.path)!r})"


class Analysis:
    """A model with its graph, shapes and coupling. `Model.analyse` makes it."""

    def __init__(self, native: _native.Analysis, model: Model) -> None:
        """Hold what `Model.analyse` made."""
        self._native = native
        self._model = model

    @property
    def model(self) -> Model:
        """The model."""
        return self._model

    def sizes(self, given: Mapping[str, int] | None = None) -> dict[str, int]:
        """A size for every symbolic dimension: those that are given, and small ones by their names.

        Raises:
            UsageError: A size for a dimension that the model does not have.
        """
        return self._native.sizes(dict(given or {}))

    def cost(self, sizes: Mapping[str, int] | None = None) -> dict[str, Any]:
        """What the network costs at these sizes: parameters, MACs, bytes of activations."""
        return self._native.cost(dict(sizes or {}))

    def check_inputs(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Refuse arrays that no input of the model takes."""
        self._native.check_inputs(dict(inputs))

    @property
    def computes_weights(self) -> bool:
        """Whether the model computes weights from constants: then scoring needs ONNX Runtime by every criterion."""
        return self._native.computes_weights

    def coupling_texts(self) -> list[str | None]:
        """The coupling of every node as text: axes as letters, as einsum has them, blocks as digits.

        `None` stands for nodes that are computed ahead of time.
        """
        return self._native.coupling_texts()

    def inspect(self, **options: Unpack[InspectOptions]) -> dict[str, Any]:
        """As `onnx_diffprune.inspect`, of this model."""
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
            runtime: Where gradients are computed. ``criterion="magnitude"`` and ``"random"`` need none, unless the model
                `computes_weights`.
            inputs: Conditioning: arrays by the names of the network's inputs; sample ``i`` takes row ``i``.
            progress: Gets what there is to tell.
            **options: See `onnx_diffprune.options.ScoreOptions`. ``data`` are clean samples, a path or an array
                ``[count, channels, height, width]``; samples are drawn from the network itself where there are none.

        Raises:
            DiffpruneError: Nothing that can be pruned, a network that does not denoise, data that does not fit, an
                operator without a gradient, too little memory.
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
            plan: The file.
            runtime: Needed where the model `computes_weights`.
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
        """Compare a pruned file with this model, its original, under a plan.

        Args:
            pruned: The pruned network.
            plan: The plan file of the cut.
            runtime: Where both run.
            inputs: Inputs to use instead of random ones.
            progress: Gets what there is to tell.
            **options: See `onnx_diffprune.options.CheckOptions`.

        Returns:
            The report; ``passed`` says whether the two agree.
        """
        arrays = None if inputs is None else dict(inputs)
        with step_arguments("verify", options) as arguments:
            of = (pruned._native, os.fspath(plan))
            return self._native.verify(of, arguments, arrays, runtime._native, _watching(progress))

    def __repr__(self) -> str:
        """The path of the model."""
        return f"Analysis({str(self._model.path)!r})"
