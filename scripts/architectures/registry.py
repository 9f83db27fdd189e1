"""The registry that every family adds its architectures to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

TORCHSCRIPT = "torchscript"
DYNAMO = "dynamo"


@dataclass(frozen=True)
class Export:
    """One way to export an architecture: an exporter, an opset, and whether marked axes become symbolic."""

    exporter: str
    opset: int
    dynamic: bool = False

    @property
    def suffix(self) -> str:
        short = "ts" if self.exporter == TORCHSCRIPT else "dy"
        return f"{short}{self.opset}" + ("_dyn" if self.dynamic else "")


@dataclass
class Example:
    """A built network, its example inputs by name, and which of their axes may be symbolic.

    ``call`` receives the network and the inputs in order, and returns the tensors that become graph outputs.
    """

    network: nn.Module
    inputs: dict[str, torch.Tensor]
    call: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]] | None = None
    outputs: tuple[str, ...] = ("output",)
    dynamic: dict[str, dict[int, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Architecture:
    """A named architecture and the exports that are made of it."""

    name: str
    build: Callable[[], Example]
    exports: tuple[Export, ...]
    full_size: bool = False

    def file_stem(self, export: Export) -> str:
        # A full-size model is known by its plain name and exported once.
        return self.name if self.full_size else f"{self.name}_{export.suffix}"


REGISTRY: dict[str, Architecture] = {}


def ts(opset: int = 17, dynamic: bool = False) -> Export:
    """A TorchScript export."""
    return Export(TORCHSCRIPT, opset, dynamic)


def dynamo(opset: int = 20, dynamic: bool = False) -> Export:
    """A torch.export (dynamo) export."""
    return Export(DYNAMO, opset, dynamic)


def architecture(name: str, *exports: Export, full_size: bool = False):
    """Register the decorated builder under ``name``."""

    def register(build: Callable[[], Example]) -> Callable[[], Example]:
        if name in REGISTRY:
            raise ValueError(f"architecture {name} is registered twice")
        REGISTRY[name] = Architecture(name, build, exports or (ts(), dynamo()), full_size)
        return build

    return register


def batch_only(*names: str) -> dict[str, dict[int, str]]:
    """Axis 0 of each input is the batch."""
    return {name: {0: "batch"} for name in names}


def image_axes(name: str, *batch: str) -> dict[str, dict[int, str]]:
    """``name`` has a symbolic batch, height and width; the inputs in ``batch`` only a symbolic batch."""
    return {name: {0: "batch", 2: "height", 3: "width"}, **batch_only(*batch)}


class PositionalCall(nn.Module):
    """Gives every network the same positional signature, as the exporters want it."""

    def __init__(self, example: Example):
        super().__init__()
        self.network = example.network
        self.call = example.call

    def forward(self, *inputs: torch.Tensor):
        if self.call is None:
            return self.network(*inputs)
        return self.call(self.network, *inputs)


def randomise_zero_parameters(module: nn.Module, generator: torch.Generator) -> None:
    """Draw parameters that are constant (zero-initialised layers) from N(0, 0.02).

    A zero output layer would hide every mistake made before it.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point() and bool((parameter == 0).all()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
