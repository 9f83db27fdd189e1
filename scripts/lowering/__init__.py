"""Cases of `check_lowering.py`: fused operators, their NumPy implementations, and their variants."""

from . import activations, attention, convolutions, matrices, multi_head, norms, rotary, sampling

FAMILIES = [activations, convolutions, norms, matrices, attention, multi_head, rotary, sampling]


def all_cases():
    """Yields every case of every family, in float32 and float16."""
    for family in FAMILIES:
        for dtype in ("float32", "float16"):
            yield from family.cases(dtype)
