"""Attention of the standard (opset 23 and later)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .case import Case, Draw, exact


def softmax(scores):
    """Computes softmax along the last axis. A row of minus infinity becomes zeros."""
    largest = scores.max(axis=-1, keepdims=True)
    shares = np.exp(scores - np.where(np.isneginf(largest), 0, largest))
    total = shares.sum(axis=-1, keepdims=True)
    return np.divide(shares, total, out=np.zeros_like(shares), where=total > 0)


def by_head(value, heads):
    """Reshapes `[B, L, heads * D]` to `[B, heads, L, D]`."""
    return value.reshape(*value.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def joined(value):
    """Reshapes `[B, heads, L, D]` to `[B, L, heads * D]`."""
    value = value.transpose(0, 2, 1, 3)
    return value.reshape(*value.shape[:2], -1)


def attention(
    q,
    k,
    v,
    mask=None,
    past_key=None,
    past_value=None,
    lengths=None,
    *,
    q_num_heads=0,
    kv_num_heads=0,
    scale=None,
    is_causal=0,
    softcap=0.0,
    qk_matmul_output_mode=0,
    left_window_size=-1,
    right_window_size=-1,
    **_,
):
    """Computes Y, the keys and values joined with the past ones, and the scores of the stage that the mode selects."""
    is_flat = q.ndim == 3
    if is_flat:
        q, k, v = by_head(q, q_num_heads), by_head(k, kv_num_heads), by_head(v, kv_num_heads)
    offset = 0
    if past_key is not None:
        offset = past_key.shape[2]
        k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
    present_key, present_value = k, v
    repeats = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, repeats, axis=1), np.repeat(v, repeats, axis=1)
    scores = q @ k.swapaxes(-1, -2) * (1 / np.sqrt(q.shape[-1]) if scale is None else scale)
    stages = [scores]
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    stages.append(scores)
    rows, columns = scores.shape[-2:]
    row, column = np.arange(rows)[:, None], np.arange(columns)
    if lengths is not None:
        offset = (lengths - rows)[:, None, None, None]
        scores = np.where(column < lengths[:, None, None, None], scores, -np.inf)
    if is_causal:
        scores = np.where(column <= row + offset, scores, -np.inf)
    if left_window_size >= 0:
        scores = np.where(column >= row + offset - left_window_size, scores, -np.inf)
    if right_window_size >= 0:
        scores = np.where(column <= row + offset + right_window_size, scores, -np.inf)
    if mask is not None:
        missing = columns - mask.shape[-1]
        bias = np.where(mask, 0.0, -np.inf) if mask.dtype == bool else mask
        scores = scores + np.pad(bias, [(0, 0)] * (mask.ndim - 1) + [(0, missing)], constant_values=-np.inf)
    stages.append(scores)
    shares = softmax(scores)
    stages.append(shares)
    y = shares @ v
    return [joined(y) if is_flat else y, present_key, present_value, stages[qk_matmul_output_mode]]


B, L, S, D, E = 2, 3, 5, 4, 6
HEADS = 4


def masks(draw: Draw, columns: int):
    """Returns every kind of mask by name."""
    rows_hidden = draw.bools(L, columns)
    rows_hidden[1] = False
    return {
        "bool [L, S]": draw.bools(L, columns),
        "bool [1, 1, L, S]": draw.bools(1, 1, L, columns),
        "bool [B, 1, 1, S]": draw.bools(B, 1, 1, columns),
        "bool [heads, L, S]": draw.bools(HEADS, L, columns),
        "bool [B, heads, L, S]": draw.bools(B, HEADS, L, columns),
        "bool with a hidden row": rows_hidden,
        "float [L, S]": draw.normal(L, columns),
        "float [B, 1, L, S]": draw.normal(B, 1, L, columns),
        "float [1, heads, L, S]": draw.normal(1, HEADS, L, columns),
        "float [B, heads, L, S]": draw.normal(B, HEADS, L, columns),
        "float [heads, 1, S]": draw.normal(HEADS, 1, columns),
        "float of minus infinity": np.where(draw.bools(L, columns), 0, -np.inf).astype(draw.dtype),
    }


# Cases that ONNX Runtime refuses on the CPU: masks that are broadcast along rows or too short, and unused present keys.
REFUSED = ("bool [B, 1, 1, S]", "float [heads, 1, S]", "short mask", "short float mask", "past, present not read")


def variants(dtype: str):
    """Yields variant, opset, kv heads, rank, mask, past, lengths, attributes and used outputs."""
    draw = Draw("attention masks", dtype)
    for opset in (23, 24, 26):
        for kv_heads in (4, 2, 1):
            for rank in (3, 4):
                yield "", opset, kv_heads, rank, None, 0, None, {}, (0,)
    for name, mask in masks(draw, S).items():
        yield name, 23, 4, 4, mask, 0, None, {}, (0,)
        yield name, 24, 2, 3, mask, 0, None, {}, (0,)
    for scale in (0.3, 1.0):
        yield f"scale {scale}", 23, 4, 3, None, 0, None, {"scale": scale}, (0,)
    for kv_heads, rank in [(4, 3), (4, 4), (2, 3), (1, 4)]:
        yield "is_causal", 23, kv_heads, rank, None, 0, None, {"is_causal": 1}, (0,)
        yield "past", 23, kv_heads, rank, None, 2, None, {}, (0, 1, 2)
        yield "past, is_causal", 24, kv_heads, rank, None, 2, None, {"is_causal": 1}, (0, 1, 2)
    yield "past, present not read", 23, 4, 4, None, 2, None, {}, (0,)
    yield "present without past", 23, 4, 3, None, 0, None, {}, (0, 1, 2)
    yield "past, bool mask", 23, 4, 4, draw.bools(L, S + 2), 2, None, {}, (0, 1, 2)
    yield "is_causal, float mask", 23, 4, 4, draw.normal(L, S), 0, None, {"is_causal": 1}, (0,)
    yield "is_causal, bool mask", 24, 4, 3, draw.bools(L, S), 0, None, {"is_causal": 1}, (0,)
    yield "softcap", 23, 4, 4, None, 0, None, {"softcap": 0.7}, (0,)
    yield "softcap, bool mask", 24, 4, 4, draw.bools(L, S), 0, None, {"softcap": 0.7}, (0,)
    yield "softcap, float mask", 23, 4, 4, draw.normal(L, S), 0, None, {"softcap": 0.7}, (0,)
    yield "short mask", 24, 4, 4, draw.bools(L, S - 2), 0, None, {}, (0,)
    yield "short float mask", 24, 4, 4, draw.normal(L, S - 1), 0, None, {}, (0,)
    yield "softmax_precision 1", 23, 4, 4, None, 0, None, {"softmax_precision": 1}, (0,)
    for mode in range(4):
        attributes = {"qk_matmul_output_mode": mode, "softcap": 1.5}
        yield f"scores, mode {mode}", 24, 4, 4, draw.normal(L, S), 0, None, attributes, (0, 3)
    lengths = np.array([5, 3])
    yield "lengths", 24, 4, 4, None, 0, lengths, {}, (0,)
    yield "lengths, is_causal", 24, 4, 4, None, 0, lengths, {"is_causal": 1}, (0,)
    for window in ({"left_window_size": 1}, {"right_window_size": 0}, {"left_window_size": 1, "right_window_size": 1}):
        yield f"windows {list(window.values())}", 25, 4, 4, None, 0, None, window, (0,)


def cases(dtype: str) -> Iterator[Case]:
    """All cases of this family."""
    for name, opset, kv_heads, rank, mask, past, lengths, attributes, outputs in variants(dtype):
        draw = Draw(f"attention {kv_heads} {rank} {past}", dtype)
        q, k, v = draw.normal(B, HEADS, L, D), draw.normal(B, kv_heads, S, D), draw.normal(B, kv_heads, S, E)
        attributes = dict(attributes)
        if rank == 3:
            q, k, v = joined(q), joined(k), joined(v)
            attributes |= {"q_num_heads": HEADS, "kv_num_heads": kv_heads}
        earlier = [None, None]
        if past:
            earlier = [draw.normal(B, kv_heads, past, D), draw.normal(B, kv_heads, past, E)]
        inputs = [q, k, v, mask, *earlier, lengths]
        expected = exact(attention, *inputs, dtype=dtype, **attributes)
        while inputs[-1] is None:
            inputs.pop()
        variant = f"opset {opset}, {HEADS} heads on {kv_heads}, rank {rank}" + (f", {name}" if name else "")
        yield Case(
            "Attention",
            variant,
            dtype,
            inputs,
            [value if slot in outputs else None for slot, value in enumerate(expected)],
            attributes,
            opset,
            # Nor does it support the windows of opset 25.
            kernel=name not in REFUSED and opset != 25,
        )
