"""The command ``onnx-diffprune``, also as ``python -m onnx_diffprune``."""

from __future__ import annotations

import os
import sys

from . import _native

__all__ = ["main"]


def main() -> None:
    """Run the command line with the arguments of this process, and end the process with its exit code.

    The exit code is 0 on success, 1 if the request can't be met or verification failed, 2 for invalid usage or invalid
    input. A signal ends the process like any other program, after temporary files are removed.
    """
    name = os.path.basename(sys.argv[0])
    if name in ("__main__.py", "-m"):
        name = "onnx-diffprune"
    code = _native.main([name, *sys.argv[1:]])
    # Python has nothing left to do. Finalising the interpreter would only let a late signal print a traceback.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
