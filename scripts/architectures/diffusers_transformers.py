"""Diffusion transformers of diffusers in which the condition enters by cross-attention or adaptive norm."""

from __future__ import annotations

import contextlib
from unittest import mock

import torch
from diffusers import (
    DiTTransformer2DModel,
    HunyuanDiT2DModel,
    LatteTransformer3DModel,
    PixArtTransformer2DModel,
    PriorTransformer,
    SanaTransformer2DModel,
    StableAudioDiTModel,
    StableCascadeUNet,
    T5FilmDecoder,
    UVit2DModel,
    WanTransformer3DModel,
)

from .registry import Example, architecture, batch_only, dynamo, ts

HEADS = dict(num_attention_heads=4, attention_head_dim=16)
TIMESTEPS = torch.tensor([3, 500])


def first(*names: str):
    """A call that passes its inputs under ``names`` and returns the first output."""
    return lambda net, *values: net(**dict(zip(names, values)), return_dict=False)[0]


@architecture("dit", ts(17, dynamic=True), dynamo(18), dynamo(20, dynamic=True), dynamo(23))
def dit() -> Example:
    network = DiTTransformer2DModel(**HEADS, num_layers=2, sample_size=8, num_embeds_ada_norm=10, norm_num_groups=4)
    inputs = {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": TIMESTEPS, "class_labels": torch.tensor([1, 2])}
    return Example(network, inputs, first(*inputs), dynamic=batch_only(*inputs))


@contextlib.contextmanager
def exact_squeeze():
    """Leave out a squeeze of an axis longer than one.

    PixArt squeezes its token axis, which does nothing in PyTorch; exported, ONNX Runtime refuses the model.
    """
    squeeze = torch.Tensor.squeeze
    exact = lambda tensor, dim: squeeze(tensor, dim) if tensor.shape[dim] == 1 else tensor
    with mock.patch.object(torch.Tensor, "squeeze", exact):
        yield


@architecture("pixart_alpha", ts(17, dynamic=True), dynamo(20))
def pixart_alpha() -> Example:
    network = PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=16,
        num_layers=2,
        sample_size=8,
        cross_attention_dim=48,
        caption_channels=24,
        norm_num_groups=4,
        use_additional_conditions=True,
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 7, 24),
        "timestep": TIMESTEPS,
        "resolution": torch.rand(2, 2) * 100,
        "aspect_ratio": torch.rand(2, 1),
    }

    def call(net, x, text, t, resolution, ratio):
        conditions = {"resolution": resolution, "aspect_ratio": ratio}
        with exact_squeeze():
            return net(x, text, t, added_cond_kwargs=conditions, return_dict=False)[0]

    return Example(network, inputs, call, dynamic=batch_only(*inputs))


@architecture("pixart_sigma", ts(17), dynamo(18))
def pixart_sigma() -> Example:
    network = PixArtTransformer2DModel(
        **HEADS,
        num_layers=2,
        sample_size=8,
        cross_attention_dim=64,
        caption_channels=24,
        norm_num_groups=4,
        use_additional_conditions=False,
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 7, 24),
        "timestep": TIMESTEPS,
        "encoder_attention_mask": torch.ones(2, 7),
    }

    def call(net, x, text, t, mask):
        conditions = {"resolution": None, "aspect_ratio": None}
        with exact_squeeze():
            return net(x, text, t, conditions, encoder_attention_mask=mask, return_dict=False)[0]

    return Example(network, inputs, call, dynamic=batch_only(*inputs))


@architecture("hunyuan_dit", ts(17), dynamo(20))
def hunyuan_dit() -> Example:
    """Rotary attention with normed queries and keys, long skip connections between transformer blocks."""
    network = HunyuanDiT2DModel(
        **HEADS,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=64,
        num_layers=4,
        cross_attention_dim=24,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        text_len=5,
        text_len_t5=6,
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": TIMESTEPS.float(),
        "encoder_hidden_states": torch.randn(2, 5, 24),
        "text_embedding_mask": torch.ones(2, 5),
        "encoder_hidden_states_t5": torch.randn(2, 6, 32),
        "text_embedding_mask_t5": torch.ones(2, 6),
        "image_meta_size": torch.rand(2, 6) * 100,
        "style": torch.tensor([0, 0]),
    }
    angle = torch.rand(16, 16)
    rotary = (torch.cos(angle), torch.sin(angle))
    names = tuple(inputs)
    call = lambda net, *values: net(**dict(zip(names, values)), image_rotary_emb=rotary, return_dict=False)[0]
    return Example(network, inputs, call, dynamic=batch_only(*inputs))


@architecture("sana", ts(17, dynamic=True), dynamo(20), dynamo(23))
def sana() -> Example:
    """Linear attention and a gated depthwise convolution as the feed-forward."""
    network = SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        **HEADS,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=32,
        cross_attention_dim=64,
        caption_channels=24,
        sample_size=8,
    )
    inputs = {
        "hidden_states": torch.randn(2, 8, 8, 8),
        "encoder_hidden_states": torch.randn(2, 7, 24),
        "timestep": TIMESTEPS,
    }
    return Example(network, inputs, first(*inputs), dynamic=batch_only(*inputs))


@architecture("sana_sprint", ts(17))
def sana_sprint() -> Example:
    network = SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        **HEADS,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=32,
        cross_attention_dim=64,
        caption_channels=24,
        sample_size=8,
        guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
    )
    inputs = {
        "hidden_states": torch.randn(2, 8, 8, 8),
        "encoder_hidden_states": torch.randn(2, 7, 24),
        "timestep": torch.rand(2),
        "guidance": torch.rand(2),
    }
    return Example(network, inputs, first(*inputs), dynamic=batch_only(*inputs))


@architecture("prior_transformer", ts(17), dynamo(20))
def prior_transformer() -> Example:
    network = PriorTransformer(**HEADS, num_layers=2, embedding_dim=24, num_embeddings=7)
    inputs = {
        "hidden_states": torch.randn(2, 24),
        "timestep": TIMESTEPS,
        "proj_embedding": torch.randn(2, 24),
        "encoder_hidden_states": torch.randn(2, 7, 24),
        "attention_mask": torch.ones(2, 7, dtype=torch.bool),
    }
    return Example(network, inputs, first(*inputs), outputs=("predicted_image_embedding",), dynamic=batch_only(*inputs))


@architecture("latte", ts(17), dynamo(20))
def latte() -> Example:
    network = LatteTransformer3DModel(
        **HEADS,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=64,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        caption_channels=24,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        video_length=3,
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 3, 8, 8),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(1, 7, 24),
    }
    return Example(network, inputs, first(*inputs))


@architecture("wan_video", ts(17), dynamo(20))
def wan_video() -> Example:
    network = WanTransformer3DModel(
        **HEADS, in_channels=4, out_channels=4, text_dim=24, freq_dim=32, ffn_dim=96, num_layers=2, rope_max_seq_len=32
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 3, 8, 8),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(1, 7, 24),
    }
    return Example(network, inputs, first(*inputs))


@architecture("stable_audio", ts(17, dynamic=True), dynamo(20))
def stable_audio() -> Example:
    """Grouped-query cross-attention, partial rotary embedding, swish-gated feed-forward over a sequence."""
    network = StableAudioDiTModel(
        sample_size=32,
        in_channels=8,
        num_layers=2,
        **HEADS,
        num_key_value_attention_heads=2,
        out_channels=8,
        cross_attention_dim=24,
        time_proj_dim=16,
        global_states_input_dim=20,
        cross_attention_input_dim=24,
    )
    angle = torch.rand(33, 8)
    rotary = (torch.cos(angle), torch.sin(angle))
    inputs = {
        "hidden_states": torch.randn(2, 8, 32),
        "timestep": torch.rand(2),
        "encoder_hidden_states": torch.randn(2, 7, 24),
        "global_hidden_states": torch.randn(2, 1, 20),
    }
    call = lambda net, *values: net(*values, rotary_embedding=rotary, return_dict=False)[0]
    return Example(network, inputs, call, dynamic=batch_only(*inputs))


@architecture("t5_film", ts(17), dynamo(20))
def t5_film() -> Example:
    """Spectrogram diffusion: T5 decoder layers modulated by FiLM."""
    network = T5FilmDecoder(input_dims=16, targets_length=12, d_model=64, num_layers=2, num_heads=4, d_kv=16, d_ff=96)
    inputs = {
        "encoding": torch.randn(2, 9, 64),
        "encoding_mask": torch.ones(2, 9),
        "decoder_input_tokens": torch.randn(2, 12, 16),
        "noise_time": torch.rand(2),
    }
    return Example(network, inputs, lambda net, code, mask, x, t: net([(code, mask)], x, t))


@architecture("uvit", ts(17), dynamo(20))
def uvit() -> Example:
    """aMUSEd: a token U-ViT with RMS norm, global response norm and adaptive layer norm; no bias anywhere."""
    network = UVit2DModel(
        hidden_size=64,
        cond_embed_dim=24,
        micro_cond_encode_dim=8,
        micro_cond_embed_dim=40,
        encoder_hidden_size=24,
        vocab_size=40,
        codebook_size=32,
        in_channels=48,
        block_out_channels=48,
        num_res_blocks=1,
        block_num_heads=4,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        sample_size=8,
    )
    inputs = {
        "input_ids": torch.randint(0, 32, (2, 8, 8)),
        "encoder_hidden_states": torch.randn(2, 7, 24),
        "pooled_text_emb": torch.randn(2, 24),
        "micro_conds": torch.rand(2, 5) * 100,
    }
    return Example(network, inputs, outputs=("logits",), dynamic=batch_only(*inputs))


def cascade(blocks, **config) -> Example:
    network = StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        timestep_ratio_embedding_dim=16,
        conditioning_dim=64,
        block_out_channels=(32, 64),
        num_attention_heads=(2, 4),
        down_num_layers_per_block=(1, 2),
        up_num_layers_per_block=(2, 1),
        block_types_per_layer=blocks,
        clip_text_pooled_in_channels=24,
        dropout=(0.1, 0.1),
        **config,
    )
    inputs = {
        "sample": torch.randn(2, 4, 16, 16),
        "timestep_ratio": torch.rand(2),
        "clip_text_pooled": torch.randn(2, 1, 24),
    }
    return Example(network, inputs, dynamic=batch_only(*inputs))


ATTENTION_BLOCKS = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")


@architecture("stable_cascade_prior", ts(17), dynamo(20))
def stable_cascade_prior() -> Example:
    example = cascade(
        (ATTENTION_BLOCKS, ATTENTION_BLOCKS), clip_text_in_channels=20, clip_image_in_channels=16, switch_level=(False,)
    )
    example.inputs |= {"clip_text": torch.randn(2, 5, 20), "clip_img": torch.randn(2, 1, 16)}
    example.call = lambda net, x, t, pooled, text, image: net(x, t, pooled, text, image, return_dict=False)[0]
    return example


@architecture("stable_cascade_decoder", ts(17))
def stable_cascade_decoder() -> Example:
    example = cascade(
        (ATTENTION_BLOCKS[:2], ATTENTION_BLOCKS),
        effnet_in_channels=8,
        pixel_mapper_in_channels=3,
        patch_size=2,
        timestep_conditioning_type=("sca",),
    )
    example.inputs["effnet"] = torch.randn(2, 8, 4, 4)
    example.call = lambda net, x, t, pooled, effnet: net(x, t, pooled, effnet=effnet, return_dict=False)[0]
    return example
