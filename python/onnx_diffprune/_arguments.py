"""Conversion of Python values to command-line arguments. Values in memory are written to temporary files for a call."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from . import _native
from .options import ModelLike, SerializableModel


class Files:
    """A temporary folder, created when the first file is added."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def path(self, name: str) -> str:
        """Return a path for a new file. Messages contain its name."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="onnx-diffprune-")
        folder = os.path.join(self._folder.name, str(self._count))
        os.mkdir(folder)
        self._count += 1
        return os.path.join(folder, name)

    def close(self) -> None:
        """Remove all files."""
        if self._folder is not None:
            self._folder.cleanup()

    def __enter__(self) -> Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def model_path(model: ModelLike, files: Files, name: str = "model") -> str:
    """Return the path of a model. A model in memory is written to a file first."""
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    if isinstance(model, bytes):
        content = model
    elif isinstance(model, SerializableModel):
        content = model.SerializeToString()
    else:
        raise TypeError(f"{name}: expected a path, an onnx.ModelProto or bytes, found {type(model).__name__}")
    path = files.path(f"{name}.onnx")
    Path(path).write_bytes(content)
    return path


@cache
def _options(command: str) -> dict[str, dict[str, Any]]:
    """Return the options of a command by name."""
    arguments = _native.commands()[command]["arguments"]
    return {argument["name"]: argument for argument in arguments if argument["option"] is not None}


def _texts(name: str, value: object, option: Mapping[str, Any], files: Files) -> Iterator[str]:
    """Yield the texts of a value: the option is passed once for each of them."""
    import numpy  # Imported here because the command line does not need it.

    if isinstance(value, numpy.ndarray):
        path = files.path(f"{name}.npy")
        numpy.save(path, value, allow_pickle=False)
        yield path
    elif isinstance(value, Mapping) and option["value"] == "FILE.npz":
        path = files.path(f"{name}.npz")
        # Not with `savez`, because some names would collide with its keywords.
        with zipfile.ZipFile(path, "w") as archive:
            for key, array in value.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    numpy.lib.format.write_array(member, numpy.asarray(array), allow_pickle=False)
        yield path
    elif isinstance(value, Mapping):
        yield from (f"{key}={_text(item)}" for key, item in value.items())
    elif isinstance(value, (bytes, SerializableModel)):
        yield model_path(value, files, name)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        texts = [_text(item) for item in value]
        yield from texts if option["repeats"] else [",".join(texts)]
    else:
        yield _text(value)


def _text(value: object) -> str:
    """Convert a single value."""
    import numpy

    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if isinstance(value, (numpy.integer, numpy.floating)):
        value = value.item()
    if isinstance(value, (int, float)):
        return repr(value)
    raise TypeError(f"expected a path, a text or a number, found {type(value).__name__}")


def given(function: str, command: str, options: Mapping[str, object], files: Files) -> list[str]:
    """Convert keywords to options of a command. `None` means that the option is not set.

    Raises:
        TypeError: A keyword that the command does not have, or a value of an unsupported type.
    """
    known, arguments = _options(command), []
    for name, value in options.items():
        option = known.get(name)
        if option is None:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
        if value is None:
            continue
        if not option["takes_value"]:
            if not isinstance(value, bool):
                raise TypeError(f"{function}(): {name} is True or False, found {value!r}")
            if value:
                arguments.append(f"--{option['option']}")
            continue
        try:
            arguments.extend(f"--{option['option']}={text}" for text in _texts(name, value, option, files))
        except TypeError as error:
            raise TypeError(f"{function}(): {name}: {error}") from None
    return arguments


@contextmanager
def step_arguments(function: str, options: Mapping[str, object]) -> Iterator[list[str]]:
    """Convert the keywords of one step of a cut to options of the pruning command."""
    with Files() as files:
        yield given(function, "prune", options, files)


def model_paths(models: ModelLike | Sequence[ModelLike], files: Files) -> list[str]:
    """Return the paths of one or several models."""
    if isinstance(models, Sequence) and not isinstance(models, (str, bytes)):
        return [model_path(model, files) for model in models]
    return [model_path(models, files)]
