"""Tiny, randomly weighted diffusion architectures, registered by family.

Importing this package fills ``registry.REGISTRY``. A family whose library is not installed is left out and listed in
``UNAVAILABLE`` with the reason, so that the others can still be exported.
"""

from __future__ import annotations

import importlib

from .registry import REGISTRY, Architecture, Example, Export

FAMILIES = (
    "diffusers_unets",
    "diffusers_conditioned",
    "diffusers_transformers",
    "diffusers_joint_transformers",
    "diffusers_recent_transformers",
    "diffusers_recent_transformers2",
    "diffusers_video_audio_transformers",
    "diffusers_video",
    "diffusers_autoencoders",
    "diffusers_recent_autoencoders",
    "k_diffusion_models",
    "monai_models",
    "lucidrains_models",
    "guided_diffusion",
    "latent_diffusion",
    "ddim",
    "edm",
    "transformers_native",
    "tutorial_unets",
    "sequence_denoisers",
)

UNAVAILABLE: dict[str, str] = {}

for _family in FAMILIES:
    try:
        importlib.import_module(f"{__name__}.{_family}")
    except ImportError as error:
        UNAVAILABLE[_family] = str(error)

__all__ = ["REGISTRY", "UNAVAILABLE", "Architecture", "Example", "Export"]
