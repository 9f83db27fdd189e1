"""The location of ONNX Runtime in this environment."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from . import _native


def tell() -> None:
    """Tell the library in which package folder ONNX Runtime is: the one from which Python would import it.

    Nothing is imported. Without ONNX Runtime, it is the folder of this package, so that messages name this environment.
    """
    try:
        found = importlib.util.find_spec("onnxruntime")
    except (ImportError, ValueError):
        found = None
    folders = list(found.submodule_search_locations or []) if found is not None else []
    capi = next((Path(folder) for folder in folders if os.path.isdir(os.path.join(folder, "capi"))), None)
    _native.set_python_packages(str((capi or Path(__file__).resolve().parent).parent))
