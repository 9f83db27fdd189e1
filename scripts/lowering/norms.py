"""Norms over channels, groups of channels and pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .activations import sigmoid
from .case import MICROSOFT, Case, Draw, exact


def normalized(x, axes, epsilon, centred=True):
    """Normalises x to mean zero and variance one, or divides it by its root mean square."""
    axes = tuple(axes)
    if centred:
        x = x - x.mean(axis=axes, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=axes, keepdims=True) + epsilon)


def in_groups(x, groups, epsilon):
    """Normalises `[N, C, ...]` by groups of neighbouring channels."""
    return normalized(x.reshape(x.shape[0], groups, -1), [2], epsilon).reshape(x.shape)


def small(values, is_small=True):
    """Returns values so small that the default epsilon has an effect."""
    return (values * 0.02).astype(values.dtype) if is_small else values


def along(vector, axis, rank):
    """Broadcasts a vector along one axis of a value."""
    return vector.reshape([-1 if at == axis else 1 for at in range(rank)])


def group_norm(x, gamma, beta, skip=None, bias=None, *, groups, activation=0, channels_last=1, epsilon=1e-5):
    """Computes Y and S of GroupNorm and SkipGroupNorm."""
    axis = 3 if channels_last else 1
    if skip is not None:
        if skip.ndim == 2:
            skip = skip[:, None, None, :] if channels_last else skip[:, :, None, None]
        x = x + skip
    if bias is not None:
        x = x + along(bias, axis, 4)
    y = np.moveaxis(in_groups(np.moveaxis(x, axis, 1), groups, epsilon), 1, axis)
    y = y * along(gamma, axis, 4) + along(beta, axis, 4)
    return [y * sigmoid(y) if activation else y, x]


def group_normalization(x, scale, bias, *, num_groups, epsilon=1e-5, per_group=False, **_):
    """GroupNormalization, with parameters per channel or (before opset 21) per group."""
    if per_group:
        scale, bias = (np.repeat(value, x.shape[1] // num_groups) for value in (scale, bias))
    return in_groups(x, num_groups, epsilon) * along(scale, 1, x.ndim) + along(bias, 1, x.ndim)


def layer_normalization(x, scale, bias=None, *, axis=-1, epsilon=1e-5, centred=True, **_):
    """Computes Y, mean and inverse deviation of LayerNormalization, or those of RMSNormalization without the mean."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean = x.mean(axis=axes, keepdims=True) if centred else 0.0
    inverse = 1 / np.sqrt(((x - mean) ** 2).mean(axis=axes, keepdims=True) + epsilon)
    y = (x - mean) * inverse * scale
    return [y if bias is None else y + bias, mean, inverse]


def skip_layer_norm(x, skip, gamma, beta=None, bias=None, *, epsilon=1e-12, centred=True):
    """Computes Y and the sum of SkipLayerNormalization or its simplified form."""
    total = x + skip if bias is None else x + skip + bias
    y = normalized(total, [-1], epsilon, centred) * gamma
    return [y if beta is None else y + beta, None, None, total]


def mean_variance(x, *, axes=(0, 2, 3)):
    """MeanVarianceNormalization."""
    x = x - x.mean(axis=tuple(axes), keepdims=True)
    return x / (np.sqrt((x**2).mean(axis=tuple(axes), keepdims=True)) + 1e-9)


def group_norm_cases(dtype: str) -> Iterator[Case]:
    """GroupNorm and SkipGroupNorm of ONNX Runtime."""
    n, h, w = 2, 3, 5
    for groups, channels in [(1, 6), (2, 6), (3, 6), (6, 6), (4, 12)]:
        for activation in (0, 1):
            for last in (1, 0):
                for epsilon in (None, 1e-2):
                    attributes = {"groups": groups, "activation": activation}
                    if not last or groups == 2:
                        attributes["channels_last"] = last
                    if epsilon:
                        attributes["epsilon"] = epsilon
                    draw = Draw(f"group norm {groups}", dtype)
                    shape = (n, h, w, channels) if last else (n, channels, h, w)
                    x = small(draw.normal(*shape) + draw.normal(1), epsilon is None)
                    gamma, beta = draw.near_one(channels, dtype="float32"), draw.normal(channels, dtype="float32")
                    if epsilon and dtype == "float16":
                        gamma, beta = gamma.astype(dtype), beta.astype(dtype)
                    variant = f"{groups} groups of {channels}, activation {activation}, channels_last {last}"
                    variant += f", epsilon {epsilon}" if epsilon else ""
                    expected = exact(group_norm, x, gamma, beta, dtype=dtype, **attributes)[:1]
                    yield Case(
                        f"{MICROSOFT}.GroupNorm",
                        variant,
                        dtype,
                        [x, gamma, beta],
                        expected,
                        attributes,
                        weights=(1, 2),
                        kernel=False,
                    )
    for last in (1, 0):
        full, spot = ((n, h, w, 6), (n, 1, 1, 6)) if last else ((n, 6, h, w), (n, 6, 1, 1))
        shapes = [full, (n, 6), *([spot] if last else [])]
        for skip_shape in shapes:
            for has_bias in (False, True):
                for activation in (0, 1):
                    for reads_sum in (False, True):
                        draw = Draw(f"skip group norm {last}", dtype)
                        x, skip = draw.normal(*full), draw.normal(*skip_shape, scale=2)
                        gamma, beta = draw.near_one(6, dtype="float32"), draw.normal(6, dtype="float32")
                        bias = [draw.normal(6, scale=2)] if has_bias else []
                        attributes = {"groups": 3, "activation": activation, "channels_last": last, "epsilon": 1e-3}
                        expected = exact(group_norm, x, gamma, beta, skip, *bias, dtype=dtype, **attributes)
                        variant = f"skip {list(skip_shape)}, activation {activation}, channels_last {last}"
                        variant += (", bias" if has_bias else "") + (", sum" if reads_sum else "")
                        yield Case(
                            f"{MICROSOFT}.SkipGroupNorm",
                            variant,
                            dtype,
                            [x, gamma, beta, skip, *bias],
                            expected if reads_sum else expected[:1],
                            attributes,
                            weights=(1, 2, 4) if has_bias else (1, 2),
                            kernel=False,
                        )


def standard_group_cases(dtype: str) -> Iterator[Case]:
    """GroupNormalization, InstanceNormalization and MeanVarianceNormalization."""
    for shape in ((2, 6, 5), (2, 6, 3, 4), (2, 6, 2, 3, 2)):
        draw = Draw(f"group normalization {shape}", dtype)
        values = draw.normal(*shape) + draw.normal(1, 6, *[1] * (len(shape) - 2))
        for groups in (1, 2, 3, 6):
            for opset in (18, 20, 21, 23):
                count = groups if opset < 21 else 6
                scale, bias = draw.near_one(count), draw.normal(count)
                attributes = {"num_groups": groups} | ({"epsilon": 1e-2} if groups == 2 else {})
                x = small(values, "epsilon" not in attributes)
                if opset >= 21 and groups == 3:
                    attributes["stash_type"] = 1
                expected = exact(
                    group_normalization, x, scale, bias, dtype=dtype, per_group=opset < 21, **attributes
                )
                variant = f"opset {opset}, {groups} groups, rank {len(shape)}"
                yield Case(
                    "GroupNormalization", variant, dtype, [x, scale, bias], expected, attributes, opset, (1, 2)
                )
        scale, bias = draw.near_one(6), draw.normal(6)
        for opset in (9, 17, 22):
            for attributes in ({}, {"epsilon": 1e-2}):
                x = small(values, not attributes)
                expected = exact(
                    group_normalization, x, scale, bias, dtype=dtype, num_groups=6, **attributes
                )
                variant = f"opset {opset}, rank {len(shape)}, epsilon {attributes.get('epsilon', 1e-5)}"
                yield Case(
                    "InstanceNormalization", variant, dtype, [x, scale, bias], expected, attributes, opset, (1, 2)
                )
    x = Draw("mean variance", dtype).normal(2, 3, 4, 5)
    for opset in (9, 13):
        for attributes in ({}, {"axes": [2, 3]}, {"axes": [1, 2, 3]}):
            expected = exact(mean_variance, x, dtype=dtype, **attributes)
            variant = f"opset {opset}, axes {attributes.get('axes', [0, 2, 3])}"
            # In float16, ONNX Runtime's function body is invalid.
            kernel = dtype != "float16"
            yield Case("MeanVarianceNormalization", variant, dtype, [x], expected, attributes, opset, kernel=kernel)


def layer_cases(dtype: str) -> Iterator[Case]:
    """LayerNormalization, RMSNormalization and the simplified form."""
    values = Draw("layer", dtype).normal(2, 3, 7) + 1
    for operator, opsets, has_biases in [
        ("LayerNormalization", (17, 21), (True, False)),
        ("RMSNormalization", (23, 26), (False,)),
        ("SimplifiedLayerNormalization", (17,), (False,)),
        (f"{MICROSOFT}.SimplifiedLayerNormalization", (13,), (False,)),
    ]:
        centred = operator == "LayerNormalization"
        for opset in opsets:
            for axis, parameters in [
                *((axis, None) for axis in (None, -1, 1, 2, -2)),
                *((1, shape) for shape in ((7,), (3, 1), (2, 1, 7)) if "Simplified" not in operator),
            ]:
                for has_bias in has_biases:
                    for outputs in (1, 3) if opset == 17 and centred else (1,):
                        axes = parameters or values.shape[(-1 if axis is None else axis) % 3 :]
                        draw = Draw(f"layer {axis}", dtype)
                        scale, bias = draw.near_one(*axes), [draw.normal(*axes)] if has_bias else []
                        attributes = {} if axis is None else {"axis": axis}
                        x = small(values, axis != 1)
                        if axis == 1:
                            attributes["epsilon"] = 1e-2
                        if axis == -2:
                            attributes["stash_type"] = 1
                        expected = exact(
                            layer_normalization, x, scale, *bias, dtype=dtype, centred=centred, **attributes
                        )
                        statistics = [value.astype("float32") for value in expected[1:]]
                        variant = f"opset {opset}, axis {axis}" + (", bias" if has_bias else "")
                        variant += f", scale {list(parameters)}" if parameters else ""
                        yield Case(
                            operator,
                            variant + (", mean and deviation" if outputs == 3 else ""),
                            dtype,
                            [x, scale, *bias],
                            [expected[0], *statistics][:outputs],
                            attributes,
                            opset,
                            (1, 2) if has_bias else (1,),
                            # Older exports use ONNX Runtime's domain, in which newer versions no longer have the
                            # operator.
                            kernel=not operator.startswith(MICROSOFT),
                        )


def skip_layer_cases(dtype: str) -> Iterator[Case]:
    """SkipLayerNormalization and its simplified form."""
    for centred in (True, False):
        operator = f"{MICROSOFT}.Skip{'' if centred else 'Simplified'}LayerNormalization"
        for shape, skip_shape in [((2, 3, 8), (2, 3, 8)), ((2, 3, 8), (1, 3, 8)), ((2, 3, 8), (3, 8)), ((5, 8), (5, 8))]:
            for has_beta in (True, False) if centred else (False,):
                for has_bias in (True, False):
                    for reads_sum in (True, False):
                        draw = Draw(f"skip layer {shape}", dtype)
                        x, skip = draw.normal(*shape), draw.normal(*skip_shape, scale=2)
                        gamma = draw.near_one(8)
                        beta, bias = draw.normal(8) if has_beta else None, draw.normal(8) if has_bias else None
                        attributes = {"epsilon": 1e-2} if has_bias else {}
                        x, skip = small(x, not has_bias), small(skip, not has_bias)
                        expected = exact(
                            skip_layer_norm, x, skip, gamma, beta, bias, dtype=dtype, centred=centred, **attributes
                        )
                        inputs = [x, skip, gamma, *([beta] if centred else []), bias]
                        while inputs[-1] is None:
                            inputs.pop()
                        names = [("beta", has_beta), ("bias", has_bias), ("sum", reads_sum)]
                        variant = ", ".join([f"skip {list(skip_shape)}", *(name for name, has in names if has)])
                        yield Case(
                            operator,
                            variant,
                            dtype,
                            inputs,
                            expected if reads_sum else expected[:1],
                            attributes,
                            weights=tuple(slot for slot in range(2, len(inputs)) if inputs[slot] is not None),
                        )


def cases(dtype: str) -> Iterator[Case]:
    """All cases of this family."""
    yield from group_norm_cases(dtype)
    yield from standard_group_cases(dtype)
    yield from layer_cases(dtype)
    yield from skip_layer_cases(dtype)
