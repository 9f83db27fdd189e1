"""Convolutions: with channels last, and with a fused sum and activation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from .activations import sigmoid
from .case import Case, Draw, exact

ACTIVATIONS = {
    "": ([], lambda x: x),
    "Relu": ([], lambda x: np.maximum(x, 0)),
    "Sigmoid": ([], sigmoid),
    "Tanh": ([], np.tanh),
    "LeakyRelu": ([0.3], lambda x: np.where(x > 0, x, 0.3 * x)),
    "Clip": ([-0.4, 0.7], lambda x: np.clip(x, -0.4, 0.7)),
    "HardSigmoid": ([0.3, 0.4], lambda x: np.clip(0.3 * x + 0.4, 0, 1)),
}


def conv(x, w, b=None, *, group=1, strides=None, dilations=None, pads=None, auto_pad="NOTSET", **_):
    """The convolution of `[N, C, ...]` with `[M, C / group, ...]`."""
    axes = x.ndim - 2
    strides, dilations = strides or [1] * axes, dilations or [1] * axes
    before, after = (pads or [0] * 2 * axes)[:axes], (pads or [0] * 2 * axes)[axes:]
    reach = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, w.shape[2:])]
    if auto_pad.startswith("SAME"):
        counts = [-(-size // stride) for size, stride in zip(x.shape[2:], strides)]
        total = [
            max(0, (count - 1) * stride + span - size)
            for count, stride, span, size in zip(counts, strides, reach, x.shape[2:])
        ]
        before = [(pad if auto_pad == "SAME_UPPER" else pad + 1) // 2 for pad in total]
        after = [pad - first for pad, first in zip(total, before)]
    elif auto_pad == "VALID":
        before = after = [0] * axes
    x = np.pad(x, [(0, 0), (0, 0), *zip(before, after)])
    counts = [(size - span) // stride + 1 for size, span, stride in zip(x.shape[2:], reach, strides)]
    rows = w.shape[0] // group
    y = np.zeros((x.shape[0], w.shape[0], *counts))
    for place in itertools.product(*(range(size) for size in w.shape[2:])):
        window = x[
            (..., *(
                slice(at * dilation, at * dilation + (count - 1) * stride + 1, stride)
                for at, dilation, count, stride in zip(place, dilations, counts, strides)
            ))
        ]
        for part in range(group):
            of_x = window[:, part * w.shape[1] : (part + 1) * w.shape[1]]
            of_w = w[(slice(part * rows, (part + 1) * rows), slice(None), *place)]
            y[:, part * rows : (part + 1) * rows] += np.einsum("nc...,mc->nm...", of_x, of_w)
    return y if b is None else y + b.reshape(-1, *[1] * axes)


def nhwc_conv(x, w, b=None, **attributes):
    """The convolution of `[N, ..., C]` with `[M, ..., C / group]`."""
    return np.moveaxis(conv(np.moveaxis(x, -1, 1), np.moveaxis(w, -1, 1), b, **attributes), 1, -1)


# Name, spatial sizes, kernel, channels, filters, attributes.
WINDOWS = [
    ("1d", (7,), (3,), 3, 4, {}),
    ("1d, stride 2 and pads 1, 0", (7,), (3,), 3, 4, {"strides": [2], "pads": [1, 0]}),
    ("2d, 1x1", (3, 5), (1, 1), 3, 5, {}),
    ("2d", (5, 4), (3, 2), 3, 5, {"pads": [1, 0, 2, 1]}),
    ("2d, kernel_shape", (5, 4), (3, 3), 2, 3, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("2d, strides 2, 1 and dilations 1, 2", (7, 6), (3, 2), 2, 3, {"strides": [2, 1], "dilations": [1, 2]}),
    ("2d, 2 groups", (5, 4), (3, 3), 4, 6, {"group": 2, "pads": [1, 1, 1, 1]}),
    ("2d, depthwise", (5, 4), (3, 3), 3, 3, {"group": 3, "pads": [1, 1, 1, 1]}),
    ("2d, SAME_UPPER", (5, 6), (4, 3), 2, 3, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("2d, SAME_LOWER", (5, 6), (4, 3), 2, 3, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("2d, VALID", (5, 6), (2, 3), 2, 3, {"auto_pad": "VALID"}),
    ("3d", (3, 4, 2), (2, 3, 1), 2, 3, {"pads": [0, 1, 0, 1, 1, 0]}),
    ("3d, 2 groups", (3, 4, 2), (2, 1, 2), 4, 2, {"group": 2, "strides": [1, 2, 1]}),
]


def nhwc_cases(dtype: str) -> Iterator[Case]:
    """Yields NhwcConv with and without a bias, with constant and computed weights."""
    for name, sizes, kernel, channels, rows, attributes in WINDOWS:
        for has_bias, is_constant in [(True, True), (False, True), (True, False)]:
            draw = Draw(name, dtype)
            x = draw.normal(2, *sizes, channels)
            w = draw.normal(rows, *kernel, channels // attributes.get("group", 1), scale=0.5)
            b = [draw.normal(rows)] if has_bias else []
            yield Case(
                "com.microsoft.NhwcConv",
                f"{name}{', bias' if has_bias else ''}{'' if is_constant else ', computed weights'}",
                dtype,
                [x, w, *b],
                exact(nhwc_conv, x, w, *b, dtype=dtype, **attributes),
                attributes,
                weights=tuple(range(1, 2 + len(b))) if is_constant else (),
                kernel=False,
            )


def fused_cases(dtype: str) -> Iterator[Case]:
    """Yields FusedConv: every activation, with and without a bias and a sum, and every window."""
    combinations = [(window, "Relu", True, True) for window in WINDOWS]
    combinations += [
        (WINDOWS[3], activation, has_bias, has_sum)
        for activation in ACTIVATIONS
        for has_bias, has_sum in [(True, True), (True, False), (False, True), (False, False)]
        if (activation, has_bias, has_sum) != ("Relu", True, True)
    ]
    for (name, sizes, kernel, channels, rows, attributes), activation, has_bias, has_sum in combinations:
        parameters, function = ACTIVATIONS[activation]
        draw = Draw(f"fused {name}", dtype)
        x = draw.normal(2, channels, *sizes)
        w = draw.normal(rows, channels // attributes.get("group", 1), *kernel, scale=0.4)
        b = draw.normal(rows) if has_bias else None
        y = conv(x.astype(float), w.astype(float), None if b is None else b.astype(float), **attributes)
        z = draw.normal(*y.shape) if has_sum else None
        y = function(y if z is None else y + z.astype(float)).astype(dtype)
        extra = dict(attributes)
        if activation:
            extra["activation"] = activation
        if parameters:
            extra["activation_params"] = parameters
        inputs = [x, w, b, z]
        while inputs[-1] is None:
            inputs.pop()
        with_what = [part for part, has in [("bias", has_bias), ("sum", has_sum)] if has]
        variant = ", ".join([name, activation or "no activation", *with_what])
        yield Case(
            "com.microsoft.FusedConv", variant, dtype, inputs, [y], extra, weights=(1, 2) if has_bias else (1,)
        )


def cases(dtype: str) -> Iterator[Case]:
    """All cases of this family."""
    yield from nhwc_cases(dtype)
    yield from fused_cases(dtype)
