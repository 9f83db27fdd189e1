"""Denoisers of k-diffusion: the U-Net of its first version and its first image transformer.

The package imports trainers and evaluators when it is imported itself, which need a dozen other packages; only its
modules with networks are loaded here. Both take a noise level, sigma.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import torch

from .registry import Example, architecture, dynamo


def networks() -> ModuleType:
    """The module ``k_diffusion.models``, without the rest of the package."""
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None:
            raise ImportError("k-diffusion is not installed")
        package = ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["k_diffusion"] = package
    return importlib.import_module("k_diffusion.models")


MODELS = networks()


def example(network: torch.nn.Module) -> Example:
    return Example(network, {"x": torch.randn(2, 3, 16, 16), "sigma": torch.rand(2) + 0.5})


@architecture("k_unet", dynamo(20))
def k_unet() -> Example:
    return example(MODELS.ImageDenoiserModelV1(3, 32, (2, 2), (32, 64), (False, True)))


@architecture("k_unet_patches", dynamo(20))
def k_unet_patches() -> Example:
    """Patches of two by two pixels, and a skip connection around the middle."""
    return example(MODELS.ImageDenoiserModelV1(3, 32, (1, 2), (32, 64), (False, True), patch_size=2))


@architecture("k_transformer", dynamo(20))
def k_transformer() -> Example:
    """Axial rotary embeddings over four heads of 64 dimensions."""
    return example(MODELS.ImageTransformerDenoiserModelV1(2, 256, 256, 3, 3, (2, 2), dropout=0.0, sigma_data=1.0))
