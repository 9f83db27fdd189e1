#!/usr/bin/env python3
"""Write a U-Net with the layout of Stable Diffusion 1.5 and random weights, of any widths and depth.

The nodes are those of the TorchScript exporter at opset 17: group norms as InstanceNormalization between two Reshapes,
linear layers as MatMul and Add, attention as single operators. By default it has the widths of Stable Diffusion 1.5,
one block per resolution on the way down and no attention at the two lowest resolutions: 206 million parameters.

    make_sd_unet.py OUT.onnx [--widths 320,640,1280,1280] [--attention 2] [--layers 1] [--heads 8] [--context 768]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

# Number of bytes from which weights are external data: a protobuf message holds at most 2 GiB.
MOST_IN_MODEL = 1_500_000_000


class Graph:
    """Nodes and weights, in the order in which they are added."""

    def __init__(self, seed: int) -> None:
        self.random = numpy.random.default_rng(seed)
        self.nodes: list = []
        self.weights: list = []

    def name(self, kind: str) -> str:
        return f"{kind}_{len(self.nodes) + len(self.weights)}"

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes):
        names = [f"{self.name(kind)}_{at}" for at in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"/{self.name(kind)}", **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, values, dtype=numpy.float32) -> str:
        name = self.name("constant")
        self.weights.append(numpy_helper.from_array(numpy.array(values, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, numpy.int64)

    def weight(self, *dims: int, around: float = 0.0) -> str:
        """Add a normally distributed weight that preserves the standard deviation of its input."""
        spread = 0.1 if len(dims) == 1 else float(numpy.prod(dims[1:])) ** -0.5
        values = self.random.standard_normal(dims, dtype=numpy.float32)
        return self.constant(around + values * numpy.float32(spread))

    def conv(self, x: str, into: int, out: int, kernel: int = 3, stride: int = 1) -> str:
        weights = (self.weight(out, into, kernel, kernel), self.weight(out))
        places = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4, "strides": [stride] * 2}
        return self.op("Conv", x, *weights, **places)

    def linear(self, x: str, into: int, out: int, has_bias: bool = True) -> str:
        # Stored as MatMul needs it, with the inputs first.
        matrix = self.random.standard_normal((into, out), dtype=numpy.float32) * numpy.float32(into**-0.5)
        y = self.op("MatMul", x, self.constant(matrix))
        return self.op("Add", self.weight(out), y) if has_bias else y

    def silu(self, x: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", x))

    def group_norm(self, x: str, channels: int, epsilon: float = 1e-5, groups: int = 32) -> str:
        shape = self.op("Shape", x)
        rows = self.op("Reshape", x, self.ints(0, groups, -1))
        ones, zeros = self.constant(numpy.ones(groups)), self.constant(numpy.zeros(groups))
        rows = self.op("InstanceNormalization", rows, ones, zeros, epsilon=epsilon)
        y = self.op("Mul", self.op("Reshape", rows, shape), self.weight(channels, 1, 1, around=1.0))
        return self.op("Add", y, self.weight(channels, 1, 1))

    def layer_norm(self, x: str, channels: int) -> str:
        return self.op("LayerNormalization", x, self.weight(channels, around=1.0), self.weight(channels), axis=-1)


class UNet:
    def __init__(self, args: argparse.Namespace) -> None:
        self.graph = Graph(args.seed)
        self.widths, self.layers = [int(width) for width in args.widths.split(",")], args.layers
        self.heads, self.context, self.attention = args.heads, args.context, args.attention
        self.has_middle = not args.no_middle
        self.groups = 32 if all(width % 32 == 0 for width in self.widths) else 8
        self.time = 4 * self.widths[0]

    def norm(self, x: str, channels: int, epsilon: float = 1e-5) -> str:
        return self.graph.group_norm(x, channels, epsilon, self.groups)

    def residual(self, x: str, into: int, out: int) -> str:
        g = self.graph
        h = g.conv(g.silu(self.norm(x, into)), into, out)
        time = g.linear(g.silu(self.embedding), self.time, out)
        h = g.op("Add", h, g.op("Unsqueeze", time, g.ints(2, 3)))
        h = g.conv(g.silu(self.norm(h, out)), out, out)
        return g.op("Add", g.conv(x, into, out, kernel=1) if into != out else x, h)

    def attend(self, x: str, width: int, keys: str, width_of_keys: int) -> str:
        g, size = self.graph, width // self.heads
        projected = [g.linear(of, into, width, has_bias=False) for of, into in (
            (x, width), (keys, width_of_keys), (keys, width_of_keys))]
        q, k, v = (g.op("Reshape", of, g.ints(0, -1, self.heads, size)) for of in projected)
        q, v = (g.op("Transpose", of, perm=[0, 2, 1, 3]) for of in (q, v))
        scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 3, 1]))
        shares = g.op("Softmax", g.op("Mul", scores, g.constant(size**-0.5)), axis=-1)
        out = g.op("Transpose", g.op("MatMul", shares, v), perm=[0, 2, 1, 3])
        return g.linear(g.op("Reshape", out, g.ints(0, -1, width)), width, width)

    def transformer(self, x: str, width: int) -> str:
        g = self.graph
        shape = g.op("Shape", x)
        h = g.conv(self.norm(x, width, 1e-6), width, width, kernel=1)
        h = g.op("Transpose", g.op("Reshape", h, g.ints(0, width, -1)), perm=[0, 2, 1])
        own = g.layer_norm(h, width)
        h = g.op("Add", self.attend(own, width, own, width), h)
        h = g.op("Add", self.attend(g.layer_norm(h, width), width, "encoder_hidden_states", self.context), h)
        gated = g.linear(g.layer_norm(h, width), width, 8 * width)
        value, gate = g.op("Split", gated, g.ints(4 * width, 4 * width), outputs=2, axis=-1)
        # GELU as PyTorch exports it.
        error = g.op("Erf", g.op("Div", gate, g.constant(2**0.5)))
        gelu = g.op("Mul", g.op("Mul", gate, g.op("Add", error, g.constant(1.0))), g.constant(0.5))
        h = g.op("Add", g.linear(g.op("Mul", value, gelu), 4 * width, width), h)
        h = g.op("Reshape", g.op("Transpose", h, perm=[0, 2, 1]), shape)
        return g.op("Add", g.conv(h, width, width, kernel=1), x)

    def embed_time(self) -> None:
        g, first = self.graph, self.widths[0]
        half = first // 2
        frequencies = g.constant(numpy.exp(-numpy.log(1e4) * numpy.arange(half) / half)[None])
        angles = g.op("Mul", g.op("Unsqueeze", g.op("Cast", "timestep", to=TensorProto.FLOAT), g.ints(1)), frequencies)
        waves = g.op("Concat", g.op("Cos", angles), g.op("Sin", angles), axis=1)
        self.embedding = g.linear(g.silu(g.linear(waves, first, self.time)), self.time, self.time)

    def build(self) -> onnx.ModelProto:
        g, widths = self.graph, self.widths
        self.embed_time()
        width = widths[0]
        h = g.conv("sample", 4, width)
        skips = [(h, width)]
        for level, out in enumerate(widths):
            for _ in range(self.layers):
                h, width = self.residual(h, width, out), out
                h = self.transformer(h, width) if level < self.attention else h
                skips.append((h, width))
            if level + 1 < len(widths):
                h = g.conv(h, width, width, stride=2)
                skips.append((h, width))
        if self.has_middle:
            h = self.residual(self.transformer(self.residual(h, width, width), width), width, width)
        scales = g.constant([1, 1, 2, 2])
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        for level in reversed(range(len(widths))):
            for _ in range(self.layers + 1):
                skip, more = skips.pop()
                h, width = self.residual(g.op("Concat", h, skip, axis=1), width + more, widths[level]), widths[level]
                h = self.transformer(h, width) if level < self.attention else h
            if level > 0:
                h = g.conv(g.op("Resize", h, "", scales, **how), width, width)
        g.conv(g.silu(self.norm(h, width)), width, 4)
        g.nodes[-1].output[0] = "out_sample"
        sample = ["batch", 4, "height", "width"]
        value = helper.make_tensor_value_info
        inputs = [value("sample", TensorProto.FLOAT, sample), value("timestep", TensorProto.INT64, ["batch"])]
        inputs.append(value("encoder_hidden_states", TensorProto.FLOAT, ["batch", 77, self.context]))
        outputs = [value("out_sample", TensorProto.FLOAT, sample)]
        graph = helper.make_graph(g.nodes, "unet", inputs, outputs, g.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--widths", default="320,640,1280,1280", help="channels of each resolution")
    parser.add_argument("--layers", type=int, default=1, help="number of blocks per resolution on the way down")
    parser.add_argument("--attention", type=int, default=2, help="number of resolutions with attention, from the highest on")
    parser.add_argument("--no-middle", action="store_true", help="leave out the blocks between the way down and up")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--context", type=int, default=768, help="hidden size of the text states")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = UNet(args).build()
    parameters = sum(int(numpy.prod(tensor.dims)) for tensor in model.graph.initializer)
    is_large = 4 * parameters > MOST_IN_MODEL
    data = {"save_as_external_data": True, "location": args.output.name + "_data"} if is_large else {}
    onnx.save(model, args.output, **data)
    print(f"wrote {args.output}, {parameters / 1e6:.1f} million parameters")


if __name__ == "__main__":
    main()
