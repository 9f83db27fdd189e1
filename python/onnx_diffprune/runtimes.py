"""ONNX Runtime: the library in which networks run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import _native
from .options import StrPath

__all__ = ["Runtime", "candidates", "library_providers", "set_provider_options"]


class Runtime:
    """ONNX Runtime, opened.

    A process can load only one library of ONNX Runtime for this package, and never lets go of it: the first that is opened
    decides, later ones are the same. It is apart from what ``import onnxruntime`` loads; both may be used in one process.
    """

    def __init__(self, library: StrPath | None = None) -> None:
        """Open the library.

        Args:
            library: The file or a folder that holds it. Without it ``ORT_DYLIB_PATH`` is taken, else the package
                ``onnxruntime`` or ``onnxruntime-gpu`` of this environment, else what `candidates` lists.

        Raises:
            RuntimeMissingError: No library can be used, or another one than the open one is asked for.
        """
        self._native = _native.Runtime(None if library is None else os.fspath(library))

    @property
    def version(self) -> str:
        """The version that the library reports, for example ``1.31.1``."""
        return self._native.version

    @property
    def library(self) -> Path:
        """The file that the library was loaded from."""
        return self._native.library

    @property
    def how(self) -> str:
        """How the library was found, in words."""
        return self._native.how

    @property
    def execution_providers(self) -> list[str]:
        """The execution providers that the library was built with, in its own order of preference."""
        return self._native.execution_providers

    def device_status(self, device: str) -> dict[str, Any]:
        """Say whether a device can be used, by using it.

        Args:
            device: ``cpu``, ``cuda``, ``cuda:N``, ``tensorrt`` or ``tensorrt:N``.

        Returns:
            ``device``, ``usable``, the reason where it is ``refused``, and the libraries that were ``preloaded`` for it.
        """
        return self._native.device_status(device)

    def __repr__(self) -> str:
        """The version and the file."""
        return f"Runtime({self.version}, {str(self.library)!r})"


def candidates(library: StrPath | None = None) -> list[dict[str, Any]]:
    """List the places in which a library is looked for, in order. Nothing is loaded.

    Args:
        library: A file or folder, which is then the only place.

    Returns:
        ``place``, ``how`` it came on the list, and the ``library`` file there, if there is one.
    """
    return _native.candidates(None if library is None else os.fspath(library))


def library_providers(library: StrPath) -> tuple[str, list[str]]:
    """The version of a library and the execution providers that it was built with.

    Args:
        library: The file.

    Raises:
        RuntimeMissingError: It is no ONNX Runtime, or one that is too old.
    """
    return _native.library_providers(os.fspath(library))


def set_provider_options(options: Mapping[str, str]) -> None:
    """Give options to the execution provider of every device but the CPU, for all that this process runs afterwards.

    Args:
        options: By the names of ONNX Runtime, such as ``gpu_mem_limit`` or ``use_tf32`` of CUDA.
    """
    _native.set_provider_options(list(options.items()))
