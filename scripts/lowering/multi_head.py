"""Attention and MultiHeadAttention of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .attention import by_head, joined, softmax
from .case import MICROSOFT, Case, Draw, exact

B, L, S, HEADS, D = 2, 3, 5, 2, 4
HIDDEN = HEADS * D


def hidden_positions(mask, rows, columns, past, value):
    """Returns the addend of the scores for a mask, `[B, 1, L, T]` or broadcastable to it."""
    at = np.arange(columns)
    if mask.ndim == 1 and mask.shape[0] == B:
        seen = (at < mask[:, None])[:, None, None, :]
    elif mask.ndim == 1 and mask.shape[0] == 2 * B:
        seen = ((at < mask[:B, None]) & (at >= mask[B:, None]))[:, None, None, :]
    elif mask.ndim == 2 and mask.shape[1] == 1:
        return 0.0
    elif mask.ndim == 2:
        seen = mask[:, None, None, :] > 0
    elif mask.ndim == 3:
        seen = mask[:, None] > 0
    else:
        seen = mask[:, :, past : past + rows, :columns] > 0
    return np.where(seen, 0.0, value)


def attend(q, k, v, mask, bias, past_length, *, scale=0.0, unidirectional=0, mask_filter_value=-10000.0):
    """Computes the output `[B, L, heads * D]` from queries, keys and values `[B, heads, length, D]`."""
    scores = q @ k.swapaxes(-1, -2) * (scale or 1 / np.sqrt(q.shape[-1]))
    rows, columns = scores.shape[-2:]
    if mask is not None:
        scores = scores + hidden_positions(mask, rows, columns, past_length, mask_filter_value)
    if bias is not None:
        scores = scores + bias
    if unidirectional:
        # Queries and new keys have the same length: for other lengths, ONNX Runtime's kernels disagree with each other.
        seen = np.arange(columns) <= np.arange(rows)[:, None] + past_length
        scores = np.where(seen, scores, -np.inf)
    return joined(softmax(scores) @ v)


def multi_head(
    q, k=None, v=None, bias=None, mask=None, added=None, past_key=None, past_value=None, *, num_heads, **rest
):
    """Y, keys and values of MultiHeadAttention."""
    if k is None:
        q, k, v = (q[:, :, :, place].reshape(*q.shape[:2], -1) for place in range(3))
    elif v is None:
        k, v = (k[:, :, :, place].reshape(*k.shape[:2], -1) for place in range(2))
    if bias is not None:
        of_q, of_k = q.shape[2], k.shape[2]
        q, k, v = q + bias[:of_q], k + bias[of_q : of_q + of_k], v + bias[of_q + of_k :]
    q, k, v = (by_head(part, num_heads) if part.ndim == 3 else part for part in (q, k, v))
    past = 0
    if past_key is not None:
        past = past_key.shape[2]
        k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
    return [attend(q, k, v, mask, added, past, **rest), k, v]


def projected(x, w, bias, mask, past, added, *, num_heads, qkv_hidden_sizes=None, **rest):
    """Computes Y and the present of Attention."""
    values = x @ w if bias is None else x @ w + bias
    sizes = qkv_hidden_sizes or [w.shape[1] // 3] * 3
    parts = np.split(values, np.cumsum(sizes)[:2], axis=2)
    q, k, v = (by_head(part, num_heads) for part in parts)
    earlier = 0
    if past is not None:
        earlier = past.shape[3]
        k, v = np.concatenate([past[0], k], axis=2), np.concatenate([past[1], v], axis=2)
    present = np.stack([k, v]) if k.shape == v.shape else None
    return [attend(q, k, v, mask, added, earlier, **rest), present]


def masks(draw: Draw, rows: int, columns: int):
    """Returns masks by name, int32. Every query sees the first key."""
    as_ints = lambda value: value.astype(np.int32)  # noqa: E731
    return {
        "mask [B, S]": as_ints(draw.bools(B, columns)),
        "mask [B, L, S]": as_ints(draw.bools(B, rows, columns)),
        "mask [B, S] of zeros, ones and twos": np.array([[1, 2, 0, 1, 2], [2, 0, 1, 1, 0]], np.int32)[:, :columns],
        "lengths [B]": np.array([columns, columns - 2], np.int32),
    }


def multi_head_cases(dtype: str) -> Iterator[Case]:
    """MultiHeadAttention: separate and packed inputs, biases, masks, earlier steps."""
    draw = Draw("multi head", dtype)
    q, k, v, wide = draw.normal(B, L, HIDDEN), draw.normal(B, S, HIDDEN), draw.normal(B, S, HIDDEN), draw.normal(B, S, 12)
    own = [q, draw.normal(B, L, HIDDEN), draw.normal(B, L, HIDDEN)]
    k4, v4 = draw.normal(B, HEADS, S, D), draw.normal(B, HEADS, S, D)
    kv, qkv = draw.normal(B, S, HEADS, 2, D), draw.normal(B, L, HEADS, 3, D)
    bias, wide_bias = draw.normal(3 * HIDDEN), draw.normal(2 * HIDDEN + 12)
    # Name, inputs up to the bias, number of keys.
    forms = [
        ("separate", [q, k, v], S),
        ("separate, bias", [q, k, v, bias], S),
        ("self, bias", [*own, bias], L),
        ("wider values", [q, k, wide], S),
        ("wider values, bias", [q, k, wide, wide_bias], S),
        ("keys and values of rank 4", [q, k4, v4], S),
        ("packed keys and values", [q, kv], S),
        ("packed queries, keys and values", [qkv], L),
        ("packed queries, keys and values, bias", [qkv, None, None, bias], L),
    ]
    for name, inputs, columns in forms:
        extras = [("", None, None, {})]
        extras += [(f"scale {scale}", None, None, {"scale": scale}) for scale in (0.3, 1.0)]
        extras += [(kind, mask, None, {}) for kind, mask in masks(draw, L, columns).items()]
        extras += [("mask of -3", draw.bools(B, columns).astype(np.int32), None, {"mask_filter_value": -3.0})]
        for shape in ((B, HEADS), (1, HEADS), (1, 1), (B, 1)):
            added = draw.normal(*shape, L, columns)
            extras.append((f"attention bias {[*shape, 'L', 'S']}".replace("'", ""), None, added, {}))
        extras.append(
            ("mask and attention bias", draw.bools(B, columns).astype(np.int32), draw.normal(1, HEADS, L, columns), {})
        )
        if columns == L:
            extras.append(("unidirectional", None, None, {"unidirectional": 1}))
            extras.append(("unidirectional, mask", draw.bools(B, L).astype(np.int32), None, {"unidirectional": 1}))
        hidden = np.array([[1] * columns, [0] * columns], np.int32)
        extras.append(("hidden row", hidden, None, {"mask_filter_value": -9.0}))
        for extra, mask, added, attributes in extras:
            attributes = {"num_heads": HEADS, **attributes}
            values = [*inputs, *[None] * (4 - len(inputs)), mask, added]
            expected = exact(multi_head, *values, dtype=dtype, **attributes)[:1]
            while values[-1] is None:
                values.pop()
            # On the CPU, ONNX Runtime does not support the packed form.
            kernel = not name.startswith("packed")
            variant = name + (f", {extra}" if extra else "")
            yield Case(
                f"{MICROSOFT}.MultiHeadAttention",
                variant,
                dtype,
                values,
                expected,
                attributes,
                weights=(3,) if len(values) > 3 and values[3] is not None else (),
                kernel=kernel,
            )
    past = [draw.normal(B, HEADS, 2, D), draw.normal(B, HEADS, 2, D)]
    for extra, mask, attributes in [
        ("", None, {}),
        ("unidirectional", None, {"unidirectional": 1}),
        ("mask [B, T]", draw.bools(B, L + 2).astype(np.int32), {}),
        ("mask [B, L, T]", draw.bools(B, L, L + 2).astype(np.int32), {}),
    ]:
        attributes = {"num_heads": HEADS, **attributes}
        values = [*own, bias, mask, None, *past]
        yield Case(
            f"{MICROSOFT}.MultiHeadAttention",
            "past" + (f", {extra}" if extra else ""),
            dtype,
            values,
            exact(multi_head, *values, dtype=dtype, **attributes),
            attributes,
            weights=(3,),
        )


def attention_cases(dtype: str) -> Iterator[Case]:
    """Attention, which projects its input."""
    draw = Draw("projected attention", dtype)
    width = 5
    x = draw.normal(B, L, width)
    plain = [draw.normal(width, 3 * HIDDEN, scale=0.5), draw.normal(3 * HIDDEN)]
    uneven = [draw.normal(width, 2 * HIDDEN + 12, scale=0.5), draw.normal(2 * HIDDEN + 12)]
    sizes = {"qkv_hidden_sizes": [HIDDEN, HIDDEN, 12]}
    past = draw.normal(2, B, HEADS, 2, D)
    large = np.tril(np.ones((B, 1, L + 3, L + 3), np.int32))
    kinds = masks(draw, L, L)
    kinds["ends and starts [2 B]"] = np.array([3, 2, 1, 0], np.int32)
    kinds["mask [B, 1]"] = np.ones((B, 1), np.int32)
    kinds["mask [1, 1]"] = np.ones((1, 1), np.int32)
    kinds["mask [B, 1, M, M]"] = large
    # Name, weights, mask, past, addend of the scores, attributes, outputs.
    variants = [("", plain, None, None, None, {}, 1)]
    variants += [("no bias", [plain[0], None], None, None, None, {}, 1)]
    variants += [("wider values", uneven, None, None, None, sizes, 1)]
    variants += [("scale 0.3", plain, None, None, None, {"scale": 0.3}, 1)]
    variants += [(name, plain, mask, None, None, {}, 1) for name, mask in kinds.items()]
    variants += [("mask of -3", plain, kinds["mask [B, S]"], None, None, {"mask_filter_value": -3.0}, 1)]
    hidden = np.array([[1] * L, [0] * L], np.int32)
    variants += [("hidden row", plain, hidden, None, None, {"mask_filter_value": -9.0}, 1)]
    variants += [("unidirectional", plain, None, None, None, {"unidirectional": 1}, 1)]
    variants += [("unidirectional, mask", plain, kinds["mask [B, S]"], None, None, {"unidirectional": 1}, 1)]
    for shape in ((B, HEADS), (1, HEADS), (1, 1), (B, 1)):
        added = draw.normal(*shape, L, L)
        name = f"attention bias {[*shape, 'L', 'L']}".replace("'", "")
        variants.append((name, plain, None, None, added, {}, 1))
    variants += [("present", plain, None, None, None, {}, 2)]
    variants += [("past", plain, None, past, None, {}, 2)]
    variants += [("past, unidirectional", plain, None, past, None, {"unidirectional": 1}, 2)]
    variants += [("past, mask [B, T]", plain, draw.bools(B, L + 2).astype(np.int32), past, None, {}, 2)]
    for name, weights, mask, earlier, added, attributes, outputs in variants:
        attributes = {"num_heads": HEADS, **attributes}
        values = [x, *weights, mask, earlier, added]
        expected = exact(projected, *values, dtype=dtype, **attributes)[:outputs]
        while values[-1] is None:
            values.pop()
        yield Case(
            f"{MICROSOFT}.Attention",
            name or "bias",
            dtype,
            values,
            expected,
            attributes,
            weights=(1, 2) if weights[1] is not None else (1,),
            # Without a bias, ONNX Runtime's kernel reads invalid memory. It does not support masks of rank 4.
            kernel=weights[1] is not None and (mask is None or mask.ndim < 4),
        )


def cases(dtype: str) -> Iterator[Case]:
    """All cases of this family."""
    yield from multi_head_cases(dtype)
    yield from attention_cases(dtype)
