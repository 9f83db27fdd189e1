#!/usr/bin/env python3
"""Export tiny, randomly weighted diffusion architectures to ONNX.

Each model NAME.onnx is written with NAME.inputs.npz, one array per graph input. An export that fails is reported and
skipped; the summary at the end lists all of them. The exit code is 0 when every selected export succeeded, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import sys
import time
import traceback
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import torch
from architectures import REGISTRY, UNAVAILABLE
from architectures.registry import DYNAMO, TORCHSCRIPT, Architecture, Export, PositionalCall, randomise_zero_parameters

SEED = 20


def dynamic_dimensions(example, export: Export) -> list[dict[int, str]]:
    if not export.dynamic:
        return [{} for _ in example.inputs]
    return [example.dynamic.get(name, {}) for name in example.inputs]


@contextlib.contextmanager
def quiet_standard_output():
    """Suppress the output of the exporters (a failing TorchScript export prints its whole graph)."""
    sys.stdout.flush()
    saved = os.dup(1)
    with open(os.devnull, "w") as sink:
        os.dup2(sink.fileno(), 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(saved, 1)
            os.close(saved)


def elementwise_rms_norm(x, normalized_shape, weight=None, eps=None):
    """Compute RMS norm in elementary operations, because the TorchScript exporter has no symbol for it."""
    axes = tuple(range(-len(normalized_shape), 0))
    scaled = x * torch.rsqrt(x.pow(2).mean(axes, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps))
    return scaled if weight is None else scaled * weight


def export_torchscript(module, example, axes, opset: int, path: Path) -> None:
    named_axes = {name: marks for name, marks in zip(example.inputs, axes) if marks}
    # The outputs need dynamic axes too: otherwise the exporter records the example's sizes as fixed.
    output_batch = {name: {0: "batch"} for name in example.outputs} if named_axes else {}
    with mock.patch.object(torch.nn.functional, "rms_norm", elementwise_rms_norm):
        torch.onnx.export(
            module,
            tuple(example.inputs.values()),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=list(example.inputs),
            output_names=list(example.outputs),
            dynamic_axes={**named_axes, **output_batch} or None,
        )


def export_dynamo(module, example, axes, opset: int, path: Path) -> None:
    shapes = None
    if any(axes):
        dimensions: dict[str, torch.export.Dim] = {}
        shapes = (
            tuple(
                {
                    axis: dimensions.setdefault(label, torch.export.Dim(label, min=1, max=4096))
                    for axis, label in m.items()
                }
                for m in axes
            ),
        )
    torch.onnx.export(
        module,
        tuple(example.inputs.values()),
        str(path),
        dynamo=True,
        opset_version=opset,
        input_names=list(example.inputs),
        output_names=list(example.outputs),
        dynamic_shapes=shapes,
        external_data=False,
        verbose=False,
    )


def compare_with_torch(module, example, path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Refuse an export that ONNX Runtime does not load or whose outputs differ from PyTorch's."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    model = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    actual = model.run(None, arrays)
    with torch.no_grad():
        expected = module(*example.inputs.values())
    expected = [expected] if isinstance(expected, torch.Tensor) else list(expected)
    for name, left, right in zip(example.outputs, expected, actual, strict=True):
        left = left.numpy()
        if left.shape != right.shape:
            raise ValueError(f"output {name} has shape {right.shape}, PyTorch's has {left.shape}")
        distance = float(np.abs(left - right).max() / max(np.abs(left).max(), 1e-6))
        if not distance < 1e-3:
            raise ValueError(f"output {name} differs from PyTorch's by {distance:.2g} of its largest value")


def export_one(architecture: Architecture, export: Export, out: Path) -> dict:
    """Build, export and check one model. Return its row of the summary."""
    torch.manual_seed(SEED)
    example = architecture.build()
    example.network.eval()
    randomise_zero_parameters(example.network, torch.Generator().manual_seed(SEED))
    module = PositionalCall(example).eval()
    axes = dynamic_dimensions(example, export)
    path = out / f"{architecture.file_stem(export)}.onnx"
    write = export_dynamo if export.exporter == DYNAMO else export_torchscript
    with torch.no_grad(), quiet_standard_output():
        write(module, example, axes, export.opset, path)
    model = onnx.load(path)
    kept_inputs = {value.name for value in model.graph.input}
    arrays = {name: tensor.numpy() for name, tensor in example.inputs.items() if name in kept_inputs}
    np.savez(path.with_suffix(".inputs.npz"), **arrays)
    compare_with_torch(module, example, path, arrays)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return {
        "model": path.stem,
        "exporter": export.exporter,
        "opset": opset,
        "parameters": sum(parameter.numel() for parameter in example.network.parameters()),
        "nodes": len(model.graph.node),
        "bytes": path.stat().st_size,
    }


def selected(pattern: str | None, exporter: str):
    wanted = re.compile(pattern or "")
    for architecture in REGISTRY.values():
        for export in architecture.exports:
            if exporter in ("both", export.exporter) and wanted.search(architecture.file_stem(export)):
                yield architecture, export


def record_summary(path: Path, done: list[dict], failed: dict[str, str]) -> None:
    """Add this run to the folder's summary, which may have rows of earlier runs with other selections."""
    rows = {}
    if path.exists():
        earlier = json.loads(path.read_text())
        rows = {row["model"]: row for row in earlier["exported"] if (path.parent / f"{row['model']}.onnx").exists()}
    rows |= {row["model"]: row for row in done}
    path.write_text(json.dumps({"exported": list(rows.values()), "failed": failed}, indent=1) + "\n")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("exports"), help="folder for the models")
    parser.add_argument("--only", metavar="REGEX", help="export only the models whose name matches")
    parser.add_argument("--exporter", choices=(TORCHSCRIPT, DYNAMO, "both"), default="both")
    parser.add_argument("--list", action="store_true", help="list the selected models and stop")
    parser.add_argument("--skip-existing", action="store_true", help="skip models that are already in the folder")
    parser.add_argument("--traceback", action="store_true", help="print the whole traceback of a failing export")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse_arguments()
    for family, reason in UNAVAILABLE.items():
        print(f"family {family} skipped: {reason}", file=sys.stderr)
    chosen = list(selected(options.only, options.exporter))
    if options.list:
        for architecture, export in chosen:
            print(f"{architecture.file_stem(export):48} {export.exporter} opset {export.opset}")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    # The fused kernel of nn.MultiheadAttention has no ONNX equivalent.
    torch.backends.mha.set_fastpath_enabled(False)
    done, failed = [], {}
    for architecture, export in chosen:
        stem = architecture.file_stem(export)
        path = options.out / f"{stem}.onnx"
        if options.skip_existing and path.exists():
            continue
        started = time.monotonic()
        try:
            done.append(export_one(architecture, export, options.out))
            print(f"exported {stem} in {time.monotonic() - started:.1f} s", flush=True)
        except Exception as error:  # one failing export must not stop the others
            path.unlink(missing_ok=True)
            lines = str(error).strip().splitlines() or [type(error).__name__]
            failed[stem] = f"{type(error).__name__}: {lines[0][:200]}"
            print(f"FAILED {stem}: {failed[stem]}", flush=True)
            if options.traceback:
                traceback.print_exc()
    print(f"\n{'model':48} {'exporter':12} opset  parameters  nodes      bytes")
    for row in done:
        print(
            f"{row['model']:48} {row['exporter']:12} {row['opset']:5}  {row['parameters']:10}"
            f"  {row['nodes']:5}  {row['bytes']:9}"
        )
    for stem, reason in failed.items():
        print(f"{stem:48} failed: {reason}")
    record_summary(options.out / "summary.json", done, failed)
    print(f"{len(done)} exported, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
