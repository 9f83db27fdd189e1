#!/usr/bin/env python3
"""Measure the two forms of a group norm: that of exporters, and the operator GroupNormalization of opset 21.

PyTorch's exporter writes Reshape, InstanceNormalization, Reshape, Mul and Add. Since opset 21, a single node can do the
same. Two networks of convolutions, group norms and SiLU at the sizes of Stable Diffusion's first and last blocks are
measured in turn in ONNX Runtime and, if installed, OpenVINO, both on the CPU, and their outputs are compared. The exit
code is 0 if the outputs agree, otherwise 1.

    group_norm.py [--runs 10] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

# Channels and edge length of the feature maps, number of groups.
SIZES = [(320, 64, 32), (640, 32, 32), (1280, 8, 32)]
LAYERS = 3


def network(channels: int, edge: int, groups: int, fused: bool) -> onnx.ModelProto:
    random = numpy.random.default_rng(0)
    nodes, tensors = [], []

    def constant(name: str, values: numpy.ndarray) -> str:
        tensors.append(numpy_helper.from_array(values, name))
        return name

    value = "x"
    for at in range(LAYERS):
        # Depthwise, so that the norms dominate the time.
        kernel = random.normal(0.0, 0.3, (channels, 1, 3, 3)).astype(numpy.float32)
        weight = constant(f"{at}.weight", kernel)
        nodes.append(helper.make_node("Conv", [value, weight], [f"{at}.c"], group=channels, pads=[1, 1, 1, 1]))
        gain = random.normal(1.0, 0.1, channels).astype(numpy.float32)
        shift = random.normal(0.0, 0.1, channels).astype(numpy.float32)
        if fused:
            inputs = [f"{at}.c", constant(f"{at}.gain", gain), constant(f"{at}.shift", shift)]
            nodes.append(helper.make_node("GroupNormalization", inputs, [f"{at}.n"], num_groups=groups, epsilon=1e-5))
        else:
            split = constant(f"{at}.split", numpy.array([0, groups, -1]))
            whole = helper.make_node("Shape", [f"{at}.c"], [f"{at}.shape"])
            ones, zeros = numpy.ones(groups, numpy.float32), numpy.zeros(groups, numpy.float32)
            norm = [f"{at}.r", constant(f"{at}.ones", ones), constant(f"{at}.zeros", zeros)]
            nodes += [
                helper.make_node("Reshape", [f"{at}.c", split], [f"{at}.r"]),
                helper.make_node("InstanceNormalization", norm, [f"{at}.i"], epsilon=1e-5),
                whole,
                helper.make_node("Reshape", [f"{at}.i", f"{at}.shape"], [f"{at}.b"]),
                helper.make_node("Mul", [f"{at}.b", constant(f"{at}.gain", gain.reshape(-1, 1, 1))], [f"{at}.m"]),
                helper.make_node("Add", [f"{at}.m", constant(f"{at}.shift", shift.reshape(-1, 1, 1))], [f"{at}.n"]),
            ]
        nodes.append(helper.make_node("Sigmoid", [f"{at}.n"], [f"{at}.s"]))
        nodes.append(helper.make_node("Mul", [f"{at}.n", f"{at}.s"], [f"{at}.y"]))
        value = f"{at}.y"
    shape = ["batch", channels, edge, edge]
    graph = helper.make_graph(
        nodes,
        "norms",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def in_onnxruntime(model: onnx.ModelProto, threads: int):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


def in_openvino(model: onnx.ModelProto, threads: int):
    import io

    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    core = openvino.Core()
    network = core.compile_model(core.read_model(io.BytesIO(model.SerializeToString())), "CPU", settings)
    return lambda x: list(network([x]).values())[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    runtimes = [("ONNX Runtime " + onnxruntime.__version__, in_onnxruntime)]
    try:
        import openvino

        runtimes.append(("OpenVINO " + openvino.__version__.split("-")[0], in_openvino))
    except ImportError:
        print("OpenVINO is not installed")
    agree = True
    for name, opened in runtimes:
        for channels, edge, groups in SIZES:
            forms = [opened(network(channels, edge, groups, fused), args.threads) for fused in (False, True)]
            x = numpy.random.default_rng(1).normal(size=(2, channels, edge, edge)).astype(numpy.float32)
            outputs = [form(x) for form in forms]
            agree &= bool(numpy.abs(outputs[0] - outputs[1]).max() < 1e-3)
            times: list[list[float]] = [[], []]
            for _ in range(args.runs):
                for form, own in zip(forms, times, strict=True):
                    started = time.perf_counter()
                    form(x)
                    own.append(time.perf_counter() - started)
            # The minimum of interleaved runs: other load on the machine only adds time.
            exported, fused = (min(own) * 1e3 for own in times)
            medians = " / ".join(f"{statistics.median(own) * 1e3:.2f}" for own in times)
            print(
                f"{name}: {channels} channels at {edge}x{edge}: exporter's form {exported:.2f} ms, GroupNormalization "
                f"{fused:.2f} ms ({fused / exported:.2f} times); medians {medians} ms",
                flush=True,
            )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
