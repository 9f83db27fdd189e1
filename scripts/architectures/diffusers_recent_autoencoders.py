"""Autoencoders of video and of recent image models, and U-Nets of diffusers with blocks of their own."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLAllegro,
    AutoencoderKLCogVideoX,
    AutoencoderKLCosmos,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMagvit,
    AutoencoderKLMochi,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    AutoencoderRAE,
    AutoencoderVidTok,
    ConsistencyDecoderVAE,
    Kandinsky3UNet,
)
from diffusers.models.unets.unet_dreamlite import DreamLiteUNetModel

from .diffusers_transformers import first
from .registry import Example, architecture, batch_only, dynamo, image_axes, ts


def decoder_of(network, *shape: int) -> Example:
    """The decoder of ``network``, as pipelines call it."""
    call = lambda net, z: net.decode(z, return_dict=False)[0]
    return Example(network, {"latent": torch.randn(shape)}, call, ("sample",), batch_only("latent"))


def encoder_of(network, *shape: int) -> Example:
    call = lambda net, x: net.encode(x, return_dict=False)[0].mode()
    return Example(network, {"sample": torch.randn(shape)}, call, ("latent",), batch_only("sample"))


def wan_autoencoder(kind=AutoencoderKLWan, **config):
    statistics = dict(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    return kind(
        base_dim=16,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        **statistics,
        **config,
    )


@architecture("wan_decoder", dynamo(20))
def wan_decoder() -> Example:
    """Causal convolutions; the frames are decoded one after the other from a cache of the last two."""
    return decoder_of(wan_autoencoder(), 1, 4, 3, 8, 8)


@architecture("wan_encoder", ts(17), dynamo(20))
def wan_encoder() -> Example:
    return encoder_of(wan_autoencoder(), 1, 3, 5, 16, 16)


@architecture("wan22_decoder", dynamo(20))
def wan22_decoder() -> Example:
    """Shortcuts around a whole level that repeat channels, and patches of the image as channels."""
    network = wan_autoencoder(
        is_residual=True, decoder_base_dim=24, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=8
    )
    return decoder_of(network, 1, 4, 2, 4, 4)


@architecture("wan22_encoder", ts(17), dynamo(20))
def wan22_encoder() -> Example:
    """Shortcuts around a whole level that average groups of channels."""
    network = wan_autoencoder(
        is_residual=True, decoder_base_dim=24, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=8
    )
    return encoder_of(network, 1, 3, 5, 16, 16)


@architecture("qwen_image_decoder", dynamo(20))
def qwen_image_decoder() -> Example:
    return decoder_of(wan_autoencoder(AutoencoderKLQwenImage), 1, 4, 1, 8, 8)


def ltx_autoencoder(**config) -> AutoencoderKLLTXVideo:
    defaults = dict(
        latent_channels=8,
        block_out_channels=(16, 32),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(16, 32),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False,) * 3,
        downsample_type=("conv", "conv"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=2,
    )
    return AutoencoderKLLTXVideo(**{**defaults, **config})


@architecture("ltx_decoder", dynamo(20))
def ltx_decoder() -> Example:
    return decoder_of(ltx_autoencoder(), 1, 8, 2, 4, 4)


@architecture("ltx_encoder", dynamo(20))
def ltx_encoder() -> Example:
    return encoder_of(ltx_autoencoder(), 1, 3, 5, 16, 16)


@architecture("ltx_decoder_timestep", dynamo(20))
def ltx_decoder_timestep() -> Example:
    """The last denoising step in the decoder: norms modulated by the timestep, residual pixel-shuffle upsampling."""
    network = ltx_autoencoder(
        spatio_temporal_scaling=(False, True),
        decoder_spatio_temporal_scaling=(False, True),
        upsample_residual=(False, True),
        upsample_factor=(1, 2),
        timestep_conditioning=True,
    )
    inputs = {"latent": torch.randn(1, 8, 2, 4, 4), "temb": torch.tensor([0.05])}
    call = lambda net, z, t: net.decode(z, t, return_dict=False)[0]
    return Example(network, inputs, call, ("sample",))


def cogvideox_autoencoder() -> AutoencoderKLCogVideoX:
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(16, 32),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        temporal_compression_ratio=2,
        sample_height=16,
        sample_width=16,
    )


@architecture("cogvideox_decoder", ts(17), dynamo(20))
def cogvideox_decoder() -> Example:
    """Norms scaled and shifted by the latent, resized to every level."""
    return decoder_of(cogvideox_autoencoder(), 1, 4, 3, 4, 4)


@architecture("cogvideox_encoder", ts(17), dynamo(20))
def cogvideox_encoder() -> Example:
    return encoder_of(cogvideox_autoencoder(), 1, 3, 5, 16, 16)


def hunyuan_autoencoder() -> AutoencoderKLHunyuanVideo:
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        norm_num_groups=4,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )


@architecture("hunyuan_video_decoder", ts(17), dynamo(20))
def hunyuan_video_decoder() -> Example:
    """Upsampling that leaves the first frame's time alone, and attention under a frame-causal mask."""
    return decoder_of(hunyuan_autoencoder(), 1, 4, 2, 4, 4)


@architecture("flux2_decoder", ts(17, dynamic=True), dynamo(20))
def flux2_decoder() -> Example:
    network = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        decoder_block_out_channels=(24, 48),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
    )
    example = decoder_of(network, 1, 8, 8, 8)
    example.dynamic = image_axes("latent")
    return example


def cosmos_autoencoder() -> AutoencoderKLCosmos:
    return AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(16, 32, 32),
        decode_block_out_channels=(16, 32, 32),
        attention_resolutions=(8,),
        resolution=32,
        num_layers=1,
        patch_size=2,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


@architecture("cosmos_decoder", dynamo(20))
def cosmos_decoder() -> Example:
    """Norms over single frames and all channels, causal attention over time, inverse Haar wavelets at the end."""
    return decoder_of(cosmos_autoencoder(), 1, 4, 2, 4, 4)


@architecture("cosmos_encoder", ts(17), dynamo(20))
def cosmos_encoder() -> Example:
    return encoder_of(cosmos_autoencoder(), 1, 3, 5, 16, 16)


@architecture("allegro_decoder", ts(17), dynamo(20))
def allegro_decoder() -> Example:
    """The decoder of one tile; diffusers offers it only in tiles, blended outside."""
    network = AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 3,
        up_block_types=("AllegroUpBlock3D",) * 3,
        block_out_channels=(16, 32, 32),
        temporal_downsample_blocks=(True, False, False),
        temporal_upsample_blocks=(False, True, False),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
    )

    def call(net, z):
        frames = net.post_quant_conv(z.transpose(1, 2).flatten(0, 1))
        return net.decoder(frames.unflatten(0, (1, -1)).transpose(1, 2))

    return Example(network, {"latent": torch.randn(1, 4, 2, 4, 4)}, call, ("sample",))


@architecture("magvit_decoder", ts(17), dynamo(20))
def magvit_decoder() -> Example:
    """EasyAnimate's decoder: norms over single frames, the first frame decoded alone."""
    network = AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=[16, 32, 32],
        down_block_types=["SpatialDownBlock3D", "SpatialTemporalDownBlock3D", "SpatialTemporalDownBlock3D"],
        up_block_types=["SpatialUpBlock3D", "SpatialTemporalUpBlock3D", "SpatialTemporalUpBlock3D"],
        layers_per_block=1,
        norm_num_groups=4,
    )
    return decoder_of(network, 1, 4, 2, 4, 4)


def mochi_autoencoder() -> AutoencoderKLMochi:
    return AutoencoderKLMochi(
        encoder_block_out_channels=(32, 64, 64),
        decoder_block_out_channels=(32, 64, 64),
        latent_channels=4,
        layers_per_block=(1, 1, 1, 1),
        temporal_expansions=(1, 2),
        spatial_expansions=(2, 2),
        add_attention_block=(False, True, True, True),
        latents_mean=(0.0,) * 4,
        latents_std=(1.0,) * 4,
    )


@architecture("mochi_decoder", dynamo(20))
def mochi_decoder() -> Example:
    """Upsampling by a linear layer whose features are unfolded in time and space."""
    return decoder_of(mochi_autoencoder(), 1, 4, 2, 4, 4)


@architecture("mochi_encoder", dynamo(20))
def mochi_encoder() -> Example:
    """Fourier features of the image; causal attention over time."""
    return encoder_of(mochi_autoencoder(), 1, 3, 4, 16, 16)


@architecture("consistency_decoder", ts(17, dynamic=True), dynamo(20))
def consistency_decoder() -> Example:
    """The denoiser of the consistency decoder: learned timestep embedding, down- and upsampling in ResNet blocks."""
    levels = 2
    network = ConsistencyDecoderVAE(
        encoder_block_out_channels=(16, 32),
        encoder_down_block_types=("DownEncoderBlock2D",) * levels,
        encoder_layers_per_block=1,
        encoder_norm_num_groups=4,
        decoder_block_out_channels=(32, 64),
        decoder_down_block_types=("ResnetDownsampleBlock2D",) * levels,
        decoder_up_block_types=("ResnetUpsampleBlock2D",) * levels,
        decoder_layers_per_block=1,
        decoder_norm_num_groups=8,
    ).decoder_unet
    inputs = {"sample": torch.randn(1, 7, 16, 16), "timestep": torch.tensor([3])}
    return Example(network, inputs, first(*inputs), dynamic=image_axes("sample", "timestep"))


def vidtok(**config) -> AutoencoderVidTok:
    return AutoencoderVidTok(ch=16, ch_mult=[1, 2, 2], z_channels=4, num_res_blocks=1, **config)


@architecture("vidtok_decoder", ts(17), dynamo(20))
def vidtok_decoder() -> Example:
    """Layer norms, separate convolutions in space and time, upsampling mixed by a learned factor."""
    network = vidtok(is_causal=False)
    call = lambda net, z: net.decode(z)
    return Example(network, {"latent": torch.randn(1, 4, 4, 4, 4)}, call, ("sample",))


@architecture("vidtok_causal_decoder", ts(17), dynamo(20))
def vidtok_causal_decoder() -> Example:
    network = vidtok(is_causal=True)
    call = lambda net, z: net.decode(z)
    return Example(network, {"latent": torch.randn(1, 4, 2, 4, 4)}, call, ("sample",))


def rae() -> AutoencoderRAE:
    return AutoencoderRAE(
        encoder_hidden_size=128,
        encoder_patch_size=8,
        encoder_num_hidden_layers=2,
        decoder_hidden_size=64,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=96,
        patch_size=8,
        encoder_input_size=32,
    )


@architecture("rae_decoder", ts(17), dynamo(20))
def rae_decoder() -> Example:
    """A vision transformer that decodes the features of a frozen encoder."""
    return decoder_of(rae(), 1, 128, 4, 4)


@architecture("rae_encoder", dynamo(20))
def rae_encoder() -> Example:
    """A DINOv2 encoder with register tokens, a final norm without weights."""
    call = lambda net, x: net.encode(x, return_dict=False)[0]
    return Example(rae(), {"sample": torch.rand(1, 3, 32, 32)}, call, ("latent",))


@architecture("kandinsky3", ts(17), dynamo(20))
def kandinsky3() -> Example:
    """Norms modulated by the time embedding, which attends to the text through a pooled query."""
    network = Kandinsky3UNet(
        time_embedding_dim=32,
        groups=4,
        attention_head_dim=16,
        layers_per_block=2,
        block_out_channels=(32, 32, 64, 64),
        cross_attention_dim=64,
        encoder_hid_dim=24,
    )
    inputs = {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "encoder_attention_mask": torch.ones(1, 7),
    }
    return Example(network, inputs, first(*inputs))


@architecture("dreamlite", ts(17, dynamic=True), dynamo(20))
def dreamlite() -> Example:
    """Depthwise-separable ResNet blocks, grouped-query attention with normed queries and keys."""
    network = DreamLiteUNetModel(
        sample_size=16,
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=(2, 2, 4),
        ff_mult=2,
    )
    inputs = {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(1, 7, 32),
    }
    axes = {**image_axes("sample", "timestep"), "encoder_hidden_states": {0: "batch", 1: "length"}}
    return Example(network, inputs, first(*inputs), dynamic=axes)
