#!/usr/bin/env python3
"""Make bundles of networks and check them with the ONNX checker, ONNX Runtime, and OpenVINO if it is installed.

With `--io`, names, ranks and types must be those that the loader feeds; the script feeds them to check that.

Every bundle's model must pass the checker with newly inferred shapes, keep names and symbolic sizes of inputs and
outputs, load in ONNX Runtime, and agree with the outputs of the original within the error of its precision. The exit
code is 0 if all do, otherwise 1.

    check_deploy.py --tool target/debug/onnx-diffprune [MODEL.onnx ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import onnx
import onnxruntime

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
# Target and precision, with the largest allowed relative error of an output (root mean square).
BUNDLES = [
    ("cpu", "float32", 1e-6),
    ("ort-cuda", "float16", 1e-2),
    ("cpu", "int8", 0.25),
    ("tensorrt", "int8", 0.25),
    ("openvino", "int8", 0.25),
]


# Networks with the loaders that support them: the fed inputs by name, as (rank, kind of the elements).
PIPELINES = FIXTURES / "pipelines"
STATES = {"encoder_hidden_states": (3, "f")}
POOLED = {"text_embeds": (2, "f"), "time_ids": (2, "f")}
LOADERS = [
    ("optimum", "sd_tiny", {"sample": (4, "f"), "timestep": (0, "f"), **STATES}, "out_sample"),
    ("optimum", "sdxl_tiny", {"sample": (4, "f"), "timestep": (0, "f"), **STATES, **POOLED}, "out_sample"),
    ("demodiffusion", "sdxl_tiny", {"sample": (4, "f"), "timestep": (1, "f"), **STATES, **POOLED}, "latent"),
    ("comfyui", "sd_tiny", {"x": (4, "f"), "timesteps": (1, "f"), "context": (3, "f")}, "h"),
    ("comfyui", "sdxl_tiny", {"x": (4, "f"), "timesteps": (1, "f"), "context": (3, "f"), "y": (2, "f")}, "h"),
    ("webnn", "sd_tiny", {"sample": (4, "f"), "timestep": (1, "f"), **STATES}, "out_sample"),
]


def size_of(dimension, axis: int) -> int:
    if dimension.HasField("dim_value"):
        return dimension.dim_value
    return 2 if axis == 0 else 16 if axis > 1 else 7


def drawn(model: onnx.ModelProto, seed: int) -> dict[str, numpy.ndarray]:
    """Return random inputs of the shapes that the model declares."""
    random = numpy.random.default_rng(seed)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        shape = [size_of(dimension, axis) for axis, dimension in enumerate(tensor.shape.dim)]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        is_time = "time" in value.name or value.name == "t"
        values = random.integers(0, 9, shape) if dtype.kind == "i" else random.normal(size=shape)
        inputs[value.name] = (random.integers(0, 1000, shape) if is_time else values).astype(dtype)
    return inputs


def of_onnxruntime(path: Path, inputs: dict[str, numpy.ndarray]) -> list[numpy.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def of_openvino(path: Path, inputs: dict[str, numpy.ndarray]) -> list[numpy.ndarray] | None:
    try:
        import openvino
    except ImportError:
        return None
    # In float32, so that only the file can cause a difference.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.Core().compile_model(str(path), "CPU", settings)
    return list(network(inputs).values())


def distance(wanted: list[numpy.ndarray], found: list[numpy.ndarray]) -> float:
    pairs = list(zip(wanted, found, strict=True))
    square = sum(float(((a.astype(float) - b.astype(float)) ** 2).sum()) for a, b in pairs)
    return (square / max(sum(float((a.astype(float) ** 2).sum()) for a, _ in pairs), 1e-30)) ** 0.5


def interface(model: onnx.ModelProto) -> list[bytes]:
    constants = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in constants]
    return [value.SerializeToString(deterministic=True) for value in [*values, *model.graph.output]]


def check(tool: str, path: Path, target: str, precision: str, most: float) -> dict:
    original = onnx.load(path)
    inputs = drawn(original, 0)
    wanted = of_onnxruntime(path, inputs)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        command = [tool, "deploy", str(path), str(bundle), "--target", target, "--precision", precision]
        command += ["--count", "4", "--timesteps", "5", "--format", "json"]
        data = path.with_suffix("") / "train_images.npy"
        if data.exists():
            command += ["--data", str(data), "--scheduler-config", str(data.with_name("scheduler_config.json"))]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            return {"failed": ran.stderr.strip()[-300:]}
        written = bundle / "model.onnx"
        onnx.checker.check_model(str(written), full_check=True)
        made = onnx.load(written)
        result = {"figures": {key: json.loads(ran.stdout)[key] for key in ("loss", "bytes")}}
        result["interface_kept"] = interface(original) == interface(made)
        result["onnxruntime"] = distance(wanted, of_onnxruntime(written, inputs))
        in_openvino = of_openvino(written, inputs)
        if in_openvino is not None:
            result["openvino"] = distance(wanted, in_openvino)
    errors = [result["onnxruntime"], result.get("openvino", 0.0)]
    result["passed"] = result["interface_kept"] and all(error <= most for error in errors)
    return result


def check_loader(tool: str, loader: str, pipeline: str, expected: dict, output: str) -> dict:
    """Check a network with the inputs of a loader: it is valid and runs on the inputs that the loader feeds."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        target = "web" if loader == "webnn" else "ort-cuda"
        network = PIPELINES / pipeline / "unet" / "model.onnx"
        command = [tool, "deploy", str(network), str(bundle), "--target", target, "--io", loader]
        ran = subprocess.run(
            [*command, "--count", "2", "--timesteps", "2", "--format", "json"],
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode != 0:
            return {"failed": ran.stderr.strip()[-300:]}
        written = bundle / ("model_optimized.onnx" if loader == "demodiffusion" else "model.onnx")
        onnx.checker.check_model(str(written), full_check=True)
        made = onnx.load(written)
        inputs = drawn(made, 0)
        found = {name: (array.ndim, array.dtype.kind) for name, array in inputs.items()}
        outputs = of_onnxruntime(written, inputs)
        is_static = all(dim.HasField("dim_value") for dim in made.graph.input[0].type.tensor_type.shape.dim)
        passed = list(found.items()) == list(expected.items())
        passed &= [value.name for value in made.graph.output] == [output]
        passed &= is_static == (loader == "webnn") and bool(numpy.isfinite(outputs[0]).all())
        return {"inputs": found, "passed": passed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", required=True)
    parser.add_argument("models", nargs="*", type=Path)
    args = parser.parse_args()
    models = args.models or [FIXTURES / "ddpm_fashion16.onnx", FIXTURES / "dit_fashion16.onnx"]
    bundles = [(path, *bundle) for path in models for bundle in BUNDLES]
    jobs = [(f"{path.name} {target} {precision}", check, (path, target, precision, most)) for path, target, precision, most in bundles]
    for loader, pipeline, expected, output in [] if args.models else LOADERS:
        jobs.append((f"{pipeline} --io {loader}", check_loader, (loader, pipeline, expected, output)))
    passed = True
    for name, run, of in jobs:
        try:
            result = run(args.tool, *of)
        except Exception as error:
            result = {"failed": f"{type(error).__name__}: {error}"}
        passed &= result.get("passed", False)
        print(f"{name}: {json.dumps(result)}", flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
