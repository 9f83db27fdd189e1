"""Operators of ONNX Runtime that are also in the standard: GridSample, Trilu and quantization."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .case import MICROSOFT, Case, Draw, exact


def grid_sample(x, grid, *, mode="bilinear", padding_mode="zeros", align_corners=0):
    """Samples pixels of `[N, C, H, W]` at positions `[N, h, w, 2]`, which range from -1 to 1."""
    n, c, height, width = x.shape
    result = np.zeros((n, c, *grid.shape[1:3]))

    def reflected(at, size):
        low, high = (0, size - 1) if align_corners else (-0.5, size - 0.5)
        span = high - low
        if span == 0:
            return 0
        turns, rest = divmod(abs(at - low), span)
        return low + rest if turns % 2 == 0 else high - rest

    def place(value, size):
        at = (value + 1) / 2 * (size - 1) if align_corners else ((value + 1) * size - 1) / 2
        if padding_mode == "border":
            return np.clip(at, 0, size - 1)
        return np.clip(reflected(at, size), 0, size - 1) if padding_mode == "reflection" else at

    def pixel(image, row, column):
        inside = 0 <= row < height and 0 <= column < width
        return image[:, row, column] if inside else np.zeros(c)

    for index in np.ndindex(n, *grid.shape[1:3]):
        column, row = (place(value, size) for value, size in zip(grid[index], (width, height)))
        image = x[index[0]]
        if mode == "nearest":
            value = pixel(image, int(np.rint(row)), int(np.rint(column)))
        else:
            top, left = int(np.floor(row)), int(np.floor(column))
            down, right = row - top, column - left
            value = (1 - down) * (1 - right) * pixel(image, top, left)
            value += (1 - down) * right * pixel(image, top, left + 1)
            value += down * (1 - right) * pixel(image, top + 1, left)
            value += down * right * pixel(image, top + 1, left + 1)
        result[(index[0], slice(None), *index[1:])] = value
    return result


def cases(dtype: str) -> Iterator[Case]:
    """All cases of this family."""
    for mode in ("bilinear", "nearest"):
        for padding_mode in ("zeros", "border", "reflection"):
            for align_corners in (0, 1):
                if dtype == "float16":
                    continue
                draw = Draw("grid", dtype)
                x, grid = draw.normal(2, 3, 4, 5), draw.normal(2, 3, 2, 2, scale=0.8)
                attributes = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
                yield Case(
                    f"{MICROSOFT}.GridSample",
                    f"{mode}, {padding_mode}, align_corners {align_corners}",
                    dtype,
                    [x, grid],
                    exact(grid_sample, x, grid, dtype=dtype, **attributes),
                    attributes,
                )
    for upper in (0, 1):
        for offset in (None, -1, 2):
            x = Draw("trilu", dtype).normal(2, 4, 5)
            part = np.triu if upper else np.tril
            yield Case(
                f"{MICROSOFT}.Trilu",
                f"upper {upper}, k {offset}",
                dtype,
                [x, *([] if offset is None else [np.array(offset)])],
                [part(x, offset or 0)],
                {"upper": upper},
                weights=() if offset is None else (1,),
            )
    if dtype == "float16":
        return
    for kind in ("uint8", "int8"):
        for axis in (None, 1):
            draw = Draw(f"quantize {kind}", dtype)
            x, limits = draw.normal(3, 4, 2), np.iinfo(kind)
            scale = np.float32(0.03) if axis is None else (0.02 + 0.02 * draw.random.random(4)).astype(dtype)
            zero = np.array(3, kind) if axis is None else np.array([0, 3, 5, 1], kind)
            scale = np.asarray(scale)
            of_axis = (lambda value: value) if axis is None else (lambda value: value[:, None])
            codes = np.rint(x / of_axis(scale)) + of_axis(zero).astype(int)
            codes = np.clip(codes, limits.min, limits.max).astype(kind)
            values = ((codes.astype(int) - of_axis(zero).astype(int)) * of_axis(scale)).astype(dtype)
            attributes = {} if axis is None else {"axis": axis}
            name = f"{kind}, {'one scale' if axis is None else f'axis {axis}'}"
            for operator, source, target in [("QuantizeLinear", x, codes), ("DequantizeLinear", codes, values)]:
                inputs = [source, scale, zero]
                yield Case(f"{MICROSOFT}.{operator}", name, dtype, inputs, [target], attributes, weights=(1, 2))
