"""Progress, Ctrl-C, and the GIL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from conftest import FEW, SCHEDULER

import onnx_diffprune


def test_progress_reports_the_stages(unet: Path, images: Any, tmp_path: Path) -> None:
    told: list[onnx_diffprune.Progress] = []
    onnx_diffprune.prune(unet, tmp_path / "out.onnx", ratio=0.3, data=images, progress=told.append, no_refit=True, **FEW)
    stages = [progress.stage for progress in told if progress.kind == "stage"]
    assert "gradients" in stages and stages.index("gradients") < stages.index("scoring") < stages.index("verifying")
    gradients = [progress for progress in told if progress.stage == "gradients"]
    assert [progress.done for progress in gradients] == sorted(progress.done or 0 for progress in gradients)
    assert gradients[0].seconds_left is None and gradients[-1].seconds_left is not None
    assert any(progress.kind == "network" and "process" in (progress.text or "") for progress in told)


def test_an_exception_in_a_progress_function_ends_the_call(unet: Path, images: Any, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def stop(progress: onnx_diffprune.Progress) -> None:
        if progress.stage == "gradients" and progress.done:
            raise Enough

    with pytest.raises(Enough):
        onnx_diffprune.prune(unet, tmp_path / "out.onnx", ratio=0.3, data=images, progress=stop, **FEW)
    with pytest.raises(Enough):
        onnx_diffprune.Model(unet).analyse().score(onnx_diffprune.Runtime(), data=images, progress=stop, **FEW)
    assert not list(tmp_path.iterdir())


def test_a_call_cancelled_after_the_verification_leaves_no_files(dit: Path, tmp_path: Path) -> None:
    def stop(progress: onnx_diffprune.Progress) -> None:
        if progress.stage == "verifying":
            raise onnx_diffprune.CancelledError

    with pytest.raises(onnx_diffprune.CancelledError, match="cancelled"):
        onnx_diffprune.prune(dit, tmp_path / "out.onnx", ratio=0.5, criterion="magnitude", progress=stop)
    assert not list(tmp_path.iterdir())


def test_warnings_are_python_warnings(unet: Path, images: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        onnx_diffprune.prune(unet, dry_run=True, ratio=0.3, criterion="magnitude", resume=True)
    assert any(issubclass(warning.category, onnx_diffprune.DiffpruneWarning) for warning in caught)


LONG = """
import sys, onnx_diffprune
try:
    onnx_diffprune.prune({model!r}, {output!r}, ratio=0.3, data={data!r}, scheduler_config={scheduler!r},
                         progress=lambda told: told.stage == "gradients" and told.done and print("working", flush=True))
except KeyboardInterrupt:
    print("interrupted")
    sys.exit(7)
"""


def interrupted(program: list[str], first: str) -> tuple[int, str]:
    """Returns exit code and output of a process that gets SIGINT once it has printed a line with `first`."""
    # A shell that starts the tests in the background may ignore the signal, which child processes inherit.
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heard)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if first in line:
            process.send_signal(signal.SIGINT)
            break
    rest, _ = process.communicate(timeout=120)
    return process.returncode, "".join(lines) + rest


@pytest.mark.skipif(os.name == "nt", reason="SIGINT is one of Unix")
def test_ctrl_c_is_a_keyboard_interrupt_and_leaves_no_output(unet: Path, tmp_path: Path) -> None:
    data = unet.parent / "ddpm_fashion16/train_images.npy"
    code = LONG.format(model=str(unet), output=str(tmp_path / "out.onnx"), data=str(data), scheduler=str(SCHEDULER))
    status, output = interrupted([sys.executable, "-c", code], "working")
    assert status == 7 and "interrupted" in output, output
    # A checkpoint of the gradients may be kept for a resumed run.
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".gradients.npz")]


@pytest.mark.skipif(os.name == "nt", reason="SIGINT is one of Unix")
def test_ctrl_c_ends_the_command_with_sigint(unet: Path, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("onnx-diffprune")
    data = unet.parent / "ddpm_fashion16/train_images.npy"
    options = ["--ratio", "0.3", "--data", str(data), "--scheduler-config", str(SCHEDULER)]
    status, output = interrupted([str(program), str(unet), str(tmp_path / "out.onnx"), *options], "process:")
    assert status == -signal.SIGINT, output
    assert "Traceback" not in output
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".gradients.npz")]


def test_other_threads_run_while_the_library_works(unet: Path, images: Any) -> None:
    count, works = 0, True

    def counts() -> None:
        nonlocal count
        while works:
            count += 1
            time.sleep(0.001)

    thread = threading.Thread(target=counts)
    thread.start()
    before, began = count, time.monotonic()
    # No progress is reported in this loop, which would release the GIL.
    for _ in range(3):
        onnx_diffprune.Model(unet).analyse()
    counted, seconds = count - before, time.monotonic() - began
    works = False
    thread.join()
    assert counted > 20 * seconds, (counted, seconds)


def test_the_exit_codes_of_the_command(dit: Path, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("onnx-diffprune")

    def code(*arguments: object) -> int:
        texts = [str(argument) for argument in arguments]
        return subprocess.run([program, *texts], capture_output=True, check=False).returncode

    assert code("--version") == 0 and code("--no-such-option") == 2
    assert code(dit, tmp_path / "o.onnx", "--ratio", 0.5, "--criterion", "magnitude", "--no-verify") == 0
    assert code(dit, tmp_path / "p.onnx", "--ratio", 0.5, "--criterion", "magnitude", "--keep", ".") == 1
    assert code(tmp_path / "absent.onnx", tmp_path / "p.onnx", "--ratio", 0.5) == 2
    done = subprocess.run(
        [sys.executable, "-m", "onnx_diffprune", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"onnx-diffprune {onnx_diffprune.__version__}"
