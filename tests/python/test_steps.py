"""The single steps of a cut, and the results in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import onnx
import onnxruntime
import pytest
from conftest import FEW, SCHEDULER, alike

import onnx_diffprune
from onnx_diffprune import Model, Network, Runtime


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime()


def test_the_steps_produce_the_cut_of_the_command(unet: Path, images: Any, runtime: Runtime, tmp_path: Path) -> None:
    one_call = onnx_diffprune.prune(
        unet, tmp_path / "one.onnx", ratio=0.3, data=images, no_refit=True, no_latency=True, **FEW
    )
    analysis = Model(unet).analyse()
    scores = analysis.score(runtime, data=images, **FEW)
    cut = scores.cut(ratio=0.3)
    assert scores.gradients is not None
    assert scores.gradients["curve"] == one_call["gradients"]["curve"]
    alike([cut.before, cut.after, cut.ratio], [one_call["before"], one_call["after"], one_call["ratio"]])
    assert [len(group["kept"]) for group in cut.plan["groups"]] == [group["kept"] for group in one_call["groups"]]
    with cut.stage(tmp_path / "steps.onnx") as staged:
        report = staged.check(runtime, rtol=1e-3)
        assert report["passed"] is True and staged.verification == report
        fit = staged.refit(runtime, data=images, refit_samples=8, refit_weights="uniform", scheduler_config=SCHEDULER)
        assert fit["layers"] and staged.verification is None
        written = staged.verify(runtime).save()
    assert written["bytes"] == (tmp_path / "steps.onnx").stat().st_size
    assert analysis.verify(Model(tmp_path / "steps.onnx"), tmp_path / "steps.plan.json", runtime)["passed"] is True


def test_a_cut_has_fewer_parameters_and_runs_in_onnx_runtime(dit: Path, tmp_path: Path) -> None:
    cut = Model(dit).analyse().score(criterion="magnitude").cut(ratio=0.25)
    cut.record("note", {"by": "a test"})
    cut.stage(tmp_path / "cut.onnx").save()
    model = onnx.load(tmp_path / "cut.onnx")
    left = sum(int(numpy.prod(tensor.dims)) for tensor in model.graph.initializer)
    whole = sum(int(numpy.prod(tensor.dims)) for tensor in onnx.load(dit).graph.initializer)
    assert left < whole and cut.after["parameters"] < cut.before["parameters"]
    assert cut.plan["options"]["note"] == {"by": "a test"}
    session = onnxruntime.InferenceSession(str(tmp_path / "cut.onnx"), providers=["CPUExecutionProvider"])
    feeds = {
        port.name: numpy.zeros([size if isinstance(size, int) else 1 for size in port.shape], numpy.float32)
        if "float" in port.type else numpy.zeros([size if isinstance(size, int) else 1 for size in port.shape], numpy.int64)
        for port in session.get_inputs()
    }
    assert all(numpy.isfinite(output).all() for output in session.run(None, feeds))


def test_a_cut_that_is_not_saved_leaves_no_files(dit: Path, tmp_path: Path) -> None:
    cut = Model(dit).analyse().score(criterion="random", seed=3).cut(target_macs=0.5)
    with cut.stage(tmp_path / "cut.onnx") as staged:
        assert staged.total_bytes() > 0
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="stage the cut again"):
        staged.save()
    again = cut.stage(tmp_path / "cut.onnx")
    again.add_file(tmp_path / "note.txt", b"text")
    again.save(plan=False)
    assert {path.name for path in tmp_path.iterdir()} == {"cut.onnx", "note.txt"}


def test_a_model_in_memory_lives_as_long_as_objects_derived_from_it(dit: Path, runtime: Runtime, tmp_path: Path) -> None:
    staged = Model(onnx.load(dit)).analyse().score(criterion="magnitude").cut(ratio=0.5).stage(tmp_path / "out.onnx")
    assert staged.verify(runtime).save()["plan"]


def test_properties_of_a_model_and_its_analysis(dit: Path, unet: Path) -> None:
    model = Model(unet)
    analysis = model.analyse()
    assert model.path == unet and model.total_bytes() == unet.stat().st_size and len(model.digest()) == 64
    assert model.external_files == [] and isinstance(model.notes, list)
    assert analysis.sizes({"batch": 3})["batch"] == 3
    assert analysis.cost({"batch": 2})["macs"] == 2 * analysis.cost({"batch": 1})["macs"]
    assert analysis.computes_weights is False and any(analysis.coupling_texts())
    assert analysis.inspect()["cost"]["parameters"] == analysis.cost()["parameters"]
    with pytest.raises(onnx_diffprune.UsageError):
        analysis.sizes({"no such": 1})
    with pytest.raises(onnx_diffprune.DiffpruneError, match="no such"):
        analysis.check_inputs({"no such": numpy.zeros(1)})
    with pytest.raises(onnx_diffprune.UsageError, match="IN.onnx|replace"):
        model.check_output(unet)


def test_inputs_are_numpy_arrays(unet: Path, runtime: Runtime, tmp_path: Path) -> None:
    model = Model(unet)
    analysis = model.analyse()
    names = [name for name, _ in analysis.inspect()["inputs"]]
    sample = numpy.random.default_rng(0).standard_normal((2, 1, 16, 16), numpy.float32)
    # A transposed view, whose memory layout differs.
    view = numpy.ascontiguousarray(sample.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    inputs = {names[0]: view}
    analysis.check_inputs(inputs)
    cut = analysis.score(criterion="magnitude").cut(ratio=0.3)
    first, second = (cut.stage(tmp_path / "cut.onnx").check(runtime, inputs={names[0]: of}) for of in (sample, view))
    assert first == second and first["runs"]
    numpy.savez(tmp_path / "in.npz", **{names[0]: sample})
    assert (model.read_inputs(tmp_path / "in.npz")[names[0]] == sample).all()
    with pytest.raises(TypeError, match="complex"):
        analysis.check_inputs({names[0]: numpy.zeros(2, numpy.complex64)})


def test_samples_are_returned_as_an_array(unet: Path, runtime: Runtime, tmp_path: Path) -> None:
    network = Network(Model(unet), scheduler_config=SCHEDULER)
    drawn = network.sample(runtime, count=2, steps=2, seed=1)
    assert drawn.values.dtype == numpy.float32 and drawn.values.shape == (2, 1, 16, 16)
    drawn.save(npy=tmp_path / "drawn.npy", png=tmp_path / "drawn.png")
    assert (numpy.load(tmp_path / "drawn.npy") == drawn.values).all()
    assert (tmp_path / "drawn.png").read_bytes() == drawn.png()
    assert drawn.report["conditioning_given"] == []
    again = onnx_diffprune.sample(
        unet, save_npy=tmp_path / "again.npy", count=2, steps=2, seed=1, scheduler_config=SCHEDULER
    )
    assert again["shape"] == [2, 1, 16, 16] and (numpy.load(tmp_path / "again.npy") == drawn.values).all()


def test_the_library_in_use_is_that_of_this_environment(runtime: Runtime) -> None:
    assert runtime.version == onnxruntime.__version__
    assert Path(onnxruntime.__file__).parent in runtime.library.parents
    assert "CPUExecutionProvider" in runtime.execution_providers
    assert runtime.device_status("cpu")["usable"] is True
    assert onnx_diffprune.library_providers(runtime.library)[0] == runtime.version
    assert onnx_diffprune.candidates()[0]["how"] == "packages of this Python"
