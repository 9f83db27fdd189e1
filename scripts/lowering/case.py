"""A node with its inputs and expected outputs."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

MICROSOFT = "com.microsoft"


@dataclass
class Case:
    """A node, its inputs (None if omitted) and its outputs by NumPy (None if omitted)."""

    operator: str
    variant: str
    dtype: str
    inputs: list[np.ndarray | None]
    expected: list[np.ndarray | None]
    attributes: dict = field(default_factory=dict)
    opset: int = 17
    # Inputs that are constants in the file.
    weights: tuple[int, ...] = ()
    # Whether ONNX Runtime has a CPU kernel for it.
    kernel: bool = True

    @property
    def domain(self) -> str:
        """The domain, empty for the standard one."""
        return MICROSOFT if self.operator.startswith(MICROSOFT) else ""

    @property
    def op_type(self) -> str:
        """The operator without its domain."""
        return self.operator.rsplit(".", 1)[-1]

    def feeds(self) -> dict[str, np.ndarray]:
        """The values of the graph's inputs."""
        return {
            f"input{slot}": value
            for slot, value in enumerate(self.inputs)
            if value is not None and slot not in self.weights
        }

    def model(self, symbolic: bool = False) -> onnx.ModelProto:
        """Returns the model of this node alone. With `symbolic`, the first axis of its data has a symbolic size."""
        batch = self.inputs[0].shape[0]

        def info(name: str, value: np.ndarray) -> onnx.ValueInfoProto:
            shape = list(value.shape)
            if symbolic and shape and shape[0] == batch > 1:
                shape[0] = "batch"
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), shape)

        names = ["" if value is None else f"input{slot}" for slot, value in enumerate(self.inputs)]
        inputs = [info(name, value) for name, value in self.feeds().items()]
        constants = [onnx.numpy_helper.from_array(self.inputs[slot], names[slot]) for slot in self.weights]
        kept = [slot for slot, value in enumerate(self.expected) if value is not None]
        outputs = [f"output{slot}" if slot in kept else "" for slot in range(max(kept) + 1)]
        node = helper.make_node(self.op_type, names, outputs, name="node", domain=self.domain, **self.attributes)
        infos = [info(f"output{slot}", self.expected[slot]) for slot in kept]
        graph = helper.make_graph([node], self.op_type, inputs, infos, constants)
        imports = [helper.make_opsetid("", self.opset)]
        if self.domain:
            imports.append(helper.make_opsetid(MICROSOFT, 1))
        return helper.make_model(graph, opset_imports=imports, ir_version=8 if self.opset < 19 else 10)


class Draw:
    """Random inputs of a case, which depend on the name only."""

    def __init__(self, name: str, dtype: str):
        self.random = np.random.default_rng(zlib.crc32(name.encode()))
        self.dtype = np.dtype(dtype)

    def normal(self, *shape: int, scale: float = 1.0, dtype: str | None = None) -> np.ndarray:
        """Normally distributed values."""
        return (self.random.standard_normal(shape) * scale).astype(dtype or self.dtype)

    def near_one(self, *shape: int, dtype: str | None = None) -> np.ndarray:
        """Returns values around one, like the scale of a norm."""
        return (1 + 0.5 * self.random.standard_normal(shape)).astype(dtype or self.dtype)

    def bools(self, *shape: int, share: float = 0.6) -> np.ndarray:
        """Returns booleans that are true with a given probability, and always in the first column."""
        values = self.random.random(shape) < share
        values[..., 0] = True
        return values


def exact(function: Callable[..., object], *inputs: np.ndarray | None, dtype: str, **attributes) -> list:
    """Computes `function` in float64 and rounds to `dtype`. Returns a list, also for a single result."""
    wide = [
        value.astype(np.float64) if value is not None and value.dtype.kind == "f" else value for value in inputs
    ]
    results = function(*wide, **attributes)
    results = results if isinstance(results, (list, tuple)) else [results]
    return [None if value is None else np.asarray(value).astype(dtype) for value in results]
