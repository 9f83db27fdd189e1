"""Pruned pipelines for optimum: `prune_pipeline` prunes the networks of a pipeline and loads the result."""

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
            it, or a loaded pipeline, which is first saved to a temporary folder.
        output: The folder of the pruned pipeline, with the plans of its cuts. An earlier one is replaced.
        load: Keywords of `ORTDiffusionPipeline.from_pretrained` for the pruned pipeline, such as
            ``{"provider": "CUDAExecutionProvider"}``.
        progress: Called with every progress report of pruning.
        **options: Keywords of `onnx_diffprune.prune`: ``ratio``, ``components``, ``data``, ``prompts``, ... Without
            ``components``, only the denoiser is cut.

    Returns:
        The pruned pipeline. Its class is that of a loaded ``pipeline``, otherwise the one in its ``model_index.json``.

    Raises:
        onnx_diffprune.DiffpruneError: Invalid input, a request that can't be met, a cut that failed verification.
        ValueError: ``dry_run``, which writes nothing that could be loaded.
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
    # With `export` set to False, optimum does not ask a server for files.
    return kind.from_pretrained(os.fspath(output), **{"export": False, **(load or {})})
