"""Video denoisers of diffusers beyond the common ones: transformers and image-to-video U-Nets."""

from __future__ import annotations

import contextlib
from unittest import mock

import torch
from diffusers import (
    AllegroTransformer3DModel,
    ConsisIDTransformer3DModel,
    CosmosTransformer3DModel,
    EasyAnimateTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    I2VGenXLUNet,
    LTX2VideoTransformer3DModel,
    SanaVideoTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanVACETransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

from .diffusers_transformers import HEADS, exact_squeeze, first
from .registry import Example, architecture, dynamo, ts

TIMESTEP = torch.tensor([3])


@contextlib.contextmanager
def logical_masked_fill():
    """Clear elements of a boolean tensor by logic: ONNX Runtime has no Where for them, TorchScript no symbol."""
    fill = torch.Tensor.masked_fill
    logical = lambda tensor, mask, value: (
        tensor & ~mask if tensor.dtype == torch.bool and value is False else fill(tensor, mask, value)
    )
    with mock.patch.object(torch.Tensor, "masked_fill", logical):
        yield


def within(context, call):
    """``call``, made in a context."""

    def patched(*values):
        with context():
            return call(*values)

    return patched


def hunyuan_example(**config) -> Example:
    network = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        **HEADS,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=24,
        pooled_projection_dim=20,
        rope_axes_dim=(4, 6, 6),
        **config,
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 2, 8, 8),
        "timestep": TIMESTEP,
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0]]),
        "pooled_projections": torch.randn(1, 20),
    }
    if network.config.guidance_embeds:
        inputs["guidance"] = torch.tensor([6000.0])
    return Example(network, inputs, within(logical_masked_fill, first(*inputs)))


@architecture("hunyuan_video", ts(17), dynamo(20))
def hunyuan_video() -> Example:
    """Double and single stream blocks after a token refiner that pools the text under its mask."""
    return hunyuan_example()


@architecture("hunyuan_video_i2v", ts(17))
def hunyuan_video_i2v() -> Example:
    """The first frame's tokens are modulated by an embedding of their own."""
    return hunyuan_example(image_condition_type="token_replace", guidance_embeds=False)


@architecture("allegro", ts(17), dynamo(20))
def allegro() -> Example:
    network = AllegroTransformer3DModel(
        num_attention_heads=3,
        attention_head_dim=24,
        num_layers=2,
        cross_attention_dim=72,
        sample_height=8,
        sample_width=8,
        sample_frames=2,
        caption_channels=24,
    )
    *frequencies, t, h, w = get_3d_rotary_pos_embed_allegro(
        embed_dim=24,
        crops_coords=((0, 0), (4, 4)),
        grid_size=(4, 4),
        temporal_size=2,
        interpolation_scale=(2.2, 2.0, 2.0),
        device=torch.device("cpu"),
    )
    positions = torch.cartesian_prod(t.long(), h.long(), w.long()).T.reshape(3, 1, -1)
    rotary = tuple(frequencies), tuple(positions)
    inputs = {
        "hidden_states": torch.randn(1, 4, 2, 8, 8),
        "encoder_hidden_states": torch.randn(1, 1, 7, 24),
        "timestep": TIMESTEP,
        "attention_mask": torch.ones(1, 2, 8, 8),
        "encoder_attention_mask": torch.ones(1, 7),
    }
    names = tuple(inputs)
    call = lambda net, *values: net(**dict(zip(names, values)), image_rotary_emb=rotary, return_dict=False)[0]
    return Example(network, inputs, within(exact_squeeze, call))


def easyanimate_example(extra: int = 0, **config) -> Example:
    """``extra`` channels of the patch embedding are for latents that are concatenated to the sample."""
    network = EasyAnimateTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4 + extra,
        out_channels=4,
        patch_size=2,
        sample_width=8,
        sample_height=8,
        num_layers=2,
        time_embed_dim=32,
        text_embed_dim=24,
        **config,
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 2, 8, 8),
        "timestep": TIMESTEP,
        "encoder_hidden_states": torch.randn(1, 7, 24),
    }
    if extra:
        inputs["inpaint_latents"] = torch.randn(1, extra, 2, 8, 8)
    return Example(network, inputs, first(*inputs))


@architecture("easyanimate", dynamo(20))
def easyanimate() -> Example:
    """Joint blocks with streams of their own for text and video."""
    return easyanimate_example(mmdit_layers=2)


@architecture("easyanimate_inpaint", dynamo(20))
def easyanimate_inpaint() -> Example:
    """The last block shares its weights between text and video; the masked video is concatenated to the sample."""
    return easyanimate_example(extra=5, mmdit_layers=1, after_norm=True, add_norm_text_encoder=True)


def wan_settings() -> dict:
    return dict(**HEADS, in_channels=4, out_channels=4, text_dim=24, freq_dim=16, ffn_dim=96, rope_max_seq_len=16)


@architecture("skyreels_v2", ts(17), dynamo(20))
def skyreels_v2() -> Example:
    network = SkyReelsV2Transformer3DModel(**wan_settings(), num_layers=2)
    inputs = {
        "hidden_states": torch.randn(1, 4, 2, 8, 8),
        "timestep": TIMESTEP.float(),
        "encoder_hidden_states": torch.randn(1, 7, 24),
    }
    return Example(network, inputs, first(*inputs))


@architecture("skyreels_v2_forcing", ts(17), dynamo(20))
def skyreels_v2_forcing() -> Example:
    """Diffusion forcing: one timestep per frame, block-causal attention and the frame rate as a condition."""
    network = SkyReelsV2Transformer3DModel(
        **wan_settings(), num_layers=2, inject_sample_info=True, num_frame_per_block=2
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 4, 8, 8),
        "timestep": torch.tensor([[3.0, 3.0, 500.0, 500.0]]),
        "encoder_hidden_states": torch.randn(1, 7, 24),
    }
    names = tuple(inputs)
    settings = dict(fps=[1], enable_diffusion_forcing=True, return_dict=False)
    call = lambda net, *values: net(**dict(zip(names, values)), **settings)[0]
    return Example(network, inputs, call)


@architecture("skyreels_v2_i2v", ts(17))
def skyreels_v2_i2v() -> Example:
    """Added keys and values for the image embeddings."""
    network = SkyReelsV2Transformer3DModel(**wan_settings(), num_layers=2, image_dim=20, added_kv_proj_dim=64)
    inputs = {
        "hidden_states": torch.randn(1, 4, 2, 8, 8),
        "timestep": TIMESTEP.float(),
        "encoder_hidden_states": torch.randn(1, 512, 24),
        "encoder_hidden_states_image": torch.randn(1, 5, 20),
    }
    return Example(network, inputs, first(*inputs))


@architecture("wan_vace", ts(17), dynamo(20))
def wan_vace() -> Example:
    """A control branch whose blocks add hints to some blocks of the main branch."""
    network = WanVACETransformer3DModel(**wan_settings(), num_layers=2, vace_layers=[0, 1], vace_in_channels=12)
    inputs = {
        "hidden_states": torch.randn(1, 4, 2, 8, 8),
        "timestep": TIMESTEP,
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "control_hidden_states": torch.randn(1, 12, 2, 8, 8),
        "control_hidden_states_scale": torch.ones(2),
    }
    return Example(network, inputs, first(*inputs))


@architecture("ltx2", dynamo(20))
def ltx2() -> Example:
    """Video and audio streams of different widths that attend to each other."""
    network = LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        **HEADS,
        cross_attention_dim=64,
        audio_in_channels=6,
        audio_out_channels=6,
        audio_num_attention_heads=4,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=32,
        num_layers=2,
        caption_channels=24,
        rope_double_precision=False,
    )
    inputs = {
        "hidden_states": torch.randn(1, 2 * 4 * 4, 8),
        "audio_hidden_states": torch.randn(1, 5, 6),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "audio_encoder_hidden_states": torch.randn(1, 7, 24),
        "timestep": TIMESTEP,
    }
    names = tuple(inputs)
    sizes = dict(num_frames=2, height=4, width=4, audio_num_frames=5)
    call = lambda net, *values: net(**dict(zip(names, values)), **sizes, return_dict=False)
    return Example(network, inputs, within(exact_squeeze, call), ("output", "audio"))


@architecture("sana_video", ts(17), dynamo(20))
def sana_video() -> Example:
    """Linear attention with rotary embeddings and a gated feed-forward that also mixes frames."""
    network = SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        **HEADS,
        num_layers=2,
        num_cross_attention_heads=4,
        cross_attention_head_dim=16,
        cross_attention_dim=64,
        caption_channels=24,
        sample_size=8,
        rope_max_seq_len=16,
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 3, 8, 8),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "timestep": TIMESTEP,
        "encoder_attention_mask": torch.ones(1, 7),
    }
    return Example(network, inputs, first(*inputs))


@architecture("consisid", ts(17), dynamo(20))
def consisid() -> Example:
    """Blocks as in CogVideoX; face features enter through perceiver attention between them."""
    network = ConsisIDTransformer3DModel(
        num_attention_heads=3,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=32,
        text_embed_dim=24,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=7,
        is_train_face=True,
        cross_attn_interval=1,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=20,
        LFE_vit_dim=24,
        LFE_depth=2,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=2,
        LFE_num_querie=4,
        LFE_output_dim=32,
        LFE_ff_mult=2,
        LFE_num_scale=2,
    )
    inputs = {
        "hidden_states": torch.randn(1, 3, 4, 8, 8),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "timestep": TIMESTEP,
        "id_cond": torch.randn(1, 20),
        "id_vit_hidden_0": torch.randn(1, 5, 24),
        "id_vit_hidden_1": torch.randn(1, 5, 24),
    }
    call = lambda net, x, c, t, face, *vit: net(x, c, t, id_cond=face, id_vit_hidden=list(vit), return_dict=False)[0]
    return Example(network, inputs, call)


def cosmos_example(**config) -> Example:
    network = CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        **HEADS,
        num_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=24,
        adaln_lora_dim=16,
        max_size=(4, 16, 16),
        **config,
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 2, 8, 8),
        "timestep": TIMESTEP,
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "padding_mask": torch.zeros(1, 1, 8, 8),
    }
    names = tuple(inputs)
    call = lambda net, *values: net(**dict(zip(names, values)), fps=24, return_dict=False)[0]
    return Example(network, inputs, call)


@architecture("cosmos", ts(17), dynamo(20))
def cosmos() -> Example:
    """Adaptive norms through a low-rank layer; a learned position embedding is added in every block."""
    return cosmos_example()


@architecture("cosmos_predict2", ts(17), dynamo(20))
def cosmos_predict2() -> Example:
    return cosmos_example(
        extra_pos_embed_type=None,
        use_crossattn_projection=True,
        crossattn_proj_in_channels=24,
        encoder_hidden_states_channels=24,
    )


@architecture("i2vgen_xl", ts(17), dynamo(20))
def i2vgen_xl() -> Example:
    """Image-to-video U-Net: image latents enter by concatenation and as context tokens."""
    network = I2VGenXLUNet(
        sample_size=32,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )
    inputs = {
        "sample": torch.randn(1, 4, 2, 32, 32),
        "timestep": TIMESTEP,
        "fps": torch.tensor([16]),
        "image_latents": torch.randn(1, 4, 2, 32, 32),
        "image_embeddings": torch.randn(1, 32),
        "encoder_hidden_states": torch.randn(1, 7, 32),
    }
    return Example(network, inputs, first(*inputs))
