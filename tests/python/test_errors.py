"""Exceptions: one class for each kind of failure, and no output is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import SCHEDULER, command

import onnx_diffprune
from onnx_diffprune import errors


def test_every_kind_has_its_class(dit: Path, unet: Path, images: Any, tmp_path: Path) -> None:
    junk, out = tmp_path / "junk.onnx", tmp_path / "out.onnx"
    junk.write_bytes(b"\x08\x07no model")
    with pytest.raises(errors.UnreadableError, match="absent.onnx") as failure:
        onnx_diffprune.prune(tmp_path / "absent.onnx", out, ratio=0.5)
    assert failure.value.exit_code == 2
    with pytest.raises(errors.InvalidModelError, match="junk.onnx"):
        onnx_diffprune.Model(junk)
    with pytest.raises(errors.UsageError, match="ratio") as usage:
        onnx_diffprune.prune(dit, out, ratio=1.5, criterion="magnitude")
    assert usage.value.hint and usage.value.hint in str(usage.value) and isinstance(usage.value, ValueError)
    with pytest.raises(errors.UnmetError) as unmet:
        onnx_diffprune.prune(dit, out, ratio=0.5, criterion="magnitude", keep=".")
    assert unmet.value.exit_code == 1
    with pytest.raises(errors.OutputError, match="absent"):
        onnx_diffprune.prune(dit, tmp_path / "absent/folder/out.onnx", ratio=0.5, criterion="magnitude", no_verify=True)
    with pytest.raises(errors.RuntimeMissingError, match="cannot be used|already uses"):
        onnx_diffprune.Runtime()
        onnx_diffprune.Runtime(sys.executable)
    assert not out.exists() and sorted(tmp_path.iterdir()) == [junk]
    for kind in ("Unreadable", "InvalidModel", "Unsupported", "Unmet", "VerificationFailed", "RuntimeMissing", "Output"):
        assert issubclass(getattr(errors, f"{kind}Error"), errors.DiffpruneError)


def test_an_unknown_configuration_is_unsupported(unet: Path, images: Any, tmp_path: Path) -> None:
    config = json.loads(SCHEDULER.read_text()) | {"prediction_type": "something new"}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(errors.UnsupportedError, match="something new") as failure:
        onnx_diffprune.loss(unet, data=images, scheduler_config=tmp_path / "scheduler_config.json")
    assert failure.value.exit_code == 2


def test_a_file_that_is_not_the_cut_of_its_plan_is_reported(dit: Path, unet: Path, images: Any, tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    onnx_diffprune.prune(unet, cut, ratio=0.3, criterion="magnitude", no_verify=True)
    model = onnx.load(cut)
    broken = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    array = onnx.numpy_helper.to_array(broken).copy()
    array += 1
    broken.CopyFrom(onnx.numpy_helper.from_array(array, broken.name))
    onnx.save(model, cut)
    report = onnx_diffprune.verify(unet, cut)
    assert report["passed"] is False
    # The exit code of the command says the same.
    assert command("verify", unet, cut, code=1)["passed"] is False
    with pytest.raises(errors.VerificationFailedError, match="is not the cut that its plan describes"):
        onnx_diffprune.refit(unet, cut, tmp_path / "out.onnx", data=images, scheduler_config=SCHEDULER)


def test_exceptions_can_be_sent_to_another_process(tmp_path: Path) -> None:
    import pickle

    with pytest.raises(errors.UnreadableError) as failure:
        onnx_diffprune.Model(tmp_path / "absent.onnx")
    copy = pickle.loads(pickle.dumps(failure.value))
    assert type(copy) is errors.UnreadableError and str(copy) == str(failure.value)
    assert copy.exit_code == failure.value.exit_code and copy.causes == failure.value.causes


def test_a_missing_runtime_is_reported_with_the_command_to_install_it(dit: Path, tmp_path: Path) -> None:
    """Runs a process that finds no package `onnxruntime`. Other places may have a library, so it names an empty folder."""
    code = f"""
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "onnxruntime" else find(name, package)
import onnx_diffprune
try:
    onnx_diffprune.Runtime({str(tmp_path)!r})
except onnx_diffprune.RuntimeMissingError as error:
    print(error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "onnx-diffprune[cpu]"' in done.stdout
