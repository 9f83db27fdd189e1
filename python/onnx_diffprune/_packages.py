"""Where ONNX Runtime of this environment is."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from . import _native


def tell() -> None:
    """Tell the library in which folder of packages ONNX Runtime lies: where Python would import it from.

    Nothing is imported. Without the package the folder that this package lies in is told, so that messages name it.
    """
    try:
        found = importlib.util.find_spec("onnxruntime")
    except (ImportError, ValueError):
        found = None
    folders = list(found.submodule_search_locations or []) if found is not None else []
    capi = next((Path(folder) for folder in folders if os.path.isdir(os.path.join(folder, "capi"))), None)
    _native.set_python_packages(str((capi or Path(__file__).resolve().parent).parent))
