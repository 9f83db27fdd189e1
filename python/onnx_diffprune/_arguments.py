"""Values of Python as arguments of the command line; what is in memory goes into temporary files for the time of a call."""

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
    """A temporary folder, made where something goes into it."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def path(self, name: str) -> str:
        """A place for a file; its name is told in messages."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="onnx-diffprune-")
        folder = os.path.join(self._folder.name, str(self._count))
        os.mkdir(folder)
        self._count += 1
        return os.path.join(folder, name)

    def close(self) -> None:
        """Remove all."""
        if self._folder is not None:
            self._folder.cleanup()

    def __enter__(self) -> Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def model_path(model: ModelLike, files: Files, name: str = "model") -> str:
    """The path of a model; one in memory is written first."""
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
    """The options of a command by their names."""
    arguments = _native.commands()[command]["arguments"]
    return {argument["name"]: argument for argument in arguments if argument["option"] is not None}


def _texts(name: str, value: object, option: Mapping[str, Any], files: Files) -> Iterator[str]:
    """A value as the texts that the option is given with, one after the other."""
    import numpy  # Not at the start: the command needs none of it.

    if isinstance(value, numpy.ndarray):
        path = files.path(f"{name}.npy")
        numpy.save(path, value, allow_pickle=False)
        yield path
    elif isinstance(value, Mapping) and option["value"] == "FILE.npz":
        path = files.path(f"{name}.npz")
        # Not by `savez`, whose own arguments some names would be.
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
    """A single value."""
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
    """Keywords as options of a command. `None` stands for what is not given.

    Raises:
        TypeError: A keyword that the command does not take, or a value of a type that it has no use for.
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
    """Keywords of a step of a cut as options of the main job."""
    with Files() as files:
        yield given(function, "prune", options, files)


def model_paths(models: ModelLike | Sequence[ModelLike], files: Files) -> list[str]:
    """The paths of one or several models."""
    if isinstance(models, Sequence) and not isinstance(models, (str, bytes)):
        return [model_path(model, files) for model in models]
    return [model_path(models, files)]
