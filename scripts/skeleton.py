#!/usr/bin/env python3
"""Pack randomly weighted ONNX models into small skeletons, and unpack them again.

A skeleton contains the graph and every constant that could be a size. Each float weight of more than 64 elements is
replaced by an empty tensor of the same shape, with its mean and standard deviation in its ``doc_string``. Unpacking
samples it again from N(mean, std) with a PCG64 generator seeded by the weight's name, so that a skeleton always yields
the same model. Files are compressed with xz.

    skeleton.py pack MODEL.onnx [...] --out DIR
    skeleton.py unpack SKELETON.onnx.xz [...] --out DIR
    skeleton.py unpack --all DIR --out DIR
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

SUFFIX = ".onnx.xz"
KEEP_UP_TO = 64
MARK = "skeleton:"
FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}


def weights(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield every tensor that may be stripped, with a name that is unique in the model: initializers and Constant
    values."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and node.op_type == "Constant":
                yield node.output[0], attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                for name, tensor in weights(attribute.g):
                    yield f"{node.output[0]}/{name}", tensor


def is_smooth_table(values: np.ndarray) -> bool:
    """Return whether a constant is a computed table and not a random weight.

    Frequencies, masks and filters are part of a network's meaning (a causal mask of N(mean, std) is not a mask), and
    they compress well, so they are kept. Random weights seldom repeat a value or have a monotone run. A large float16
    weight has few distinct values too, hence the upper limit.
    """
    flat = values.ravel()
    if not np.isfinite(flat).all() or len(np.unique(flat)) < min(flat.size // 2, 1000):
        return True
    steps = np.diff(flat)
    return bool((steps >= 0).all() or (steps <= 0).all())


def strip(tensor: onnx.TensorProto) -> None:
    if tensor.data_type not in FLOATS or int(np.prod(tensor.dims)) <= KEEP_UP_TO:
        return
    values = numpy_helper.to_array(tensor).astype(np.float64)
    constant = bool((values == values.flat[0]).all())
    if is_smooth_table(values) and not constant:
        return
    statistics = {"mean": float(f"{values.mean():.6g}"), "std": 0.0 if constant else float(f"{values.std():.6g}")}
    for field in ("raw_data", "float_data", "int32_data", "double_data"):
        tensor.ClearField(field)
    tensor.doc_string = MARK + json.dumps(statistics, separators=(",", ":"))


def fill(name: str, tensor: onnx.TensorProto) -> None:
    if not tensor.doc_string.startswith(MARK):
        return
    statistics = json.loads(tensor.doc_string[len(MARK) :])
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = generator.standard_normal(tuple(tensor.dims)) * statistics["std"] + statistics["mean"]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.raw_data = drawn.astype(dtype).tobytes()
    tensor.ClearField("doc_string")


def drop_notes(graph: onnx.GraphProto) -> None:
    """Remove exporters' annotations: source positions and stack traces, which contain local paths."""
    graph.ClearField("doc_string")
    graph.ClearField("metadata_props")
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    for tensor in graph.initializer:
        tensor.ClearField("doc_string")
        tensor.ClearField("metadata_props")
    for node in graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                drop_notes(attribute.g)


def pack(source: Path, target: Path) -> None:
    model = onnx.load(source)
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    drop_notes(model.graph)
    for function in model.functions:
        function.ClearField("doc_string")
        for node in function.node:
            node.ClearField("doc_string")
            node.ClearField("metadata_props")
    for _, tensor in weights(model.graph):
        strip(tensor)
    target.write_bytes(lzma.compress(model.SerializeToString(deterministic=True), preset=9 | lzma.PRESET_EXTREME))


def unpack(source: Path, target: Path) -> None:
    model = onnx.ModelProto.FromString(lzma.decompress(source.read_bytes()))
    for name, tensor in weights(model.graph):
        fill(name, tensor)
    partial = target.with_suffix(".onnx.tmp")
    partial.write_bytes(model.SerializeToString(deterministic=True))
    # Tests may unpack in parallel: a reader must never see an incomplete file.
    partial.replace(target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("pack", "unpack"):
        section = commands.add_parser(command)
        section.add_argument("files", nargs="*", type=Path)
        section.add_argument("--all", type=Path, metavar="DIR", help="every model or skeleton in a folder")
        section.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    packing = options.command == "pack"
    files = list(options.files)
    if options.all:
        files += sorted(options.all.glob("*.onnx" if packing else f"*{SUFFIX}"))
    if not files:
        parser.error("pass files, or a folder with --all")
    options.out.mkdir(parents=True, exist_ok=True)
    for source in files:
        if packing:
            target = options.out / f"{source.stem}{SUFFIX}"
            pack(source, target)
        else:
            target = options.out / source.name.removesuffix(".xz")
            unpack(source, target)
        print(f"{target}  {target.stat().st_size}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
