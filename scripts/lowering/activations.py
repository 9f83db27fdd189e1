"""Activations and fused sums."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from .case import Case, Draw, exact

ERF = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x):
    """Computes x times the cumulative normal distribution at x."""
    return 0.5 * x * (1 + ERF(x / math.sqrt(2)))


def gelu_tanh(x):
    """Computes the tanh approximation of GELU."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))


def softplus(x):
    """log(1 + e^x)."""
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def celu(x, alpha=1.0):
    """Computes the continuously differentiable Elu."""
    return np.maximum(x, 0) + np.minimum(0, alpha * (np.exp(x / alpha) - 1))


def bias_split_gelu(x, bias):
    """The left half of x + bias times the GELU of the right one."""
    left, right = np.split(x + bias, 2, axis=-1)
    return left * gelu(right)


def unary(dtype: str) -> Iterator[Case]:
    """Operators of one input."""
    table = [
        ("Gelu", "exact", (20, 22, 26), {}, gelu),
        ("Gelu", "approximate none", (20,), {"approximate": "none"}, gelu),
        ("Gelu", "approximate tanh", (20, 23), {"approximate": "tanh"}, gelu_tanh),
        ("Swish", "alpha 1", (24, 26), {}, lambda x: x * sigmoid(x)),
        ("Swish", "alpha 0.7", (24,), {"alpha": 0.7}, lambda x: x * sigmoid(0.7 * x)),
        ("Mish", "", (18, 22, 24), {}, lambda x: x * np.tanh(softplus(x))),
        ("HardSwish", "", (14, 20, 22), {}, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
        ("Celu", "alpha 1", (12, 20), {}, celu),
        ("Celu", "alpha 0.6", (12,), {"alpha": 0.6}, lambda x: celu(x, 0.6)),
        ("com.microsoft.Gelu", "", (11, 17, 21), {}, gelu),
        ("com.microsoft.QuickGelu", "alpha 1.702", (17,), {}, lambda x: x * sigmoid(1.702 * x)),
        ("com.microsoft.QuickGelu", "alpha 1", (17,), {"alpha": 1.0}, lambda x: x * sigmoid(x)),
        ("com.microsoft.QuickGelu", "alpha -0.5", (13,), {"alpha": -0.5}, lambda x: x * sigmoid(-0.5 * x)),
        ("com.microsoft.FastGelu", "no bias", (17, 12), {}, gelu_tanh),
    ]
    for operator, variant, opsets, attributes, function in table:
        if operator == "Celu" and dtype == "float16":
            continue
        for opset in opsets:
            for shape in ((2, 5, 3), (7,), (2, 3, 1, 4)):
                draw = Draw(f"{operator}{variant}", dtype)
                x = draw.normal(*shape, scale=2.5)
                name = ", ".join(filter(None, [f"opset {opset}", variant, f"rank {len(shape)}"]))
                kernel = operator != "Swish" or opset < 26
                expected = exact(function, x, dtype=dtype)
                yield Case(operator, name, dtype, [x], expected, attributes, opset, kernel=kernel)


def cases(dtype: str) -> Iterator[Case]:
    """All cases of this family."""
    yield from unary(dtype)
    for shape in ((2, 5, 6), (3, 6), (2, 3, 2, 10)):
        draw = Draw(f"bias{shape}", dtype)
        x, bias, skip = draw.normal(*shape, scale=2), draw.normal(shape[-1]), draw.normal(*shape)
        rank = f"rank {len(shape)}"
        for operator, function in [("BiasGelu", gelu), ("FastGelu", gelu_tanh)]:
            expected = exact(lambda x, b, f=function: f(x + b), x, bias, dtype=dtype)
            yield Case(f"com.microsoft.{operator}", f"bias, {rank}", dtype, [x, bias], expected, weights=(1,))
        yield Case(
            "com.microsoft.BiasSplitGelu",
            rank,
            dtype,
            [x, bias],
            exact(bias_split_gelu, x, bias, dtype=dtype),
            weights=(1,),
            kernel=False,
        )
        yield Case(
            "com.microsoft.BiasAdd",
            rank,
            dtype,
            [x, bias, skip],
            exact(lambda x, b, s: x + b + s, x, bias, skip, dtype=dtype),
            weights=(1,),
            kernel=False,
        )
