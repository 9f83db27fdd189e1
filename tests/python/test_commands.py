"""Commands as functions: their reports equal those of the command line, whatever form the arguments have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
from conftest import FEW, FIXTURES, SCHEDULER, alike, command

import onnx_diffprune


def test_a_report_is_what_the_command_prints(dit: Path, tmp_path: Path) -> None:
    report = onnx_diffprune.prune(dit, tmp_path / "out.onnx", ratio=0.5, criterion="magnitude", keep=["blocks.0", "x"])
    again = tmp_path / "again"
    again.mkdir()
    options = ["--ratio", 0.5, "--criterion", "magnitude", "--keep", "blocks.0", "--keep", "x"]
    alike(report, command(dit, again / "out.onnx", *options))
    assert (tmp_path / "out.onnx").read_bytes() == (again / "out.onnx").read_bytes()
    assert report["verification"]["passed"] is True


def test_a_model_in_memory_is_cut_like_its_file(dit: Path, tmp_path: Path) -> None:
    model = onnx.load(dit)
    kinds: dict[str, Any] = {"proto": model, "bytes": model.SerializeToString(), "path": tmp_path / "in.onnx"}
    onnx.save(model, tmp_path / "in.onnx")
    for name, given in kinds.items():
        onnx_diffprune.prune(given, tmp_path / f"{name}.onnx", ratio=0.25, criterion="magnitude", no_latency=True)
    written = [(tmp_path / f"{name}.onnx").read_bytes() for name in kinds]
    assert written[0] == written[1] == written[2]
    onnx.checker.check_model(onnx.load(tmp_path / "proto.onnx"))
    report = onnx_diffprune.verify(model, onnx.load(tmp_path / "proto.onnx"), plan=tmp_path / "proto.plan.json")
    assert report["passed"] is True


def test_arrays_are_accepted_in_place_of_files(unet: Path, images: Any, tmp_path: Path) -> None:
    numpy.save(tmp_path / "images.npy", images)
    by_array = onnx_diffprune.prune(unet, dry_run=True, ratio=0.3, data=images, **FEW)
    by_path = onnx_diffprune.prune(unet, dry_run=True, ratio=0.3, data=tmp_path / "images.npy", **FEW)
    alike(by_array["groups"], by_path["groups"])
    assert by_array["gradients"]["curve"] == by_path["gradients"]["curve"]


def test_every_command_is_a_function_with_its_options() -> None:
    commands = onnx_diffprune._native.commands()  # type: ignore[attr-defined]
    left_out = {"print_config", "dot", "output"}
    for name, told in commands.items():
        assert callable(getattr(onnx_diffprune, name))
        options = getattr(onnx_diffprune.options, f"{name.capitalize()}Options").__annotations__
        own = {a["name"] for a in told["arguments"] if a["option"] is not None and not a["is_global"]}
        assert own - left_out <= options.keys(), name


def test_a_pruned_network_is_refitted_repeated_verified_and_evaluated(unet: Path, images: Any, tmp_path: Path) -> None:
    cut, out = tmp_path / "cut.onnx", tmp_path / "fitted.onnx"
    onnx_diffprune.prune(unet, cut, ratio=0.3, criterion="magnitude", no_latency=True)
    onnx_diffprune.apply(unet, tmp_path / "cut.plan.json", tmp_path / "again.onnx")
    assert cut.read_bytes() == (tmp_path / "again.onnx").read_bytes()
    fit = onnx_diffprune.refit(
        unet, cut, out, data=images, refit_samples=8, refit_weights="uniform", scheduler_config=SCHEDULER, no_latency=True, no_verify=True
    )
    assert fit["refit"]["fitted"] > 0
    assert onnx_diffprune.verify(unet, out)["passed"] is True
    told = onnx_diffprune.evaluate(
        [cut, out], original=unet, data=images, count=8, timesteps=2, samples=0, scheduler_config=SCHEDULER, no_latency=True
    )
    assert len(told["networks"]) == 2
    with pytest.raises(onnx_diffprune.UnmetError, match="loss") as failure:
        onnx_diffprune.evaluate(
            cut, original=unet, data=images, count=8, timesteps=2, samples=0, scheduler_config=SCHEDULER,
            no_latency=True, max_loss_increase="1%",
        )
    assert failure.value.report is not None and failure.value.exit_code == 1


def test_other_commands_return_their_reports(unet: Path, dit: Path, images: Any, tmp_path: Path) -> None:
    alike(onnx_diffprune.inspect(dit), command("inspect", dit))
    assert onnx_diffprune.structure(dit).startswith("digraph")
    few: dict[str, Any] = {"count": 8, "timesteps": 2, "scheduler_config": SCHEDULER}
    loss = onnx_diffprune.loss(unet, data=images, **few)
    numpy.save(tmp_path / "images.npy", images)
    network = onnx_diffprune.Network(onnx_diffprune.Model(unet), scheduler_config=SCHEDULER)
    again = network.loss(images, onnx_diffprune.Runtime(), count=8, timesteps=2)
    assert again["losses"] == loss["losses"]
    drawn = onnx_diffprune.sample(unet, tmp_path / "x.png", count=2, steps=2, scheduler_config=SCHEDULER)
    assert drawn["shape"] == [2, 1, 16, 16] and (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    bench = onnx_diffprune.bench([dit, dit], runs=2, no_operators=True)
    assert len(bench["points"][0]["networks"]) == 2
    bundle = onnx_diffprune.deploy(unet, tmp_path / "bundle", target="cpu", precision="float16", size={"batch": 1})
    assert (tmp_path / "bundle/model.onnx").is_file() and bundle["precision"] == "float16"
    assert onnx_diffprune.artifacts(dit, tmp_path / "train")
    runtime = onnx_diffprune.runtime()
    assert runtime["used"]["found"] == "packages of this Python"


def test_a_network_is_trained(unet: Path, images: Any, tmp_path: Path) -> None:
    kinds: list[str] = []
    report = onnx_diffprune.finetune(
        unet, tmp_path / "tuned.onnx", data=images, steps=2, batch=4, scheduler_config=SCHEDULER, no_verify=True,
        eval_samples=4, progress=lambda told: kinds.append(told.kind),
    )
    assert kinds.count("step") == 2, kinds
    assert report["training"] is not None and (tmp_path / "tuned.onnx").is_file()


def test_a_pipeline_folder_is_pruned_and_sampled(tmp_path: Path) -> None:
    pipeline = FIXTURES / "pipelines/sd_tiny"
    report = onnx_diffprune.prune(pipeline, tmp_path / "slim", ratio=0.3, criterion="magnitude", no_latency=True)
    assert (tmp_path / "slim/model_index.json").is_file() and report
    onnx_diffprune.sample(tmp_path / "slim", tmp_path / "slim.png", count=1, steps=1)
    assert (tmp_path / "slim.png").stat().st_size > 100


def test_unknown_keywords_are_refused(dit: Path) -> None:
    with pytest.raises(TypeError, match=r"prune\(\) got an unexpected keyword argument 'ration'"):
        onnx_diffprune.prune(dit, "out.onnx", ration=0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="dry_run is True or False"):
        onnx_diffprune.prune(dit, "out.onnx", dry_run="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a path, an onnx.ModelProto or bytes, found int"):
        onnx_diffprune.prune(3, "out.onnx")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="keep"):
        onnx_diffprune.prune(dit, "out.onnx", keep=[object()])  # type: ignore[list-item]
