"""Pruned pipelines of optimum: `prune_pipeline` cuts the networks of a pipeline and loads what comes out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import onnx_diffprune
from optimum.onnxruntime import ORTDiffusionPipeline

if TYPE_CHECKING:
    from onnx_diffprune.options import PruneOptions, StrPath
    from onnx_diffprune.progress import ProgressFunction
    from typing_extensions import Unpack

__all__ = ["prune_pipeline"]


def prune_pipeline(
    pipeline: StrPath | ORTDiffusionPipeline,
    output: StrPath,
    *,
    load: Mapping[str, Any] | None = None,
    progress: ProgressFunction | None = None,
    **options: Unpack[PruneOptions],
) -> ORTDiffusionPipeline:
    """Prune a pipeline of ONNX networks, write the smaller one into a folder, and load it from there.

    Args:
        pipeline: The folder of a pipeline, as `ORTDiffusionPipeline.save_pretrained` and `optimum-cli export onnx` write
            it, or a loaded pipeline; that is saved into a temporary folder first.
        output: The folder for the pruned pipeline, with the plans of its cuts. It may hold an earlier one.
        load: What `ORTDiffusionPipeline.from_pretrained` takes for the pruned pipeline, such as
            ``{"provider": "CUDAExecutionProvider"}``.
        progress: Gets what there is to tell while the pipeline is pruned.
        **options: What `onnx_diffprune.prune` takes: ``ratio``, ``components``, ``data``, ``prompts``, ... Without
            ``components`` the denoiser is cut.

    Returns:
        The pruned pipeline, of the class of a loaded ``pipeline``, else of that which its ``model_index.json`` names.

    Raises:
        onnx_diffprune.DiffpruneError: Input that is broken, a request that can't be met, a cut that can't be proved.
        ValueError: ``dry_run``, which leaves nothing to load.
    """
    if options.get("dry_run"):
        raise ValueError("prune_pipeline(): dry_run writes no pipeline to load: use onnx_diffprune.prune")
    if isinstance(pipeline, ORTDiffusionPipeline):
        kind = type(pipeline)
        with TemporaryDirectory(prefix="onnx-diffprune-") as folder:
            pipeline.save_pretrained(folder)
            onnx_diffprune.prune(folder, output, progress=progress, **options)
    else:
        kind = ORTDiffusionPipeline
        onnx_diffprune.prune(pipeline, output, progress=progress, **options)
    # Told that nothing is to be exported, optimum asks no server for files.
    return kind.from_pretrained(os.fspath(output), **{"export": False, **(load or {})})
