#!/usr/bin/env python3
"""Build TensorRT-RTX engines from ONNX models, ahead of time and without a GPU.

Engines are built for compute capability 8.9. ``--setup`` installs the wheels into the project's ``.venv-trt``; without
them the script reports that and exits with 3. Otherwise the exit code is 0 if every model was built, else 1.

    check_tensorrt.py --setup
    check_tensorrt.py MODEL.onnx [...] [--min batch=1 --opt batch=2,height=32 --max batch=4] [--format json]
    check_tensorrt.py --tool target/debug/onnx-diffprune    # builds engines with `deploy --engine`, of a U-Net and of a pipeline
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

ENVIRONMENT = Path(__file__).resolve().parent.parent / ".venv-trt"
BINDINGS = "tensorrt_rtx_bindings"
PACKAGES = (
    "tensorrt-rtx-cu13-bindings==1.7.1.116",
    # This plugin contains the compiler and the parser as versioned shared libraries.
    "onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0",
    "numpy",
)
LIBRARIES = ("libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so")
SKIPPED = 3


class Unavailable(Exception):
    """The wheels or their libraries are not available."""


def environment_python() -> Path:
    return ENVIRONMENT / "bin" / "python"


def set_up() -> None:
    """Create the environment and install the wheels into it."""
    try:
        venv.create(ENVIRONMENT, with_pip=True, clear=False)
        install = [str(environment_python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # Their declared dependencies are the GPU runtime, which ahead-of-time builds do not need.
        subprocess.run([*install, "--no-deps", *PACKAGES], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"the TensorRT-RTX wheels could not be installed: {error}") from error


def load_bindings():
    """Load the shared libraries under the names that the bindings expect, then the bindings."""
    packages = Path(sysconfig.get_paths()["purelib"])
    folder = packages / "onnxruntime_ep_nv_tensorrt_rtx"
    links = ENVIRONMENT / "tensorrt-libraries"
    for library in LIBRARIES:
        versioned = sorted(folder.glob(f"{library}.*"))
        if not versioned:
            raise Unavailable(f"{library} is not installed; run with --setup")
        links.mkdir(exist_ok=True)
        link = links / f"{library}.1"
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(versioned[-1])
        try:
            ctypes.CDLL(str(link), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise Unavailable(f"{library} does not load: {error}") from error
    try:
        return importlib.import_module(BINDINGS)
    except ImportError as error:
        raise Unavailable(f"{BINDINGS} does not import: {error}") from error


def example_shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of MODEL.inputs.npz, if it is beside the model."""
    import numpy

    path = model.with_suffix(".inputs.npz")
    if not path.exists():
        return {}
    with numpy.load(path) as arrays:
        return {name: arrays[name].shape for name in arrays.files}


def default_size(label: str, axis: int, example: int | None) -> tuple[int, int, int]:
    """Return smallest, usual and largest size of a symbolic axis, from its label and the example's size."""
    if "batch" in label or (axis == 0 and not label):
        return 1, 2, 4
    if example is None:
        example = 77 if any(word in label for word in ("length", "sequence", "token")) else 32
    return max(example // 2, 1), example, example * 2


def profile_shapes(tensor, example: tuple[int, ...] | None, overrides: dict[str, dict[str, int]]):
    """Return the three shapes of one input's optimization profile."""
    shapes = {"min": [], "opt": [], "max": []}
    for axis, size in enumerate(tensor.shape):
        label = tensor.get_dimension_name(axis) if size < 0 else ""
        known = example[axis] if example else None
        sizes = default_size(label, axis, known) if size < 0 else (size, size, size)
        for kind, value in zip(shapes, sizes):
            shapes[kind].append(overrides[kind].get(label, value) if size < 0 else value)
    return tuple(tuple(shapes[kind]) for kind in ("min", "opt", "max"))


def allow_attention_decomposition(trt, network) -> None:
    """Let attention without a dedicated kernel be computed by elementary operations.

    The compiler has kernels for few head sizes only, and otherwise refuses the whole model.
    """
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            # The bindings return the base class, which hides the attention methods. The object is the same.
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def build_engine(trt, path: Path, overrides: dict[str, dict[str, int]]) -> dict:
    started = time.monotonic()
    messages: list[str] = []

    class Collector(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)

        def log(self, severity, message):
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)

    def result(ok: bool, size: int = 0, stage: str = "") -> dict:
        unique = list(dict.fromkeys(messages))
        return {
            "model": str(path),
            "ok": ok,
            "stage": stage,
            "bytes": size,
            "errors": unique[:20],
            "seconds": round(time.monotonic() - started, 1),
        }

    builder = trt.Builder(Collector())
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    # Parsing by path lets the parser find external data.
    if not parser.parse_from_file(str(path)):
        messages.extend(parser.get_error(index).desc() for index in range(parser.num_errors))
        return result(False, stage="parse")
    allow_attention_decomposition(trt, network)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    examples = example_shapes(path)
    profile, dynamic = builder.create_optimization_profile(), False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if any(size < 0 for size in tensor.shape):
            profile.set_shape(tensor.name, *profile_shapes(tensor, examples.get(tensor.name), overrides))
            dynamic = True
    if dynamic:
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return result(False, stage="build")
    return result(True, engine.nbytes)


def deployed(tool: str) -> bool:
    """Build engines with the tool's own command. Return whether each exists under the expected name."""
    fixtures = Path(__file__).resolve().parent.parent / "fixtures"
    capabilities = "8.9,12.0"
    passed = True
    for source, loader in (
        (fixtures / "ddpm_fashion16.onnx", None),
        (fixtures / "pipelines" / "sd_tiny", None),
        (fixtures / "pipelines" / "sdxl_tiny", "comfyui"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "bundle"
            command = [tool, "deploy", str(source), str(bundle), "--target", "tensorrt-rtx", "--engine"]
            command += ["--compute-capability", capabilities, "--python", str(environment_python())]
            command += ["--count", "2", "--timesteps", "2", "--format", "json"]
            command += ["--io", loader] if loader else []
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode != 0:
                print(f"{source.name}: failed: {ran.stderr.strip()[-600:]}", flush=True)
                passed = False
                continue
            engine = json.loads(ran.stdout)["engine"]
            file = Path(engine["file"])
            manifest = json.loads((file.parent / "bundle.json").read_text())
            fits = file.is_file() and file.stat().st_size == engine["bytes"] > 0
            fits &= re.fullmatch(r"[0-9a-f]{16}_rtx1[0-9.]+_sm89-sm120\.engine", file.name) is not None
            fits &= file.name in manifest["files"]
            passed &= fits
            state = "ok" if fits else "failed"
            print(f"{source.name}: {state}: {file.name}, {engine['bytes']} bytes, {engine['seconds']:.1f} s", flush=True)
    return passed


def parse_sizes(text: str) -> dict[str, int]:
    pairs = [entry.split("=") for entry in text.split(",") if entry]
    return {name: int(size) for name, size in pairs}


def check_isolated(path: Path, arguments: list[str]) -> dict:
    """Check one model in a separate process, because the compiler may abort the process."""
    command = [str(environment_python()), __file__, "--isolated", *arguments, str(path)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode == SKIPPED:
        raise Unavailable(lines[-1].removeprefix("skipped: ") if lines else "unknown reason")
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    tail = done.stderr.strip().splitlines()[-3:]
    return {
        "model": str(path),
        "ok": False,
        "stage": f"exit code {done.returncode}",
        "bytes": 0,
        "errors": tail,
        "seconds": round(time.monotonic() - started, 1),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--setup", action="store_true", help="install the wheels into .venv-trt")
    for kind in ("min", "opt", "max"):
        parser.add_argument(f"--{kind}", default="", metavar="NAME=SIZE,...", help=f"{kind} sizes of symbolic axes")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write all results as JSON too")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--tool", metavar="PATH", help="build engines with deploy --engine of this onnx-diffprune")
    parser.add_argument("--isolated", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    overrides = {kind: parse_sizes(getattr(options, kind)) for kind in ("min", "opt", "max")}
    try:
        if options.setup:
            set_up()
        if options.isolated:
            trt = load_bindings()
            print(json.dumps(build_engine(trt, options.models[0], overrides)))
            # The libraries' own clean-up may crash without a GPU, after all the work is done.
            sys.stdout.flush()
            os._exit(0)
        if not environment_python().exists():
            raise Unavailable("the TensorRT-RTX wheels are not installed; run with --setup")
        if options.tool:
            return 0 if deployed(options.tool) else 1
        passed_on = [f"--{kind}={getattr(options, kind)}" for kind in overrides]
        results = []
        for path in options.models:
            outcome = check_isolated(path, passed_on)
            results.append(outcome)
            if options.format == "text":
                state = f"ok      {outcome['bytes']:>12} bytes" if outcome["ok"] else f"failed  at {outcome['stage']}"
                print(f"{path.name:44} {state:28} {outcome['seconds']:6.1f} s", flush=True)
                for message in outcome["errors"] if not outcome["ok"] else ():
                    print(f"    {message}", flush=True)
    except Unavailable as reason:
        print(f"skipped: {reason}")
        return SKIPPED
    if options.save:
        options.save.write_text(json.dumps(results, indent=1) + "\n")
    if options.format == "json":
        print(json.dumps(results, indent=1))
    return 0 if all(outcome["ok"] for outcome in results) else 1


if __name__ == "__main__":
    sys.exit(main())
