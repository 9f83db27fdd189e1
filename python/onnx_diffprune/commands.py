"""The commands as functions. Each returns the JSON object of ``--format json`` as a dictionary.

A model is a path, an `onnx.ModelProto` or its bytes; a path may be the folder of a pipeline. Clean samples (``data``)
are a path, or an array ``[count, channels, height, width]`` of floats in the sample range or of bytes. ``inputs`` are a
path, or arrays keyed by the names of the network's inputs; row ``i`` belongs to sample ``i``. Values in memory are
written to temporary files for the duration of the call.

All functions raise `DiffpruneError`. Ctrl-C stops them with `KeyboardInterrupt`, and so does an exception in
``progress`` (see `Progress`), which is raised from the call; no output is left then. The GIL is released while they
work.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _native
from ._arguments import Files, given, model_path, model_paths
from .options import ModelLike, StrPath
from .progress import ProgressFunction, _watching

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import (
        ApplyOptions,
        ArtifactsOptions,
        BenchOptions,
        DeployOptions,
        EncodeOptions,
        EvaluateOptions,
        FinetuneOptions,
        InspectOptions,
        LossOptions,
        PruneOptions,
        RefitOptions,
        RuntimeOptions,
        SampleOptions,
        VerifyOptions,
    )

__all__ = [
    "apply",
    "artifacts",
    "bench",
    "deploy",
    "encode",
    "evaluate",
    "finetune",
    "inspect",
    "loss",
    "prune",
    "refit",
    "runtime",
    "sample",
    "structure",
    "verify",
]


def _run(
    command: str,
    positional: Sequence[str],
    options: Mapping[str, object],
    progress: ProgressFunction | None,
    files: Files,
    extra: Sequence[str] = (),
) -> Any:
    """Run a command and return its report."""
    names = [] if command == "prune" else [command]
    arguments = ["onnx-diffprune", *names, *given(command, command, options, files), *extra, "--", *positional]
    report, _ = _native.call(arguments, _watching(progress))
    return report


def prune(
    model: ModelLike,
    output: StrPath | None = None,
    *,
    progress: ProgressFunction | None = None,
    **options: Unpack[PruneOptions],
) -> dict[str, Any]:
    """Remove the least important channels of a network, verify the cut, and write the smaller network.

    Args:
        model: The exported network, or the folder of a pipeline.
        output: Path of the smaller network; its plan is written beside it. For a pipeline, a folder. Omit it only
            with ``dry_run=True``.
        progress: Called with every progress report.
        **options: See `onnx_diffprune.options.PruneOptions`: ``ratio``, ``target_macs`` or ``target_params`` sets the
            pruning target.

    Returns:
        The JSON object of ``onnx-diffprune IN.onnx OUT.onnx --format json``: costs before and after, groups,
            verification, refit.

    Raises:
        DiffpruneError: Invalid input, a request that can't be met, or a cut that failed verification.
    """
    with Files() as files:
        places = [model_path(model, files), *([] if output is None else [_path(output)])]
        report: dict[str, Any] = _run("prune", places, options, progress, files)
        return report


def apply(
    model: ModelLike,
    plan: StrPath,
    output: StrPath,
    *,
    progress: ProgressFunction | None = None,
    **options: Unpack[ApplyOptions],
) -> dict[str, Any]:
    """Repeat the cut of a plan exactly.

    Args:
        model: The network that the plan was made for, or the folder of its pipeline.
        plan: The plan, or the folder of a pipeline whose denoiser has one beside it.
        output: Path of the pruned network.
        progress: Called with every progress report.
        **options: See `onnx_diffprune.options.ApplyOptions`.
    """
    with Files() as files:
        places = [model_path(model, files), _path(plan), _path(output)]
        report: dict[str, Any] = _run("apply", places, options, progress, files)
        return report


def refit(
    original: ModelLike,
    pruned: ModelLike,
    output: StrPath,
    *,
    progress: ProgressFunction | None = None,
    **options: Unpack[RefitOptions],
) -> dict[str, Any]:
    """Fit the weights of a pruned network by least squares, so that its outputs are close to those of the original.

    Args:
        original: The original network, or the folder of its pipeline.
        pruned: The pruned network. For one in memory, ``plan`` names the plan of its cut.
        output: Path of the refitted network.
        progress: Called with every progress report.
        **options: See `onnx_diffprune.options.RefitOptions`.
    """
    with Files() as files:
        places = [model_path(original, files), model_path(pruned, files, "pruned"), _path(output)]
        report: dict[str, Any] = _run("refit", places, options, progress, files)
        return report


def finetune(
    model: ModelLike,
    output: StrPath,
    *,
    progress: ProgressFunction | None = None,
    **options: Unpack[FinetuneOptions],
) -> dict[str, Any]:
    """Fine-tune the weights of a network on its denoising loss and the output of a teacher.

    Args:
        model: The network, or the folder of its pipeline.
        output: Path of the trained network. Checkpoints and the log of the run are in ``run_folder``; an interrupted run
            keeps them, and ``resume=True`` continues from them.
        progress: Called with every progress report, among them every step and every evaluation.
        **options: See `onnx_diffprune.options.FinetuneOptions`.
    """
    with Files() as files:
        places = [model_path(model, files), _path(output)]
        report: dict[str, Any] = _run("finetune", places, options, progress, files)
        return report


def verify(
    original: ModelLike,
    pruned: ModelLike,
    *,
    progress: ProgressFunction | None = None,
    **options: Unpack[VerifyOptions],
) -> dict[str, Any]:
    """Verify a pruned network against its original by the plan of its cut.

    Args:
        original: The original network, or the folder of its pipeline.
        pruned: The pruned network. For one in memory, ``plan`` names the plan of its cut.
        progress: Called with every progress report.
        **options: See `onnx_diffprune.options.VerifyOptions`.

    Returns:
        The report. ``passed`` states whether they agree; a network that differs raises no exception.
    """
    with Files() as files:
        places = [model_path(original, files), model_path(pruned, files, "pruned")]
        report: dict[str, Any] = _run("verify", places, options, progress, files)
        return report


def inspect(model: ModelLike, **options: Unpack[InspectOptions]) -> dict[str, Any]:
    """Describe a network: its costs, its channel groups, and which channels are kept and why.

    Args:
        model: The network, or the folder of a pipeline.
        **options: See `onnx_diffprune.options.InspectOptions`.
    """
    with Files() as files:
        report: dict[str, Any] = _run("inspect", [model_path(model, files)], options, None, files)
        return report


def structure(model: ModelLike, **options: Unpack[InspectOptions]) -> str:
    """Return the channel groups of a network and the nodes that couple them, as a graph in the DOT language.

    Args:
        model: The network, or the folder of a pipeline.
        **options: See `onnx_diffprune.options.InspectOptions`.
    """
    with Files() as files:
        text: str = _run("inspect", [model_path(model, files)], options, None, files, ["--dot"])
        return text


def loss(
    model: ModelLike, *, progress: ProgressFunction | None = None, **options: Unpack[LossOptions]
) -> dict[str, Any]:
    """Measure the denoising loss of a network on clean samples, by timestep.

    Args:
        model: The network, pruned or not, or the folder of a pipeline.
        progress: Called with every progress report.
        **options: See `onnx_diffprune.options.LossOptions`; ``data`` is required.
    """
    with Files() as files:
        report: dict[str, Any] = _run("loss", [model_path(model, files)], options, progress, files)
        return report


def evaluate(
    networks: ModelLike | Sequence[ModelLike],
    *,
    progress: ProgressFunction | None = None,
    **options: Unpack[EvaluateOptions],
) -> dict[str, Any]:
    """Compare networks with their original: losses, samples from the same noise, costs.

    Args:
        networks: The network or the networks to evaluate: pruned, refitted or tuned.
        progress: Called with every progress report.
        **options: See `onnx_diffprune.options.EvaluateOptions`; ``original`` and ``data`` are required.

    Raises:
        UnmetError: A network exceeds ``max_loss_increase`` or falls below ``min_ssim``; its ``report`` has the figures.
    """
    with Files() as files:
        report: dict[str, Any] = _run("evaluate", model_paths(networks, files), options, progress, files)
        return report


def sample(
    model: ModelLike,
    output: StrPath | None = None,
    *,
    progress: ProgressFunction | None = None,
    **options: Unpack[SampleOptions],
) -> dict[str, Any]:
    """Generate samples with a network, as an image, an array file or both. `Network.sample` returns them as an array.

    Args:
        model: The network, or the folder of a pipeline.
        output: Path of a PNG image with the samples as tiles.
        progress: Called with every progress report.
        **options: See `onnx_diffprune.options.SampleOptions`.
    """
    extra = [] if output is None else [f"--output={_path(output)}"]
    with Files() as files:
        report: dict[str, Any] = _run("sample", [model_path(model, files)], options, progress, files, extra)
        return report


def encode(
    images: StrPath,
    cache: StrPath,
    *,
    progress: ProgressFunction | None = None,
    **options: Unpack[EncodeOptions],
) -> dict[str, Any]:
    """Encode images and captions once for a latent network, into a folder of arrays that ``data`` accepts.

    Args:
        images: The folder of images, optionally with captions beside them.
        cache: The folder for the arrays.
        progress: Called with every progress report.
        **options: See `onnx_diffprune.options.EncodeOptions`; ``vae_encoder`` is required.
    """
    with Files() as files:
        report: dict[str, Any] = _run("encode", [_path(images), _path(cache)], options, progress, files)
        return report


def artifacts(model: ModelLike, output: StrPath, **options: Unpack[ArtifactsOptions]) -> dict[str, Any]:
    """Write the artifacts of a training session of ONNX Runtime: training, eval and optimizer model, checkpoint.

    Args:
        model: The network.
        output: The folder for the four files.
        **options: See `onnx_diffprune.options.ArtifactsOptions`.
    """
    with Files() as files:
        report: dict[str, Any] = _run("artifacts", [model_path(model, files), _path(output)], options, None, files)
        return report


def deploy(
    model: ModelLike,
    bundle: StrPath,
    *,
    progress: ProgressFunction | None = None,
    **options: Unpack[DeployOptions],
) -> dict[str, Any]:
    """Prepare a network for a runtime: a folder with the network in half precision or int8, size profiles and commands.

    Args:
        model: The network, or the folder of a pipeline.
        bundle: The output folder.
        progress: Called with every progress report.
        **options: See `onnx_diffprune.options.DeployOptions`; ``target`` is required.
    """
    with Files() as files:
        places = [model_path(model, files), _path(bundle)]
        report: dict[str, Any] = _run("deploy", places, options, progress, files)
        return report


def bench(
    networks: ModelLike | Sequence[ModelLike],
    *,
    progress: ProgressFunction | None = None,
    **options: Unpack[BenchOptions],
) -> dict[str, Any]:
    """Measure the latency of networks in turn, at deployment sizes: milliseconds, peak memory, the time by operator.

    Args:
        networks: One or several networks.
        progress: Called with every progress report.
        **options: See `onnx_diffprune.options.BenchOptions`.
    """
    with Files() as files:
        report: dict[str, Any] = _run("bench", model_paths(networks, files), options, progress, files)
        return report


def runtime(**options: Unpack[RuntimeOptions]) -> dict[str, Any]:
    """List the ONNX Runtime libraries that are found, the one in use, and the devices that it can use.

    Args:
        **options: See `onnx_diffprune.options.RuntimeOptions`.

    Raises:
        RuntimeMissingError: No library can be used; its ``report`` lists the places that were searched.
    """
    with Files() as files:
        report: dict[str, Any] = _run("runtime", [], options, None, files)
        return report


def _path(path: StrPath) -> str:
    """Return a path as text."""
    return os.fspath(path)
