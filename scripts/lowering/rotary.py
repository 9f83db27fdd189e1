"""Rotary embeddings of the standard and of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .case import MICROSOFT, Case, Draw, exact


def rotated(x, cos, sin, *, interleaved=0):
    """Rotates `[B, L, heads, D]` by angles with cosines and sines `[B, L, pairs]`. Further dimensions are unchanged."""
    turned = 2 * cos.shape[-1]
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    part, rest = x[..., :turned], x[..., turned:]
    first, second = (part[..., 0::2], part[..., 1::2]) if interleaved else np.split(part, 2, axis=-1)
    pair = [first * cos - second * sin, first * sin + second * cos]
    part = np.stack(pair, axis=-1).reshape(part.shape) if interleaved else np.concatenate(pair, axis=-1)
    return np.concatenate([part, rest], axis=-1)


def rotary(x, cos, sin, *, heads, interleaved=0):
    """Rotates `[B, heads, L, D]` or `[B, L, heads * D]`."""
    if x.ndim == 4:
        return rotated(x.transpose(0, 2, 1, 3), cos, sin, interleaved=interleaved).transpose(0, 2, 1, 3)
    by_head = x.reshape(*x.shape[:2], heads, -1)
    return rotated(by_head, cos, sin, interleaved=interleaved).reshape(x.shape)


def angles(draw: Draw, *shape: int):
    """Returns cosines and sines of random angles."""
    angle = draw.random.random(shape) * 6
    return np.cos(angle).astype(draw.dtype), np.sin(angle).astype(draw.dtype)


B, L, HEADS, D, ROWS = 2, 3, 3, 8, 7


def cases(dtype: str) -> Iterator[Case]:
    """All cases of this family."""
    for interleaved in (0, 1):
        for turned in (0, 4):
            for rank in (3, 4):
                yield from standard_cases(dtype, interleaved, turned, rank)
                yield from contrib_cases(dtype, interleaved, turned, rank)


def shape_of(rank: int):
    """The shape of X."""
    return (B, HEADS, L, D) if rank == 4 else (B, L, HEADS * D)


def standard_cases(dtype: str, interleaved: int, turned: int, rank: int) -> Iterator[Case]:
    """RotaryEmbedding since opset 23: caches indexed by position, or one entry for every token."""
    for opset in (23, 26):
        for has_positions in (True, False):
            draw = Draw(f"rotary {rank}", dtype)
            x, pairs = draw.normal(*shape_of(rank)), (turned or D) // 2
            positions = draw.random.integers(0, ROWS, (B, L))
            cos, sin = angles(draw, *((ROWS,) if has_positions else (B, L)), pairs)
            rows = (cos[positions], sin[positions]) if has_positions else (cos, sin)
            attributes = {"interleaved": interleaved} if interleaved else {}
            if rank == 3:
                attributes["num_heads"] = HEADS
            if turned:
                attributes["rotary_embedding_dim"] = turned
            expected = exact(rotary, x, *rows, dtype=dtype, heads=HEADS, interleaved=interleaved)
            variant = f"opset {opset}, rank {rank}, interleaved {interleaved}" + (f", {turned} of {D}" if turned else "")
            for is_constant in (True, False):
                weights = (1, 2) if is_constant and has_positions else ()
                if not is_constant and not has_positions:
                    continue
                yield Case(
                    "RotaryEmbedding",
                    variant + (", positions" if has_positions else "") + ("" if weights else ", computed caches"),
                    dtype,
                    [x, cos, sin, *([positions] if has_positions else [])],
                    expected,
                    attributes,
                    opset,
                    weights,
                )


def contrib_cases(dtype: str, interleaved: int, turned: int, rank: int) -> Iterator[Case]:
    """RotaryEmbedding of ONNX Runtime: a position for every token, or for the first one."""
    for first in (None, 0, 2):
        for has_heads in (True, False):
            # ONNX Runtime has the attribute scale but ignores it.
            for scale in (None, 0.5):
                if turned and not has_heads or scale and first is not None:
                    continue
                draw = Draw(f"contrib rotary {rank}", dtype)
                x, (cos, sin) = draw.normal(*shape_of(rank)), angles(draw, ROWS, (turned or D) // 2)
                positions = draw.random.integers(0, ROWS, (B, L)) if first is None else np.array([first])
                each = positions if first is None else np.tile(first + np.arange(L), (B, 1))
                attributes = {"interleaved": interleaved} if interleaved else {}
                if has_heads:
                    attributes["num_heads"] = HEADS
                if turned:
                    attributes["rotary_embedding_dim"] = turned
                if scale:
                    attributes["scale"] = scale
                variant = f"rank {rank}, interleaved {interleaved}" + (f", {turned} of {D}" if turned else "")
                variant += ", positions" if first is None else f", from {first}"
                variant += (", num_heads" if has_heads else "") + (f", scale {scale}" if scale else "")
                yield Case(
                    f"{MICROSOFT}.RotaryEmbedding",
                    variant,
                    dtype,
                    [x, positions, cos, sin],
                    exact(rotary, x, cos[each], sin[each], dtype=dtype, heads=HEADS, interleaved=interleaved),
                    attributes,
                    weights=(2, 3),
                )
