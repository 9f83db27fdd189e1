"""User code that mypy --strict and pyright check. It is not run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy
import onnx

import onnx_diffprune
from onnx_diffprune import Cut, Model, Network, Progress, Runtime, Scores, Staged


def show(progress: Progress) -> None:
    """A progress function."""
    if progress.kind == "stage" and progress.done is not None:
        left: float | None = progress.seconds_left
        print(progress.stage, progress.done, progress.total, left)


def one_call(model: onnx.ModelProto, images: numpy.ndarray[Any, numpy.dtype[numpy.uint8]]) -> int:
    """A model in memory and clean samples as an array."""
    try:
        report = onnx_diffprune.prune(
            model, "out.onnx", ratio=0.3, data=images, criterion="diff-pruning", size={"batch": 1}, progress=show
        )
    except onnx_diffprune.UnmetError as error:
        print(error.hint, error.report)
        return error.exit_code
    parameters: int = report["after"]["parameters"]
    return parameters


def steps(path: os.PathLike[str], output: Path) -> float:
    """The single steps."""
    runtime = Runtime()
    scores: Scores = Model(path).analyse().score(runtime, data="images", timesteps=50, threshold_mode="mask")
    cut: Cut = scores.cut(target_macs=0.5, keep=["conv_in", "conv_out"])
    staged: Staged
    with cut.stage(output) as staged:
        staged.verify(runtime, rtol=1e-3).save(plan=False)
    drawn = Network(Model(output), scheduler_config="scheduler_config.json").sample(runtime, count=4)
    return float(drawn.values.mean())


def several(networks: list[Path]) -> None:
    """Some commands."""
    onnx_diffprune.bench(networks, batch=[1, 2, 4])
    onnx_diffprune.evaluate(networks, original="in.onnx", data="heldout", max_loss_increase="5%")
    onnx_diffprune.deploy(networks[0], "bundle", target="tensorrt", profile={"batch": "1..4"})
