"""Fixtures and helpers of the Python package's tests. They run against the installed wheel: scripts/check_wheel.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
SCHEDULER = FIXTURES / "ddpm_fashion16/scheduler_config.json"

# Small counts: the library's tests check the quality of the results.
FEW: dict[str, Any] = {"timesteps": 2, "batch": 4, "scheduler_config": SCHEDULER}


def command(*arguments: object, code: int = 0, cwd: Path | None = None) -> Any:
    """Returns what the command of this environment prints with --format json."""
    program = Path(sys.executable).with_name("onnx-diffprune")
    texts = [str(argument) for argument in arguments]
    done = subprocess.run([program, *texts, "--format", "json"], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def alike(report: Any, other: Any) -> None:
    """Asserts that two reports are equal except for paths and measured times."""
    timed = {"seconds", "drawing_seconds", "latency_ms", "latency", "memory"}
    assert type(report) is type(other), (report, other)
    if isinstance(report, dict):
        assert report.keys() == other.keys()
        for key in report.keys() - timed:
            alike(report[key], other[key])
    elif isinstance(report, list):
        assert len(report) == len(other)
        for one, another in zip(report, other, strict=True):
            alike(one, another)
    elif isinstance(report, str) and os.sep in report:
        assert Path(report).name == Path(other).name
    else:
        assert report == other


@pytest.fixture(scope="session")
def dit() -> Path:
    """A tiny transformer."""
    return FIXTURES / "dit_tiny.onnx"


@pytest.fixture(scope="session")
def unet() -> Path:
    """A small trained U-Net."""
    return FIXTURES / "ddpm_fashion16.onnx"


@pytest.fixture(scope="session")
def images() -> numpy.ndarray[Any, numpy.dtype[numpy.uint8]]:
    """Clean samples for the U-Net: [8, 1, 16, 16], bytes."""
    found: numpy.ndarray[Any, numpy.dtype[numpy.uint8]] = numpy.load(FIXTURES / "ddpm_fashion16/train_images.npy")[:8]
    return found
