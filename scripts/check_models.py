#!/usr/bin/env python3
"""Prune many models with the command-line tool, and check each result independently of the tool.

For every model and ratio the tool must exit with 0. The pruned file must pass the ONNX checker with full checks, load
in ONNX Runtime, and produce finite outputs of the original's shapes, at two batch sizes if the batch is symbolic.
Skeletons (``*.onnx.xz``) are unpacked first. With ``--expected``, a model fails if it keeps a larger share of its
parameters than the table states. The exit code is 0 if every check passed, otherwise 1.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import skeleton

FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


class CheckFailed(Exception):
    """A pruned model fails a check."""


def float_parameters(path: Path) -> int:
    """Number of float parameters: initializers and Constant tensors of at least two elements, in subgraphs too."""

    def count(graph: onnx.GraphProto) -> int:
        tensors = list(graph.initializer)
        total = 0
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    total += count(attribute.g)
                elif attribute.type == onnx.AttributeProto.TENSOR and node.op_type == "Constant":
                    tensors.append(attribute.t)
        sizes = (math.prod(tensor.dims) for tensor in tensors if tensor.data_type in FLOATS)
        return total + sum(size for size in sizes if size > 1)

    return count(onnx.load(path, load_external_data=False).graph)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def id_limits(path: Path) -> dict[str, int]:
    """Return the number of rows of the smallest table that each input indexes, directly or after a cast or reshape."""
    graph = onnx.load(path, load_external_data=False).graph
    rows = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    source = {value.name: value.name for value in graph.input}
    limits: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in ("Cast", "Identity", "Reshape", "Unsqueeze", "Flatten") and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
        elif node.op_type == "Gather" and node.input[0] in rows and node.input[1] in source:
            name = source[node.input[1]]
            limits[name] = min(limits.get(name, rows[node.input[0]]), rows[node.input[0]])
    return limits


def synthesise(value, limit: int, generator: np.random.Generator) -> np.ndarray:
    """Return a random input for its declaration: floats from N(0, 1), valid ids and flags."""
    label = lambda size: size if isinstance(size, str) else ""
    sizes = {"batch": 2, "height": 16, "width": 16}
    shape = []
    for axis, size in enumerate(value.shape):
        if isinstance(size, int):
            shape.append(size)
        else:
            fallback = 2 if axis == 0 else 8
            shape.append(next((number for word, number in sizes.items() if word in label(size)), fallback))
    dtype = DTYPES[value.type]
    if dtype is np.bool_ or "mask" in value.name:
        return np.ones(shape, dtype)
    if np.issubdtype(dtype, np.integer):
        return generator.integers(0, limit, shape).astype(dtype)
    drawn = generator.standard_normal(shape)
    # A single float per image is a noise level: positive, so that its logarithm or square root is finite.
    return (np.abs(drawn) + 0.1 if len(shape) == 1 or "sigma" in value.name else drawn).astype(dtype)


def model_inputs(model: onnxruntime.InferenceSession, path: Path) -> dict[str, np.ndarray]:
    saved = path.with_suffix(".inputs.npz")
    if saved.exists():
        with np.load(saved) as arrays:
            return {value.name: arrays[value.name] for value in model.get_inputs()}
    generator = np.random.default_rng(0)
    limits = id_limits(path)
    # An integer input that indexes no table is a timestep: any small number is valid.
    return {value.name: synthesise(value, limits.get(value.name, 1000), generator) for value in model.get_inputs()}


def batches(model: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return the inputs unchanged, and with another batch size if that is symbolic."""
    first_axes = {value.name: value.shape[0] for value in model.get_inputs() if value.shape}
    symbolic = {name for name, size in first_axes.items() if not isinstance(size, int)}
    labels = {first_axes[name] for name in symbolic}
    # The batch must be the only symbol, or an unnamed one. Other symbols would have to keep their size.
    if not symbolic or len({label for label in labels if label}) > 1:
        return [inputs]
    longer = {name: np.concatenate([array, array[:1]]) if name in symbolic else array for name, array in inputs.items()}
    return [inputs, longer]


def run(model: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    wanted = {value.name for value in model.get_inputs()}
    return model.run(None, {name: array for name, array in inputs.items() if name in wanted})


def checker_complaint(path: Path) -> str:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        return first_line(error)
    return ""


def compare(original: Path, pruned: Path, inputs_beside: Path) -> None:
    """Raise CheckFailed unless the pruned model is valid and has the original's interface."""
    complaint = checker_complaint(pruned)
    # Exporters also write models that the checker refuses and ONNX Runtime accepts. That is not a fault of the tool.
    if complaint and not checker_complaint(original):
        raise CheckFailed(f"checker: {complaint}")
    try:
        before = session(original)
    except Exception as error:
        raise CheckFailed(f"the original does not load: {first_line(error)}") from error
    try:
        after = session(pruned)
    except Exception as error:
        raise CheckFailed(f"load: {first_line(error)}") from error
    declared = lambda model: [(value.name, value.type, value.shape) for value in model.get_inputs()]
    if declared(before) != declared(after):
        raise CheckFailed("the graph inputs differ")
    names = [value.name for value in before.get_outputs()]
    if names != [value.name for value in after.get_outputs()]:
        raise CheckFailed("the graph outputs differ")
    for index, inputs in enumerate(batches(before, model_inputs(before, inputs_beside))):
        try:
            expected = run(before, inputs)
        except Exception as error:
            if index:
                continue  # an export may declare a symbolic batch but contain a constant that fixes it
            raise CheckFailed(f"the original does not run: {first_line(error)}") from error
        try:
            actual = run(after, inputs)
        except Exception as error:
            raise CheckFailed(f"run: {first_line(error)}") from error
        for name, left, right in zip(names, expected, actual):
            if left.shape != right.shape:
                raise CheckFailed(f"output {name} has shape {right.shape}, the original {left.shape}")
            if np.isfinite(left).all() and not np.isfinite(right).all():
                raise CheckFailed(f"output {name} is not finite")


def first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:240]


def worst_error(printed: str) -> float | None:
    """Return the worst relative error of verification in the tool's JSON output; None if it was not verified."""
    try:
        verification = json.loads(printed)["verification"]
    except (ValueError, KeyError):
        return None
    errors = [output["relative"] for run in (verification or {}).get("runs", ()) for output in run["outputs"]]
    return max((error for error in errors if error is not None), default=None)


def check(job: tuple[Path, str], tool: str, out: Path, extra: list[str], limit: float) -> dict:
    source, ratio = job
    model = unpacked(source, out / "models")
    pruned = out / f"{model.stem}.r{ratio}.onnx"
    pruned.unlink(missing_ok=True)
    command = [tool, str(model), str(pruned), "--ratio", ratio]
    command += ["--no-latency", "--format", "json", *extra]
    started = time.monotonic()
    row = {"model": model.stem, "ratio": float(ratio), "before": float_parameters(model), "after": None, "kept": None}
    row["error"] = None
    try:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired as error:
            raise CheckFailed(f"the tool ran longer than {limit:.0f} s") from error
        row["seconds"] = round(time.monotonic() - started, 2)
        row["error"] = worst_error(done.stdout)
        if done.returncode != 0:
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise CheckFailed(f"exit code {done.returncode}: {said[-1][:240] if said else 'no message'}")
        if not pruned.exists():
            raise CheckFailed("no output file")
        row["after"] = float_parameters(pruned)
        row["kept"] = round(100 * row["after"] / max(row["before"], 1), 2)
        compare(model, pruned, model)
    except CheckFailed as reason:
        return {**row, "status": "failed", "reason": str(reason)}
    return {**row, "status": "ok", "reason": "" if row["after"] < row["before"] else "nothing was removed"}


def unpacked(source: Path, folder: Path) -> Path:
    """Return a model file: the file itself, or the unpacked skeleton, which is kept in ``folder`` for later runs."""
    if source.suffix != ".xz":
        return source
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / source.name.removesuffix(".xz")
    if not model.exists() or model.stat().st_mtime < source.stat().st_mtime:
        skeleton.unpack(source, model)
    return model


def judge(row: dict, expected: dict[str, float], tolerance: float) -> dict:
    """Fail a row that kept more than the table states, and note one that kept less."""
    if row["status"] != "ok":
        return row
    share = expected.get(row["model"])
    if share is None:
        return {**row, "status": "failed", "reason": "not in the table of expected shares: add it with --update"}
    if row["kept"] > share + tolerance:
        return {**row, "status": "failed", "reason": f"keeps more than the expected {share:.2f}%"}
    if row["kept"] < share - tolerance:
        return {**row, "reason": f"keeps less than the expected {share:.2f}%: update the table with --update"}
    return row


def write_shares(path: Path, rows: list[dict]) -> None:
    """Write the shares of all rows that passed into the table, and keep the others."""
    shares = json.loads(path.read_text()) if path.exists() else {}
    shares.update({row["model"]: row["kept"] for row in rows if row["status"] == "ok"})
    path.write_text(json.dumps(dict(sorted(shares.items())), indent=0) + "\n")


def print_row(row: dict) -> None:
    kept = "" if row["kept"] is None else f"{row['kept']:.1f}%"
    after = "" if row["after"] is None else row["after"]
    line = f"{row['model']:44} {row['ratio']:5.2f} {row['before']:>10} {after:>10} {kept:>7}  {row['status']:7}"
    print(f"{line} {row['reason']}".rstrip(), flush=True)


def check_all(options: argparse.Namespace) -> Iterator[dict]:
    jobs = [(source, ratio) for source in options.sources for ratio in options.ratios.split(",")]
    extra = ["--criterion", options.criterion]
    work = partial(check, tool=options.tool, out=options.out, extra=extra, limit=options.timeout)
    if options.jobs == 1:
        yield from map(work, jobs)
        return
    with ProcessPoolExecutor(options.jobs) as pool:
        yield from pool.map(work, jobs)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", required=True, help="the command-line tool")
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="*.onnx and skeletons, *.onnx.xz")
    parser.add_argument("--only", default="*", metavar="GLOB", help="check only models whose name matches")
    parser.add_argument("--ratios", default="0.25,0.5,0.75")
    parser.add_argument("--criterion", default="magnitude")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the pruned models")
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="time limit of one run of the tool")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="number of models to check in parallel")
    parser.add_argument("--expected", type=Path, metavar="FILE", help="share of parameters that each model keeps, JSON")
    parser.add_argument("--tolerance", type=float, default=0.1, metavar="POINTS", help="percentage points (default 0.1)")
    parser.add_argument("--update", action="store_true", help="write the measured shares to the table of --expected")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write all rows as JSON too")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args()
    options.sources = sorted(
        [*options.models.glob(f"{options.only}.onnx"), *options.models.glob(f"{options.only}{skeleton.SUFFIX}")]
    )
    if not options.sources:
        parser.error(f"no models in {options.models}")
    if options.update and not options.expected:
        parser.error("--update needs --expected")
    if options.expected and "," in options.ratios:
        parser.error("--expected contains the shares of one ratio: pass one ratio with --ratios")
    return options


def main() -> int:
    options = parse_arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.format == "text":
        print(f"{'model':44} ratio     before      after    kept  status")
    rows = []
    for row in check_all(options):
        if options.expected and not options.update:
            row = judge(row, json.loads(options.expected.read_text()), options.tolerance)
        rows.append(row)
        if options.format == "text":
            print_row(row)
    if options.update:
        write_shares(options.expected, rows)
    if options.save:
        options.save.write_text(json.dumps(rows, indent=1) + "\n")
    failed = sum(row["status"] != "ok" for row in rows)
    if options.format == "json":
        print(json.dumps(rows, indent=1))
    else:
        print(f"{len(rows) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
