"""Networks that denoise: their loss, and samples from them as arrays."""

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

__all__ = ["Drawn", "Network"]


class Network:
    """A network that denoises: what its inputs stand for is recognised when it is opened."""

    def __init__(
        self,
        model: Model,
        runtime: Runtime | None = None,
        *,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        **options: Unpack[NetworkOptions],
    ) -> None:
        """Recognise what a network's inputs stand for.

        Args:
            model: The network. The scheduler and the sizes of a pipeline that it lies in are taken.
            runtime: Needed for ``prompts``, which text encoders read.
            inputs: Conditioning: arrays by the names of the network's inputs; sample ``i`` takes row ``i``.
            **options: See `onnx_diffprune.options.NetworkOptions`. Of ``data`` only sizes are taken.

        Raises:
            UnsupportedError: The network does not denoise, as far as can be told.
            UsageError: A process that does not fit it.
        """
        self._model = model
        arrays = None if inputs is None else dict(inputs)
        with Files() as files:
            arguments = given("Network", "prune", options, files)
            opened = None if runtime is None else runtime._native
            self._native = _native.Network(model._native, arguments, arrays, opened)

    @property
    def notes(self) -> list[str]:
        """What of the process's configuration has no effect here, in words."""
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
            runtime: Where the network runs.
            data_range: The values of the data that stand for the ends of the sample range; 0 and 255 for bytes, floats
                as they are, where it is not given.
            count: The number of samples.
            timesteps: The number of timesteps, spread evenly over the schedule.
            seed: Of the choice of samples and of the noise, which is the same at every timestep.
            progress: Gets what there is to tell.

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
    ) -> Drawn:
        """Draw samples.

        Args:
            runtime: Where the network runs.
            count: The number of samples.
            steps: Evaluations of the network for a sample; 50 where it is not given, 20 with ``dpm++2m``.
            sampler: The sampler.
            skip: Which steps of a discrete schedule are visited.
            eta: DDIM's share of the noise that DDPM would add, from 0 to 1.
            seed: Of all noise.
            progress: Gets what there is to tell.
        """
        extent = (count, steps, seed)
        return Drawn(self._native.sample(extent, sampler, skip, eta, runtime._native, _watching(progress)))


class Drawn:
    """Samples that a network drew. `Network.sample` makes them."""

    def __init__(self, native: _native.Drawn) -> None:
        """Hold what `Network.sample` made."""
        self._native = native

    @property
    def values(self) -> NDArray[numpy.float32]:
        """The samples ``[count, channels, height, width]``, in the range of the samples that the network was trained on."""
        return self._native.values

    @property
    def report(self) -> dict[str, Any]:
        """What was taken for what, the process in words, the inputs that were given, and the seconds that drawing took."""
        return self._native.report

    def png(self) -> bytes:
        """The samples as one PNG image of tiles: the bytes of the file.

        Raises:
            UnmetError: The samples are no images.
        """
        return self._native.png()

    def save(self, png: StrPath | None = None, npy: StrPath | None = None) -> None:
        """Write the samples as one PNG image of tiles, as they are as an array, or both: then both files or none.

        Args:
            png: Where the image goes.
            npy: Where the array goes.
        """
        self._native.save(None if png is None else os.fspath(png), None if npy is None else os.fspath(npy))
