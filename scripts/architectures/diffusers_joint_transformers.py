"""Diffusion transformers of diffusers in which text and image tokens attend jointly."""

from __future__ import annotations

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    ChromaTransformer2DModel,
    CogVideoXTransformer3DModel,
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
    FluxTransformer2DModel,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
    SD3Transformer2DModel,
)

from .diffusers_transformers import HEADS, TIMESTEPS, first
from .registry import Example, architecture, batch_only, dynamo, ts


def sd3_example(**config) -> Example:
    network = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        **HEADS,
        joint_attention_dim=24,
        caption_projection_dim=64,
        pooled_projection_dim=20,
        pos_embed_max_size=8,
        **config,
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 7, 24),
        "pooled_projections": torch.randn(2, 20),
        "timestep": TIMESTEPS,
    }
    return Example(network, inputs, first(*inputs), dynamic=batch_only(*inputs))


@architecture("sd3", ts(17, dynamic=True), dynamo(20))
def sd3() -> Example:
    return sd3_example()


@architecture("sd35_medium", ts(17), dynamo(23))
def sd35_medium() -> Example:
    """Dual attention layers and RMS-normed queries and keys."""
    return sd3_example(dual_attention_layers=(0,), qk_norm="rms_norm")


@architecture("flux", ts(17), dynamo(20), dynamo(23))
def flux() -> Example:
    network = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        **HEADS,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    inputs = {
        "hidden_states": torch.randn(1, 16, 16),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "pooled_projections": torch.randn(1, 20),
        "timestep": torch.rand(1),
        "img_ids": torch.randint(0, 4, (16, 3)).float(),
        "txt_ids": torch.zeros(7, 3),
        "guidance": torch.rand(1),
    }
    return Example(network, inputs, first(*inputs))


@architecture("chroma", ts(17))
def chroma() -> Example:
    """Flux without modulation layers: one approximator network yields all modulations."""
    network = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        **HEADS,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=64,
        approximator_layers=2,
    )
    inputs = {
        "hidden_states": torch.randn(1, 16, 16),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "timestep": torch.rand(1),
        "img_ids": torch.randint(0, 4, (16, 3)).float(),
        "txt_ids": torch.zeros(7, 3),
    }
    return Example(network, inputs, first(*inputs))


@architecture("auraflow", ts(17), dynamo(20))
def auraflow() -> Example:
    network = AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=2,
        **HEADS,
        joint_attention_dim=24,
        caption_projection_dim=64,
        pos_embed_max_size=16,
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 7, 24),
        "timestep": torch.rand(2),
    }
    return Example(network, inputs, first(*inputs), dynamic=batch_only(*inputs))


@architecture("cogvideox", ts(17), dynamo(20))
def cogvideox() -> Example:
    network = CogVideoXTransformer3DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        time_embed_dim=32,
        text_embed_dim=24,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=7,
    )
    inputs = {
        "hidden_states": torch.randn(1, 3, 4, 8, 8),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "timestep": torch.tensor([3]),
    }
    return Example(network, inputs, first(*inputs))


@architecture("cogview3", ts(17), dynamo(20))
def cogview3() -> Example:
    return cogview(CogView3PlusTransformer2DModel, pos_embed_max_size=8)


@architecture("cogview4", ts(17))
def cogview4() -> Example:
    return cogview(CogView4Transformer2DModel, rope_axes_dim=(8, 8), pos_embed_max_size=8)


def cogview(kind, **config) -> Example:
    network = kind(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        **HEADS,
        text_embed_dim=24,
        time_embed_dim=32,
        condition_dim=16,
        sample_size=8,
        **config,
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 7, 24),
        "timestep": TIMESTEPS,
        "original_size": torch.rand(2, 2) * 100,
        "target_size": torch.rand(2, 2) * 100,
        "crop_coords": torch.zeros(2, 2),
    }
    return Example(network, inputs, first(*inputs), dynamic=batch_only(*inputs))


@architecture("ltx_video", dynamo(20))
def ltx_video() -> Example:
    network = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, **HEADS, cross_attention_dim=64, num_layers=2, caption_channels=24
    )
    inputs = {
        "hidden_states": torch.randn(1, 2 * 4 * 4, 8),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "timestep": torch.tensor([3]),
        "encoder_attention_mask": torch.ones(1, 7),
    }
    names = tuple(inputs)
    call = lambda net, *values: net(**dict(zip(names, values)), num_frames=2, height=4, width=4, return_dict=False)[0]
    return Example(network, inputs, call)


@architecture("mochi", ts(17), dynamo(20))
def mochi() -> Example:
    network = MochiTransformer3DModel(
        patch_size=2,
        **HEADS,
        num_layers=2,
        pooled_projection_dim=32,
        in_channels=4,
        text_embed_dim=24,
        time_embed_dim=16,
        max_sequence_length=7,
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 2, 8, 8),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "timestep": torch.tensor([3]),
        "encoder_attention_mask": torch.ones(1, 7, dtype=torch.bool),
    }
    return Example(network, inputs, first(*inputs))
