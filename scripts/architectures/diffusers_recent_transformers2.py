"""Further recent diffusion transformers of diffusers: grouped queries, refiners, experts, video."""

from __future__ import annotations

from unittest import mock

import torch
from diffusers import (
    ErnieImageTransformer2DModel,
    Flux3Transformer2DModel,
    HiDreamImageTransformer2DModel,
    Krea2Transformer2DModel,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    NucleusMoEImageTransformer2DModel,
    ZImageTransformer2DModel,
)
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from diffusers.models.transformers import transformer_z_image
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU
from torch import nn

from .diffusers_recent_transformers import TEXT_TOKENS, TOKENS, Constants, real_rotations, token_inputs
from .diffusers_transformers import HEADS, TIMESTEPS, first
from .registry import Example, architecture, dynamo, ts


@architecture("flux3", ts(17), dynamo(20))
def flux3() -> Example:
    """Every stream has blocks of its own before the joint ones; modulations differ from token to token."""
    network = Flux3Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        **HEADS,
        joint_attention_dim=24,
        timestep_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )
    inputs = token_inputs(16, axes=4)
    return Example(network, inputs, first(*inputs))


@architecture("krea2", ts(17), dynamo(20), dynamo(23))
def krea2() -> Example:
    """Grouped queries and gated attention; a projection mixes the layers of the text encoder."""
    network = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        **HEADS,
        num_key_value_heads=2,
        intermediate_size=96,
        timestep_embed_dim=32,
        text_hidden_dim=24,
        num_text_layers=3,
        text_num_attention_heads=4,
        text_num_key_value_heads=2,
        text_intermediate_size=40,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    inputs = {
        "hidden_states": torch.randn(1, TOKENS, 16),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, 3, 24),
        "timestep": torch.rand(1),
        "position_ids": torch.randint(0, 4, (TEXT_TOKENS + TOKENS, 3)),
    }
    return Example(network, inputs, first(*inputs))


@architecture("ernie_image", ts(17), dynamo(20))
def ernie_image() -> Example:
    """The batch is the second axis within the blocks."""
    network = ErnieImageTransformer2DModel(
        hidden_size=64,
        num_attention_heads=4,
        num_layers=2,
        ffn_hidden_size=96,
        in_channels=16,
        out_channels=16,
        text_in_dim=24,
        rope_axes_dim=(4, 6, 6),
    )
    inputs = {
        "hidden_states": torch.randn(2, 16, 4, 4),
        "timestep": TIMESTEPS,
        "text_bth": torch.randn(2, TEXT_TOKENS, 24),
        "text_lens": torch.tensor([TEXT_TOKENS, TEXT_TOKENS - 2]),
    }
    return Example(network, inputs, first(*inputs))


class PatchesWithRotations(nn.Module):
    """Stands for the rotary embedding of Lumina 2, which reads lengths from the mask, where all of the text counts."""

    def __init__(self, embed: nn.Module, batch: int, channels: int, size: int):
        super().__init__()
        self.patch = embed.patch_size
        mask = torch.ones(batch, TEXT_TOKENS, dtype=torch.bool)
        _, text, image, joint, self.text_lengths, self.lengths = embed(torch.zeros(batch, channels, size, size), mask)
        self.rotations = Constants(*map(torch.view_as_real, (text, image, joint)))

    def forward(self, x: torch.Tensor, mask: torch.Tensor):
        batch, channels, height, width = x.shape
        patch = self.patch
        x = x.view(batch, channels, height // patch, patch, width // patch, patch)
        x = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return x, *self.rotations(), self.text_lengths, self.lengths


@architecture("lumina2", ts(17), dynamo(20))
def lumina2() -> Example:
    """Text and image tokens go through refiners of their own and are then written into one sequence."""
    network = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=64,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=8,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(16, 8, 8),
        cap_feat_dim=24,
    )
    network.rope_embedder = PatchesWithRotations(network.rope_embedder, 2, 4, 8)
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.rand(2),
        "encoder_hidden_states": torch.randn(2, TEXT_TOKENS, 24),
    }

    def call(net, x, t, text):
        mask = torch.ones(2, TEXT_TOKENS, dtype=torch.bool)
        with real_rotations():
            return net(x, t, text, mask, return_dict=False)[0]

    return Example(network, inputs, call)


@architecture("lumina_next", ts(17), dynamo(20))
def lumina_next() -> Example:
    """Attention to the image and attention to the text share the queries; a gate per head adds the latter."""
    network = LuminaNextDiT2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=64,
        num_layers=2,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=8,
        cross_attention_dim=24,
    )
    with torch.no_grad():
        network.pad_token.normal_()
    factors = torch.view_as_real(get_2d_rotary_pos_embed_lumina(16, 4, 4)).clone()
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.rand(2),
        "encoder_hidden_states": torch.randn(2, TEXT_TOKENS, 24),
        "encoder_mask": torch.ones(2, TEXT_TOKENS, dtype=torch.bool),
    }

    def call(net, x, t, text, mask):
        with real_rotations():
            return net(x, t, text, mask, factors, {}, return_dict=False)[0]

    return Example(network, inputs, call)


@architecture("z_image", ts(17), dynamo(20))
def z_image() -> Example:
    network = ZImageTransformer2DModel(
        in_channels=4,
        dim=64,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=24,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 8, 8],
    )
    with torch.no_grad():
        network.x_pad_token.normal_()
        network.cap_pad_token.normal_()
    stack = lambda sequences, **_: torch.stack(sequences)
    rope = network.rope_embedder
    tables = rope.precompute_freqs_cis(rope.axes_dims, rope.axes_lens, theta=rope.theta)
    tables = [torch.view_as_real(table).clone() for table in tables]
    network.rope_embedder = lambda ids: torch.cat([table[ids[:, i]] for i, table in enumerate(tables)], dim=1)
    inputs = {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "timestep": torch.rand(1),
        "encoder_hidden_states": torch.randn(TEXT_TOKENS, 24),
    }

    def call(net, x, t, text):
        with real_rotations(), mock.patch.object(transformer_z_image, "pad_sequence", stack):
            return net([x[0, :, None]], t, [text], return_dict=False)[0][0][None, :, 0]

    return Example(network, inputs, call)


def every_expert(layer: nn.Module, tokens: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Send every token through all experts, weighted by zero where they were not chosen."""
    chosen, weights = (tensor.view(len(tokens), -1) for tensor in (chosen, weights))
    shares = ((weights * (chosen == index)).sum(-1, keepdim=True) for index in range(len(layer.experts)))
    return sum(share * expert(tokens) for share, expert in zip(shares, layer.experts))


@architecture("hidream_image", ts(17), dynamo(20))
def hidream_image() -> Example:
    """Mixtures of experts; each block gets tokens of a layer of the language model."""
    network = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        **HEADS,
        caption_channels=[24, 20],
        text_emb_dim=28,
        num_routed_experts=3,
        num_activated_experts=2,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "timesteps": torch.tensor([3]),
        "encoder_hidden_states_t5": torch.randn(1, TEXT_TOKENS, 24),
        "encoder_hidden_states_llama3": torch.randn(2, 1, TEXT_TOKENS, 20),
        "pooled_embeds": torch.randn(1, 28),
    }
    coordinates = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)).double()[None]

    def call(net, *values):
        sizes = {"img_ids": coordinates, "img_sizes": [(4, 4)], "hidden_states_masks": torch.ones(1, TOKENS)}
        arguments = dict(zip(inputs, values)) | {"hidden_states": net.patchify(values[0])[0]}
        with mock.patch.object(MOEFeedForwardSwiGLU, "moe_infer", every_expert):
            return net(**arguments, **sizes, return_dict=False)[0]

    return Example(network, inputs, call)


@architecture("nucleus_moe", ts(17), dynamo(20))
def nucleus_moe() -> Example:
    """Experts choose their tokens; their weights are stacked along a leading axis."""
    network = NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        **HEADS,
        num_key_value_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
        dense_moe_strategy="leave_first_block_dense",
        num_experts=4,
        moe_intermediate_dim=32,
        capacity_factors=2.0,
    )
    shapes = [(1, 4, 4)]
    factors = network.pos_embed(shapes, max_txt_seq_len=TEXT_TOKENS, device=torch.device("cpu"))
    network.pos_embed = Constants(*map(torch.view_as_real, factors))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".experts." in name:
                parameter.normal_(std=0.1)
    inputs = {
        "hidden_states": torch.randn(1, TOKENS, 16),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, 24),
        "timestep": torch.rand(1),
    }

    def call(net, x, text, t):
        with real_rotations():
            return net(x, shapes, text, timestep=t, return_dict=False)[0]

    return Example(network, inputs, call)
