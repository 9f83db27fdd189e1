"""Diffusion transformers of diffusers from late 2024 on in which text and image tokens attend jointly."""

from __future__ import annotations

import contextlib
from unittest import mock

import torch
from diffusers import (
    BriaFiboTransformer2DModel,
    BriaTransformer2DModel,
    Flux2Transformer2DModel,
    GlmImageTransformer2DModel,
    HunyuanImageTransformer2DModel,
    Ideogram4Transformer2DModel,
    JoyImageEditTransformer3DModel,
    Kandinsky5Transformer3DModel,
    LongCatImageTransformer2DModel,
    OmniGenTransformer2DModel,
    OvisImageTransformer2DModel,
    PRXTransformer2DModel,
    QwenImageTransformer2DModel,
)
from torch import nn

from .diffusers_transformers import HEADS, TIMESTEPS, first
from .registry import Example, architecture, batch_only, dynamo, ts

TOKENS = 16
TEXT_TOKENS = 7


class Pairs:
    """Complex numbers whose real and imaginary part are the last axis of a tensor of reals."""

    def __init__(self, parts: torch.Tensor):
        self.parts = parts

    def __mul__(self, factors: torch.Tensor) -> Pairs:
        (a, b), (c, d) = self.parts.unbind(-1), factors.unbind(-1)
        return Pairs(torch.stack((a * c - b * d, a * d + b * c), dim=-1))


@contextlib.contextmanager
def real_rotations():
    """Rotate queries and keys without complex numbers, which ONNX lacks.

    The factors are tensors of reals with a last axis of two, as ``torch.view_as_real`` returns them.
    """
    with mock.patch.object(torch, "view_as_complex", Pairs):
        with mock.patch.object(torch, "view_as_real", lambda pairs: pairs.parts):
            yield


class Constants(nn.Module):
    """Returns the same tensors whatever it gets."""

    def __init__(self, *tensors: torch.Tensor):
        super().__init__()
        for index, tensor in enumerate(tensors):
            self.register_buffer(str(index), tensor)

    def forward(self, *_, **__) -> tuple[torch.Tensor, ...]:
        return tuple(self.buffers())


def token_inputs(channels: int, text_channels: int = 24, axes: int = 3) -> dict[str, torch.Tensor]:
    """A sequence of image tokens and one of text tokens, with the coordinates of each."""
    return {
        "hidden_states": torch.randn(1, TOKENS, channels),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, text_channels),
        "timestep": torch.rand(1),
        "img_ids": torch.randint(0, 4, (TOKENS, axes)).float(),
        "txt_ids": torch.zeros(TEXT_TOKENS, axes),
    }


@architecture("flux2", ts(17), dynamo(20))
def flux2() -> Example:
    """Modulations shared by all blocks; parallel blocks with one projection in and one out."""
    network = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        **HEADS,
        joint_attention_dim=24,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )
    inputs = token_inputs(16, axes=4) | {"guidance": torch.rand(1)}
    return Example(network, inputs, first(*inputs))


@architecture("bria", ts(17), dynamo(23))
def bria() -> Example:
    return flux_like(BriaTransformer2DModel)


@architecture("ovis_image", ts(17), dynamo(20))
def ovis_image() -> Example:
    """Gated feed-forward parts and a norm over the text."""
    return flux_like(OvisImageTransformer2DModel, out_channels=16)


@architecture("longcat_image", ts(17), dynamo(20))
def longcat_image() -> Example:
    return flux_like(LongCatImageTransformer2DModel)


def flux_like(kind, **config) -> Example:
    network = kind(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        **HEADS,
        joint_attention_dim=24,
        axes_dims_rope=[4, 6, 6],
        **config,
    )
    inputs = token_inputs(16)
    return Example(network, inputs, first(*inputs))


@architecture("bria_fibo", ts(17), dynamo(20))
def bria_fibo() -> Example:
    """Each block gets half of its text channels from a layer of the text encoder."""
    network = BriaFiboTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        **HEADS,
        joint_attention_dim=24,
        axes_dims_rope=[4, 6, 6],
        text_encoder_dim=20,
    )
    inputs = token_inputs(16) | {"text_encoder_layers": torch.randn(3, 1, TEXT_TOKENS, 20)}

    def call(net, x, text, t, img_ids, txt_ids, layers):
        return net(x, text, layers.unbind(0), None, t, img_ids, txt_ids, return_dict=False)[0]

    return Example(network, inputs, call)


@architecture("qwen_image", ts(17), dynamo(20))
def qwen_image() -> Example:
    network = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        **HEADS,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
    )
    shapes = [[(1, 4, 4)]]
    factors = network.pos_embed(shapes, max_txt_seq_len=TEXT_TOKENS, device=torch.device("cpu"))
    network.pos_embed = Constants(*map(torch.view_as_real, factors))
    inputs = {
        "hidden_states": torch.randn(1, TOKENS, 16),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, 24),
        "timestep": torch.rand(1),
    }

    def call(net, x, text, t):
        with real_rotations():
            return net(x, text, timestep=t, img_shapes=shapes, return_dict=False)[0]

    return Example(network, inputs, call)


@architecture("prx", ts(17, dynamic=True), dynamo(20, dynamic=True))
def prx() -> Example:
    """Image tokens attend to themselves and to the text; a block has one modulation for attention and gated MLP."""
    network = PRXTransformer2DModel(
        in_channels=4, context_in_dim=24, hidden_size=64, mlp_ratio=2.0, num_heads=4, depth=2, axes_dim=[8, 8]
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.rand(2),
        "encoder_hidden_states": torch.randn(2, TEXT_TOKENS, 24),
    }
    return Example(network, inputs, first(*inputs), dynamic=batch_only(*inputs))


@architecture("glm_image", dynamo(20))
def glm_image() -> Example:
    """Tokens of an autoregressive model, embedded, are added to the image tokens."""
    network = GlmImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        **HEADS,
        text_embed_dim=24,
        time_embed_dim=32,
        condition_dim=16,
        prior_vq_quantizer_codebook_size=11,
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, TEXT_TOKENS, 24),
        "prior_token_id": torch.randint(0, 11, (2, TOKENS)),
        "prior_token_drop": torch.zeros(2, TOKENS, dtype=torch.bool),
        "timestep": TIMESTEPS,
        "target_size": torch.rand(2, 2) * 100,
        "crop_coords": torch.zeros(2, 2),
    }
    return Example(network, inputs, first(*inputs), dynamic=batch_only(*inputs))


@architecture("hunyuan_image", ts(17), dynamo(20))
def hunyuan_image() -> Example:
    """Text goes through a refiner of its own that attends under a mask."""
    network = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        **HEADS,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(2, 2),
        text_embed_dim=24,
        rope_axes_dim=(8, 8),
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([3.0]),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, 24),
        "encoder_attention_mask": torch.ones(1, TEXT_TOKENS, dtype=torch.bool),
    }
    return Example(network, inputs, first(*inputs))


@architecture("kandinsky5", ts(17), dynamo(20))
def kandinsky5() -> Example:
    """Rotations as matrices; channels come last in the latents."""
    network = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=24,
        in_text_dim2=20,
        time_dim=32,
        model_dim=64,
        ff_dim=128,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
    )
    inputs = {
        "hidden_states": torch.randn(1, 2, 8, 8, 4),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, 24),
        "timestep": torch.tensor([300.0]),
        "pooled_projections": torch.randn(1, 20),
    }

    def call(net, *values):
        positions = [torch.arange(2), torch.arange(4), torch.arange(4)]
        return net(*values, positions, torch.arange(TEXT_TOKENS), return_dict=False)

    return Example(network, inputs, call)


@architecture("omnigen", ts(17))
def omnigen() -> Example:
    """A language model: text tokens, a time token and image tokens in one sequence."""
    network = OmniGenTransformer2DModel(
        in_channels=4,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=96,
        num_layers=2,
        pad_token_id=0,
        vocab_size=31,
        max_position_embeddings=64,
        original_max_position_embeddings=32,
        rope_scaling={"short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
        pos_embed_max_size=8,
        time_step_dim=32,
    )
    length = TEXT_TOKENS + 1 + TOKENS
    inputs = {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "timestep": torch.rand(1),
        "input_ids": torch.randint(1, 31, (1, TEXT_TOKENS)),
        "attention_mask": torch.ones(1, length, length),
    }

    def call(net, x, t, ids, mask):
        positions = torch.arange(length)[None]
        return net(x, t, ids, [], {}, mask, positions, return_dict=False)[0]

    return Example(network, inputs, call)


@architecture("ideogram4", dynamo(20))
def ideogram4() -> Example:
    """Text and image share one sequence; an indicator says which token is which."""
    network = Ideogram4Transformer2DModel(
        in_channels=16,
        num_layers=2,
        **HEADS,
        intermediate_size=96,
        adaln_dim=24,
        llm_features_dim=20,
        mrope_section=(4, 2, 2),
    )
    length = TEXT_TOKENS + TOKENS
    inputs = {
        "hidden_states": torch.randn(1, length, 16),
        "timestep": torch.rand(1),
        "encoder_hidden_states": torch.randn(1, length, 20),
        "position_ids": torch.randint(0, 4, (1, length, 3)),
        "segment_ids": torch.zeros(1, length, dtype=torch.long),
        "indicator": torch.tensor([[3] * TEXT_TOKENS + [2] * TOKENS]),
    }
    return Example(network, inputs, first(*inputs))


@architecture("joyimage", ts(17), dynamo(20))
def joyimage() -> Example:
    network = JoyImageEditTransformer3DModel(
        in_channels=4,
        hidden_size=64,
        num_attention_heads=4,
        text_dim=24,
        mlp_width_ratio=2.0,
        num_layers=2,
        rope_dim_list=[4, 6, 6],
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 2, 8, 8),
        "timestep": torch.tensor([300.0]),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, 24),
    }
    return Example(network, inputs, first(*inputs))
