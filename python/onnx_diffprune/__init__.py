"""Structural pruning of exported diffusion networks on their ONNX graph.

One call scores, prunes, verifies and writes, like the command:

```python
import onnx_diffprune

report = onnx_diffprune.prune("unet.onnx", "pruned.onnx", ratio=0.3, data="images")
print(report["after"]["parameters"], "of", report["before"]["parameters"], "parameters are left")
```

The same in single steps, whose results can be inspected:

```python
from onnx_diffprune import Model, Runtime

runtime = Runtime()
scores = Model("unet.onnx").analyse().score(runtime, data="images", progress=print)
cut = scores.cut(ratio=0.3)
with cut.stage("pruned.onnx") as staged:
    staged.verify(runtime).save()
```

`commands` has all commands as functions, which are also available here; `options` describes their keywords;
`models`, `cuts` and `networks` have the single steps; `errors` the exceptions. The command line is the same program:
``onnx-diffprune --help``.
"""

from __future__ import annotations

from . import _packages, commands, cuts, errors, models, networks, options, progress, runtimes
from ._native import __version__
from .commands import (
    apply,
    artifacts,
    bench,
    deploy,
    encode,
    evaluate,
    finetune,
    inspect,
    loss,
    prune,
    refit,
    runtime,
    sample,
    structure,
    verify,
)
from .cuts import Cut, Scores, Staged
from .errors import (
    CancelledError,
    DiffpruneError,
    DiffpruneWarning,
    InvalidModelError,
    OutputError,
    RuntimeMissingError,
    UnmetError,
    UnreadableError,
    UnsupportedError,
    UsageError,
    VerificationFailedError,
)
from .models import Analysis, Model
from .networks import GeneratedSamples, Network
from .progress import Progress
from .runtimes import Runtime, candidates, library_providers, set_provider_options

__all__ = [
    "Analysis",
    "CancelledError",
    "Cut",
    "DiffpruneError",
    "DiffpruneWarning",
    "GeneratedSamples",
    "InvalidModelError",
    "Model",
    "Network",
    "OutputError",
    "Progress",
    "Runtime",
    "RuntimeMissingError",
    "Scores",
    "Staged",
    "UnmetError",
    "UnreadableError",
    "UnsupportedError",
    "UsageError",
    "VerificationFailedError",
    "__version__",
    "apply",
    "artifacts",
    "bench",
    "candidates",
    "commands",
    "cuts",
    "deploy",
    "encode",
    "errors",
    "evaluate",
    "finetune",
    "inspect",
    "library_providers",
    "loss",
    "models",
    "networks",
    "options",
    "progress",
    "prune",
    "refit",
    "runtime",
    "runtimes",
    "sample",
    "set_provider_options",
    "structure",
    "verify",
]

_packages.tell()
