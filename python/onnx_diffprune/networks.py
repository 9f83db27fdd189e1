"""Denoising networks: their loss, and samples from them as arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from . import _native
from ._arguments import Files, given
from .models import Model
from .options import Data, StrPath
from .progress import ProgressFunction, _watching
from .runtimes import Runtime

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from .options import NetworkOptions

__all__ = ["GeneratedSamples", "Network"]


class Network:
    """A denoising network. The roles of its inputs are recognised when it is opened."""

    def __init__(
        self,
        model: Model,
        runtime: Runtime | None = None,
        *,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        **options: Unpack[NetworkOptions],
    ) -> None:
        """Recognise the roles of a network's inputs.

        Args:
            model: The network. If it is in a pipeline, the pipeline's scheduler and sizes are used.
            runtime: Required for ``prompts``, which text encoders encode.
            inputs: Conditioning: arrays keyed by the names of the network's inputs; row ``i`` belongs to sample ``i``.
            **options: See `onnx_diffprune.options.NetworkOptions`. Only the sizes of ``data`` are used.

        Raises:
            UnsupportedError: The network is not recognised as a denoising network.
            UsageError: A diffusion process that does not fit the network.
        """
        self._model = model
        arrays = None if inputs is None else dict(inputs)
        with Files() as files:
            arguments = given("Network", "prune", options, files)
            opened = None if runtime is None else runtime._native
            self._native = _native.Network(model._native, arguments, arrays, opened)

    @property
    def notes(self) -> list[str]:
        """The settings of the process's configuration that have no effect."""
        return self._native.notes

    def loss(
        self,
        data: Data,
        runtime: Runtime,
        *,
        data_range: tuple[float, float] | None = None,
        count: int = 256,
        timesteps: int = 25,
        seed: int = 0,
        progress: ProgressFunction | None = None,
    ) -> dict[str, Any]:
        """Measure the denoising loss.

        Args:
            data: Clean samples: a path, or an array ``[count, channels, height, width]``.
            runtime: The library that runs the network.
            data_range: The values of the data that correspond to the ends of the sample range. `None`: 0 and 255 for
                bytes, while floats are used unchanged.
            count: The number of samples.
            timesteps: The number of timesteps, spread evenly over the schedule.
            seed: Seed of the choice of samples and of the noise, which is the same at every timestep.
            progress: Called with every progress report.

        Returns:
            The ``mean``, and ``losses`` by timestep.
        """
        with Files() as files:
            if not isinstance(data, (str, os.PathLike)):
                import numpy

                path = files.path("data.npy")
                numpy.save(path, data, allow_pickle=False)
                data = path
            extent = (count, timesteps, seed)
            of = (os.fspath(data), data_range)
            return self._native.loss(of, extent, runtime._native, _watching(progress))

    def sample(
        self,
        runtime: Runtime,
        *,
        count: int = 16,
        steps: int | None = None,
        sampler: Literal["ddim", "ddpm", "dpm++2m"] = "ddim",
        skip: Literal["uniform", "quadratic"] = "uniform",
        eta: float = 0.0,
        seed: int = 0,
        progress: ProgressFunction | None = None,
    ) -> GeneratedSamples:
        """Generate samples.

        Args:
            runtime: The library that runs the network.
            count: The number of samples.
            steps: Number of network evaluations per sample. `None`: 50, or 20 with ``dpm++2m``.
            sampler: The sampler.
            skip: Which steps of a discrete schedule are visited.
            eta: DDIM's share of the noise that DDPM would add, from 0 to 1.
            seed: Seed of all noise.
            progress: Called with every progress report.
        """
        extent = (count, steps, seed)
        return GeneratedSamples(self._native.sample(extent, sampler, skip, eta, runtime._native, _watching(progress)))


class GeneratedSamples:
    """Samples that a network generated. `Network.sample` returns them."""

    def __init__(self, native: _native.GeneratedSamples) -> None:
        """Wrap the result of `Network.sample`."""
        self._native = native

    @property
    def values(self) -> NDArray[numpy.float32]:
        """The samples ``[count, channels, height, width]``, in the sample range on which the network was trained."""
        return self._native.values

    @property
    def report(self) -> dict[str, Any]:
        """The roles of inputs and outputs, a description of the process, the given inputs, and the duration in seconds."""
        return self._native.report

    def png(self) -> bytes:
        """Return the bytes of a PNG image with the samples as tiles.

        Raises:
            UnmetError: The samples are not images.
        """
        return self._native.png()

    def save(self, png: StrPath | None = None, npy: StrPath | None = None) -> None:
        """Write the samples as a PNG image of tiles, as an array, or both: then either both files or none.

        Args:
            png: Path of the image.
            npy: Path of the array.
        """
        self._native.save(None if png is None else os.fspath(png), None if npy is None else os.fspath(npy))
