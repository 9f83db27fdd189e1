"""Fused matrix products."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from .activations import gelu_tanh, sigmoid, softplus
from .case import MICROSOFT, Case, Draw, exact


def fused_matmul(a, b, *, alpha=1.0, transA=0, transB=0, transBatchA=0, transBatchB=0):
    """Computes the product of two matrices or stacks of matrices after their transposes."""

    def arranged(value, moves, transposes):
        if moves and value.ndim > 2:
            value = np.moveaxis(value, 0, -2)
        return np.swapaxes(value, -1, -2) if transposes and value.ndim > 1 else value

    return alpha * np.matmul(arranged(a, transBatchA, transA), arranged(b, transBatchB, transB))


def stored(shape, moves, transposes):
    """Returns the shape in which a matrix `[..., rows, columns]` is stored."""
    shape = list(shape)
    if transposes and len(shape) > 1:
        shape[-1], shape[-2] = shape[-2], shape[-1]
    if moves and len(shape) > 2:
        shape.insert(0, shape.pop(-2))
    return shape


def product_cases(dtype: str) -> Iterator[Case]:
    """FusedMatMul and the older TransposeMatMul."""
    shapes = {
        "rank 2": ((3, 4), (4, 5)),
        "rank 3": ((2, 3, 4), (2, 4, 5)),
        "rank 4": ((2, 3, 5, 4), (2, 3, 4, 6)),
        "rank 3 by 2": ((2, 3, 4), (4, 5)),
        "rank 2 by 3": ((3, 4), (2, 4, 5)),
        "one by many": ((1, 3, 4), (2, 4, 5)),
        "rank 4 by 3": ((2, 3, 5, 4), (3, 4, 6)),
        "vector by matrix": ((4,), (4, 5)),
        "matrix by vector": ((3, 4), (4,)),
    }
    for name, (a_shape, b_shape) in shapes.items():
        for flags in itertools.product((0, 1), repeat=4):
            is_stack = len(a_shape) == len(b_shape) and len(a_shape) > 2
            if (flags[2] or flags[3]) and not is_stack:
                continue
            # A vector is not transposed.
            if len(a_shape) == 1 and flags[0] or len(b_shape) == 1 and flags[1]:
                continue
            for alpha in (1.0, -0.25) if sum(flags) < 2 else (0.5,):
                keys = ("transA", "transB", "transBatchA", "transBatchB")
                attributes = {key: flag for key, flag in zip(keys, flags) if flag}
                if alpha != 1.0:
                    attributes["alpha"] = alpha
                draw = Draw(f"matmul {name}", dtype)
                a = draw.normal(*stored(a_shape, flags[2], flags[0]))
                b = draw.normal(*stored(b_shape, flags[3], flags[1]))
                expected = exact(fused_matmul, a, b, dtype=dtype, **attributes)
                variant = ", ".join([name, *(f"{key} {value}" for key, value in attributes.items())])
                # Before a vector, the CPU kernel of ONNX Runtime does not transpose A.
                kernel = not (flags[0] and b.ndim == 1)
                yield Case(
                    f"{MICROSOFT}.FusedMatMul", variant, dtype, [a, b], expected, attributes, weights=(1,), kernel=kernel
                )
                if not (flags[2] or flags[3]) and is_stack:
                    yield Case(f"{MICROSOFT}.TransposeMatMul", variant, dtype, [a, b], expected, attributes)


ACTIVATIONS = {
    "Relu": ({}, lambda x: np.maximum(x, 0)),
    "Sigmoid": ({}, sigmoid),
    "Tanh": ({}, np.tanh),
    "Softplus": ({}, softplus),
    "Softsign": ({}, lambda x: x / (1 + np.abs(x))),
    "LeakyRelu": ({"activation_alpha": 0.3}, lambda x: np.where(x > 0, x, 0.3 * x)),
    "Elu": ({"activation_alpha": 0.8}, lambda x: np.where(x > 0, x, 0.8 * (np.exp(x) - 1))),
    "ThresholdedRelu": ({"activation_alpha": 0.2}, lambda x: np.where(x > 0.2, x, 0)),
    "HardSigmoid": (
        {"activation_alpha": 0.3, "activation_beta": 0.4},
        lambda x: np.clip(0.3 * x + 0.4, 0, 1),
    ),
}


def log_softmax(x, axis=-1):
    """The logarithm of a softmax along one axis."""
    x = x - x.max(axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


# Activations that only FusedMatMulActivation has here.
OF_PRODUCTS = ACTIVATIONS | {
    "Selu": (
        {"activation_alpha": 1.5, "activation_gamma": 1.2},
        lambda x: 1.2 * np.where(x > 0, x, 1.5 * (np.exp(x) - 1)),
    ),
    "LogSoftmax": ({}, log_softmax),
    "Softmax": ({}, lambda x: np.exp(log_softmax(x))),
}


def product_activation_cases(dtype: str) -> Iterator[Case]:
    """FusedMatMulActivation, which has no kernel on the CPU."""

    def one(variant, a_shape, b_shape, function, attributes, product=None, opset=17):
        product = product or {}
        draw = Draw(f"activated {variant}", dtype)
        a = draw.normal(*stored(a_shape, product.get("transBatchA"), product.get("transA")))
        b = draw.normal(*stored(b_shape, product.get("transBatchB"), product.get("transB")))
        return Case(
            f"{MICROSOFT}.FusedMatMulActivation",
            variant,
            dtype,
            [a, b],
            exact(lambda a, b: function(fused_matmul(a, b, **product)), a, b, dtype=dtype),
            attributes | product,
            opset=opset,
            weights=(1,),
            kernel=False,
        )

    for name, (parameters, function) in OF_PRODUCTS.items():
        yield one(name, (2, 3, 4), (4, 5), function, {"activation": name, **parameters})
    for flags in itertools.product((0, 1), repeat=4):
        product = {"alpha": -0.25, **dict(zip(("transA", "transB", "transBatchA", "transBatchB"), flags))}
        variant = ", ".join(f"{key} {value}" for key, value in product.items())
        attributes = {"activation": "Tanh"}
        yield one(variant, (2, 3, 5, 4), (2, 3, 4, 6), np.tanh, attributes, product)
    # Before opset 13, the standard softmax flattens the axes from the given one on; this one never does.
    for axis, opset in itertools.product((0, 1, 2, -1, -2), (10, 12, 13)):
        attributes = {"activation": "Softmax", "activation_axis": axis}
        variant = f"Softmax, axis {axis}, opset {opset}"
        yield one(variant, (2, 3, 4), (4, 5), lambda x, axis=axis: np.exp(log_softmax(x, axis)), attributes, opset=opset)
    softmax = {"activation": "Softmax"}
    for a_shape, b_shape in [((4,), (4, 5)), ((3, 4), (4,)), ((3, 4), (2, 4, 5))]:
        variant = f"Softmax, {list(a_shape)} by {list(b_shape)}"
        yield one(variant, a_shape, b_shape, lambda x: np.exp(log_softmax(x)), softmax, opset=11)


def gemm_fast_gelu_cases(dtype: str) -> Iterator[Case]:
    """GemmFastGelu, which has no kernel on the CPU."""
    for x_shape, has_bias in itertools.product(((3, 4), (2, 3, 4), (2, 3, 2, 4)), (False, True)):
        draw = Draw(f"gemm fast gelu {x_shape}", dtype)
        inputs = [draw.normal(*x_shape), draw.normal(4, 5), *([draw.normal(5)] if has_bias else [])]
        variant = f"rank {len(x_shape)}, bias {'of 5' if has_bias else 'omitted'}"
        expected = exact(lambda x, w, bias=0.0: gelu_tanh(x @ w + bias), *inputs, dtype=dtype)
        weights = tuple(range(1, len(inputs)))
        yield Case(f"{MICROSOFT}.GemmFastGelu", variant, dtype, inputs, expected, weights=weights, kernel=False)


def gemm_cases(dtype: str) -> Iterator[Case]:
    """FusedGemm."""
    for activation, (parameters, function) in ACTIVATIONS.items():
        for trans_a, trans_b, c_shape in [(0, 0, (5,)), (0, 1, (5,)), (1, 0, None), (1, 1, (3, 5)), (0, 1, (3, 1))]:
            draw = Draw(f"gemm {activation}", dtype)
            a, b = draw.normal(*((4, 3) if trans_a else (3, 4))), draw.normal(*((5, 4) if trans_b else (4, 5)))
            c = [draw.normal(*c_shape)] if c_shape else []
            attributes = {"activation": activation, **parameters}
            alpha, beta = (0.5, 2.0) if trans_b else (1.0, 1.0)
            if trans_b:
                attributes |= {"alpha": alpha, "beta": beta}
            attributes |= {key: 1 for key, has in [("transA", trans_a), ("transB", trans_b)] if has}

            def gemm(a, b, c=0.0):
                a, b = a.T if trans_a else a, b.T if trans_b else b
                return function(alpha * a @ b + beta * c)

            variant = f"{activation}, transA {trans_a}, transB {trans_b}, C {list(c_shape) if c_shape else 'omitted'}"
            yield Case(
                f"{MICROSOFT}.FusedGemm",
                variant,
                dtype,
                [a, b, *c],
                exact(gemm, a, b, *c, dtype=dtype),
                attributes,
                weights=(1, 2) if c else (1,),
            )


def cases(dtype: str) -> Iterator[Case]:
    """All cases of this family."""
    yield from product_cases(dtype)
    yield from product_activation_cases(dtype)
    yield from gemm_fast_gelu_cases(dtype)
    yield from gemm_cases(dtype)
