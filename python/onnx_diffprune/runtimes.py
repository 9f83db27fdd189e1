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
    """An open ONNX Runtime library.

    A process can load only one library of ONNX Runtime for this package and keeps it until it ends: the first one that
    is opened is used by all later objects. It is separate from what ``import onnxruntime`` loads; a process may use
    both.
    """

    def __init__(self, library: StrPath | None = None) -> None:
        """Open the library.

        Args:
            library: The library file or a folder that contains it. `None`: the value of ``ORT_DYLIB_PATH``, then the
                package ``onnxruntime`` or ``onnxruntime-gpu`` of this environment, then the places that `candidates` lists.

        Raises:
            RuntimeMissingError: No library can be used, or another one is already open.
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
        """A description of how the library was found."""
        return self._native.how

    @property
    def execution_providers(self) -> list[str]:
        """The execution providers that the library was built with, in its order of preference."""
        return self._native.execution_providers

    def device_status(self, device: str) -> dict[str, Any]:
        """Check whether a device can be used, by using it.

        Args:
            device: ``cpu``, ``cuda``, ``cuda:N``, ``tensorrt`` or ``tensorrt:N``.

        Returns:
            ``device``, ``usable``, the reason if it is ``refused``, and the libraries that were ``preloaded`` for it.
        """
        return self._native.device_status(device)

    def __repr__(self) -> str:
        """Return a description with the version and the file."""
        return f"Runtime({self.version}, {str(self.library)!r})"


def candidates(library: StrPath | None = None) -> list[dict[str, Any]]:
    """List the places that are searched for a library, in order. Nothing is loaded.

    Args:
        library: A file or folder, which is then the only place.

    Returns:
        ``place``, ``how`` it was chosen, and the ``library`` file there, if there is one.
    """
    return _native.candidates(None if library is None else os.fspath(library))


def library_providers(library: StrPath) -> tuple[str, list[str]]:
    """Return the version of a library and the execution providers that it was built with.

    Args:
        library: The file.

    Raises:
        RuntimeMissingError: It is not ONNX Runtime, or its version is too old.
    """
    return _native.library_providers(os.fspath(library))


def set_provider_options(options: Mapping[str, str]) -> None:
    """Set options of the execution providers of all devices except the CPU, for all later runs of this process.

    Args:
        options: Keys are ONNX Runtime's names, such as ``gpu_mem_limit`` or ``use_tf32`` of CUDA.
    """
    _native.set_provider_options(list(options.items()))
