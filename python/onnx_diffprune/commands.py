"""The commands as functions. Each returns what the command prints with ``--format json``, as a dictionary.

A model is a path, an `onnx.ModelProto` or the bytes of one; the folder of a pipeline is a path too. Clean samples
(``data``) are a path, or an array ``[count, channels, height, width]`` of floats in the range of the samples or of bytes;
``inputs`` are a path or arrays by the names of the network's inputs, of which row ``i`` belongs to sample ``i``. What is in
memory is written into temporary files for the time of the call.

All of them raise `DiffpruneError`. They stop on Ctrl-C with `KeyboardInterrupt`, and on what ``progress``
raises (see `Progress`); no output is left then. Other threads of Python run while they work.
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
    """The report of a command."""
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
    """Remove the least important channels of a network, prove that the cut is correct, and write the smaller network.

    Args:
        model: The exported network, or the folder of a pipeline.
        output: Where the smaller network goes; its plan goes beside it. Of a pipeline it is a folder. It is only left out
            with ``dry_run=True``.
        progress: Gets what there is to tell.
        **options: See `onnx_diffprune.options.PruneOptions`: ``ratio``, ``target_macs`` or ``target_params`` says how much
            goes.

    Returns:
        What ``onnx-diffprune IN.onnx OUT.onnx --format json`` prints: costs before and after, groups, verification, refit.

    Raises:
        DiffpruneError: Input that is broken, a request that can't be met, a cut that could not be proved.
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
        output: Where the pruned network goes.
        progress: Gets what there is to tell.
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
    """Fit the weights of a pruned network by least squares, so that it computes what its original does.

    Args:
        original: The original network, or the folder of its pipeline.
        pruned: The pruned network. Of one in memory ``plan`` names the plan of the cut.
        output: Where the fitted network goes.
        progress: Gets what there is to tell.
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
    """Train the weights of a network, by its denoising loss and the output of a teacher.

    Args:
        model: The network, or the folder of its pipeline.
        output: Where the trained network goes. Checkpoints and the log of the run lie in ``run_folder``; they stay where
            the run is stopped, and ``resume=True`` goes on from them.
        progress: Gets what there is to tell: every step and every evaluation.
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
    """Compare a pruned network with its original under the plan of its cut.

    Args:
        original: The original network, or the folder of its pipeline.
        pruned: The pruned network. Of one in memory ``plan`` names the plan of the cut.
        progress: Gets what there is to tell.
        **options: See `onnx_diffprune.options.VerifyOptions`.

    Returns:
        The report. ``passed`` says whether the two agree: a network that differs is no exception.
    """
    with Files() as files:
        places = [model_path(original, files), model_path(pruned, files, "pruned")]
        report: dict[str, Any] = _run("verify", places, options, progress, files)
        return report


def inspect(model: ModelLike, **options: Unpack[InspectOptions]) -> dict[str, Any]:
    """Say what a network is made of, what it costs, which channels depend on each other, and what keeps channels and why.

    Args:
        model: The network, or the folder of a pipeline.
        **options: See `onnx_diffprune.options.InspectOptions`.
    """
    with Files() as files:
        report: dict[str, Any] = _run("inspect", [model_path(model, files)], options, None, files)
        return report


def structure(model: ModelLike, **options: Unpack[InspectOptions]) -> str:
    """The channel groups of a network and the nodes that they tie, as a graph in the DOT language.

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
        progress: Gets what there is to tell.
        **options: See `onnx_diffprune.options.LossOptions`; ``data`` is needed.
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
    """Say how good networks are beside their original: losses, samples from the same noise, costs.

    Args:
        networks: The network or the networks to evaluate: pruned, refitted or tuned.
        progress: Gets what there is to tell.
        **options: See `onnx_diffprune.options.EvaluateOptions`; ``original`` and ``data`` are needed.

    Raises:
        UnmetError: A network is beyond ``max_loss_increase`` or ``min_ssim``; its ``report`` says by how much.
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
    """Draw samples from a network into a picture, an array file or both. `Network.sample` returns them as an array.

    Args:
        model: The network, or the folder of a pipeline.
        output: Where the samples go as one PNG image of tiles.
        progress: Gets what there is to tell.
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
    """Encode images and captions once for a latent network, into a folder of arrays that ``data`` takes.

    Args:
        images: The folder of images, with captions beside them where there are some.
        cache: The folder for the arrays.
        progress: Gets what there is to tell.
        **options: See `onnx_diffprune.options.EncodeOptions`; ``vae_encoder`` is needed.
    """
    with Files() as files:
        report: dict[str, Any] = _run("encode", [_path(images), _path(cache)], options, progress, files)
        return report


def artifacts(model: ModelLike, output: StrPath, **options: Unpack[ArtifactsOptions]) -> dict[str, Any]:
    """Write what a training session of ONNX Runtime loads: training, eval and optimizer model, checkpoint.

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
    """Make a network ready for a runtime: half precision or int8, profiles of sizes, commands, in a folder.

    Args:
        model: The network, or the folder of a pipeline.
        bundle: The folder.
        progress: Gets what there is to tell.
        **options: See `onnx_diffprune.options.DeployOptions`; ``target`` is needed.
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
    """Time networks in turn at the sizes that they are deployed at: milliseconds, peak memory, the time by operator.

    Args:
        networks: The network or the networks.
        progress: Gets what there is to tell.
        **options: See `onnx_diffprune.options.BenchOptions`.
    """
    with Files() as files:
        report: dict[str, Any] = _run("bench", model_paths(networks, files), options, progress, files)
        return report


def runtime(**options: Unpack[RuntimeOptions]) -> dict[str, Any]:
    """Say which libraries of ONNX Runtime are found, which one is used, and which devices it can use.

    Args:
        **options: See `onnx_diffprune.options.RuntimeOptions`.

    Raises:
        RuntimeMissingError: None can be used; its ``report`` says where it was looked for.
    """
    with Files() as files:
        report: dict[str, Any] = _run("runtime", [], options, None, files)
        return report


def _path(path: StrPath) -> str:
    """A path as text."""
    return os.fspath(path)
