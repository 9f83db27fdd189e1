#!/usr/bin/env python3
"""Check float16 gradients in an evaluator that really rounds to float16.

ONNX Runtime computes float16 in float32 on the CPU. The reference evaluator of the onnx package does not, so the script
runs the gradient graph of a small network in it, in float32 and in float16 with several loss scales. All graphs must
pass the ONNX checker. Gradients are compared with those of PyTorch (MODEL.grads.npz), and an overflow at a too large
scale must be reported.

    check_precision.py --gradient-graph target/debug/examples/gradient_graph [MODEL.onnx]
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy
import onnx
from onnx.reference import ReferenceEvaluator

FIXTURE = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "dit_tiny.onnx"
# The ten fraction bits of float16 are 1e-3. The gradient of the bias of a key is only rounding error.
TOLERANCES = {"float32": 1e-3, "float16": 2e-2}


def gradient_graph(tool, model, sizes, options):
    """Return the gradient graph after the ONNX checker accepted it."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "gradients.onnx"
        arguments = [f"{name}={size}" for name, size in sizes.items()]
        subprocess.run([tool, model, path, *options, *arguments], check=True, stdout=subprocess.DEVNULL)
        graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    # The evaluator accepts the depth of a OneHot only as a scalar; the standard also allows a vector with one element.
    depths = {node.input[1] for node in graph.graph.node if node.op_type == "OneHot"}
    for tensor in graph.graph.initializer:
        if tensor.name in depths:
            del tensor.dims[:]
    return graph


def sizes_of(model, inputs):
    """Return the sizes of symbolic dimensions by name."""
    sizes = {}
    for value in onnx.load(model, load_external_data=False).graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, inputs[value.name].shape):
            if dim.dim_param:
                sizes[dim.dim_param] = size
    return sizes


def run(graph, inputs):
    """Return all outputs by name."""
    names = [value.name for value in graph.graph.output]
    feeds = {value.name: inputs[value.name] for value in graph.graph.input}
    with numpy.errstate(over="ignore", invalid="ignore"):
        return dict(zip(names, ReferenceEvaluator(graph).run(None, feeds)))


def worst_error(found, expected):
    """Return the largest difference in an array relative to its largest element, and the array's name."""
    gradients = {name.split("/", 2)[2]: value for name, value in found.items() if name.startswith("__gradient/")}
    largest = max(abs(expected[name]).max() for name in gradients if name in expected)
    errors = [
        (float(abs(value - expected[name]).max() / max(abs(expected[name]).max(), 1e-4 * largest)), name)
        for name, value in gradients.items()
        if name in expected
    ]
    return len(errors), *max(errors)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=pathlib.Path, default=FIXTURE)
    parser.add_argument("--gradient-graph", required=True, help="the built example `gradient_graph`")
    options = parser.parse_args()
    inputs = dict(numpy.load(options.model.with_suffix(".inputs.npz")))
    expected = dict(numpy.load(options.model.with_suffix(".grads.npz")))
    inputs["__target"] = expected["__target"]
    sizes = sizes_of(options.model, inputs)
    is_good = True

    print(f"{options.model.name}: gradients in the reference evaluator against PyTorch's")
    for precision, more, scales in [("float32", [], [None]), ("float16", ["--half"], [2.0**6, 2.0**10, 2.0**14])]:
        graph = gradient_graph(options.gradient_graph, options.model, sizes, more)
        for scale in scales:
            if scale is not None:
                inputs["__loss_scale"] = numpy.float32(scale)
            found = run(graph, inputs)
            count, error, name = worst_error(found, expected)
            passed = count > 10 and error < TOLERANCES[precision] and found.get("__overflow", 0.0) == 0.0
            is_good &= passed
            at = "" if scale is None else f" at a loss scale of {scale:g}"
            print(f"  {precision}{at}: {count} arrays, worst relative error {error:.1e} at {name}", end="")
            print("" if passed else ": FAILED")
    inputs["__loss_scale"] = numpy.float32(2.0**30)
    overflow = run(graph, inputs)["__overflow"]
    is_good &= bool(numpy.isnan(overflow))
    print(f"  float16 at a loss scale of {2.0**30:g}: overflow reported as {overflow}")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
