"""Further diffusion transformers of diffusers for video and audio."""

from __future__ import annotations

import torch
from diffusers import (
    AceStepTransformer1DModel,
    Kandinsky6Transformer3DModel,
    LongCatAudioDiTTransformer,
    MotifVideoTransformer3DModel,
    StableAudio3DiTModel,
)

from .diffusers_recent_transformers import TEXT_TOKENS
from .diffusers_transformers import HEADS, first
from .registry import Example, architecture, dynamo, ts

VIDEO = dict(in_channels=4, out_channels=4, **HEADS)


def video_inputs(channels: int = 4, timestep: float | int = 3, text_channels: int = 24) -> dict[str, torch.Tensor]:
    return {
        "hidden_states": torch.randn(1, channels, 2, 8, 8),
        "timestep": torch.tensor([timestep]),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, text_channels),
    }


@architecture("motif_video", ts(17), dynamo(20))
def motif_video() -> Example:
    """Image tokens also attend to the text alone; the last blocks form a decoder."""
    network = MotifVideoTransformer3DModel(
        **VIDEO,
        num_layers=1,
        num_single_layers=2,
        num_decoder_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=24,
        rope_axes_dim=(4, 6, 6),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )
    inputs = video_inputs()
    return Example(network, inputs, first(*inputs))


@architecture("kandinsky6", ts(17), dynamo(20))
def kandinsky6() -> Example:
    """Video and audio streams that attend to each other."""
    network = Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=24,
        in_text_dim2=20,
        time_dim=32,
        model_dim=64,
        ff_dim=96,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
        visual_cond=False,
        in_audio_dim=6,
        out_audio_dim=6,
        model_dim_a=48,
        ff_dim_a=72,
    )
    inputs = {
        "hidden_states": torch.randn(1, 2, 8, 8, 4),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, 24),
        "pooled_projections": torch.randn(1, 20),
        "timestep": torch.tensor([300.0]),
        "audio_hidden_states": torch.randn(1, 9, 6),
    }
    call = lambda net, *values: net(**dict(zip(inputs, values)), return_dict=False)
    return Example(network, inputs, call, outputs=("output", "audio_output"))


@architecture("ace_step", dynamo(20), dynamo(23))
def ace_step() -> Example:
    """Audio patches by a strided convolution; grouped queries and sliding windows."""
    network = AceStepTransformer1DModel(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        in_channels=12,
        audio_acoustic_hidden_dim=4,
        sliding_window=4,
        encoder_hidden_size=24,
    )
    inputs = {
        "hidden_states": torch.randn(1, 16, 4),
        "timestep": torch.rand(1),
        "timestep_r": torch.rand(1),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, 24),
        "context_latents": torch.randn(1, 16, 8),
    }
    return Example(network, inputs, first(*inputs))


@architecture("stable_audio3", ts(17), dynamo(20))
def stable_audio3() -> Example:
    """Differential attention, memory tokens, and convolutions with a residual at both ends."""
    network = StableAudio3DiTModel(
        io_channels=8,
        embed_dim=64,
        depth=2,
        num_heads=4,
        cond_token_dim=24,
        global_cond_dim=20,
        local_add_cond_dim=9,
        timestep_features_dim=32,
        ff_mult=2.0,
        num_memory_tokens=3,
    )
    inputs = {
        "hidden_states": torch.randn(1, 8, 16),
        "timestep": torch.rand(1),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, 24),
        "global_hidden_states": torch.randn(1, 20),
    }
    return Example(network, inputs, first(*inputs))


@architecture("longcat_audio", ts(17), dynamo(20))
def longcat_audio() -> Example:
    """ConvNeXt blocks over the text, whose mean enters the modulation."""
    network = LongCatAudioDiTTransformer(
        dit_dim=64, dit_depth=2, dit_heads=4, dit_text_dim=24, latent_dim=8, ff_mult=2.0
    )
    inputs = {
        "hidden_states": torch.randn(1, 16, 8),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, 24),
        "encoder_attention_mask": torch.ones(1, TEXT_TOKENS, dtype=torch.bool),
        "timestep": torch.rand(1),
        "latent_cond": torch.randn(1, 16, 8),
    }
    return Example(network, inputs, first(*inputs))
