"""Encoders and decoders of latent diffusion, from diffusers."""

from __future__ import annotations

import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    AutoencoderOobleck,
    AutoencoderTiny,
    VQModel,
)

from .registry import Example, architecture, batch_only, dynamo, image_axes, ts

LATENT = ("latent",)


def kl(**config) -> AutoencoderKL:
    defaults = dict(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
    )
    return AutoencoderKL(**{**defaults, **config})


@architecture("kl_encoder", ts(17, dynamic=True), dynamo(20))
def kl_encoder() -> Example:
    """Returns mean and log-variance, as pipelines export it."""
    call = lambda net, x: net.quant_conv(net.encoder(x))
    return Example(kl(), {"sample": torch.randn(2, 3, 32, 32)}, call, ("moments",), image_axes("sample"))


@architecture("kl_encoder_sampled", ts(17))
def kl_encoder_sampled() -> Example:
    call = lambda net, x: net.encode(x, return_dict=False)[0].mode()
    return Example(kl(), {"sample": torch.randn(1, 3, 32, 32)}, call, LATENT, batch_only("sample"))


@architecture("kl_decoder", ts(17, dynamic=True), dynamo(20), dynamo(23))
def kl_decoder() -> Example:
    call = lambda net, z: net.decode(z, return_dict=False)[0]
    return Example(kl(), {"latent": torch.randn(2, 4, 8, 8)}, call, ("sample",), image_axes("latent"))


@architecture("kl_decoder_no_quant", ts(14))
def kl_decoder_no_quant() -> Example:
    """The layout of SD3's and Flux's decoders: sixteen latent channels, no convolution at the bottleneck."""
    network = kl(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, layers_per_block=2)
    call = lambda net, z: net.decode(z, return_dict=False)[0]
    return Example(network, {"latent": torch.randn(1, 16, 8, 8)}, call, ("sample",), batch_only("latent"))


@architecture("kl_temporal_decoder", ts(17))
def kl_temporal_decoder() -> Example:
    network = AutoencoderKLTemporalDecoder(down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 64))
    call = lambda net, z: net.decode(z, num_frames=2, return_dict=False)[0]
    return Example(network, {"latent": torch.randn(2, 4, 8, 8)}, call, ("sample",))


@architecture("kl_asymmetric_decoder", ts(17))
def kl_asymmetric_decoder() -> Example:
    """The inpainting decoder, conditioned on the masked image."""
    network = AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        down_block_out_channels=(32, 64),
        layers_per_down_block=1,
        up_block_types=("UpDecoderBlock2D",) * 2,
        up_block_out_channels=(48, 64),
        layers_per_up_block=1,
        norm_num_groups=8,
    )
    inputs = {"latent": torch.randn(1, 4, 8, 8), "image": torch.randn(1, 3, 16, 16), "mask": torch.ones(1, 1, 16, 16)}
    call = lambda net, z, image, mask: net.decode(z, image=image, mask=mask, return_dict=False)[0]
    return Example(network, inputs, call, ("sample",))


def vq(**config) -> VQModel:
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        num_vq_embeddings=32,
        vq_embed_dim=4,
        **config,
    )


@architecture("vq_autoencoder", ts(17), dynamo(20))
def vq_autoencoder() -> Example:
    """Quantises to the nearest code on the way (ArgMin, Gather)."""
    call = lambda net, x: net(x, return_dict=False)[0]
    return Example(vq(), {"sample": torch.randn(1, 3, 16, 16)}, call, dynamic=batch_only("sample"))


@architecture("movq_decoder", ts(17), dynamo(18))
def movq_decoder() -> Example:
    """Kandinsky's decoder: norms scaled and shifted by the quantised latent (spatial norm)."""
    call = lambda net, z: net.decode(z, force_not_quantize=True, return_dict=False)[0]
    network = vq(latent_channels=4, norm_type="spatial")
    return Example(network, {"latent": torch.randn(1, 4, 8, 8)}, call, ("sample",), batch_only("latent"))


def tiny() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32),
        decoder_block_out_channels=(32, 32),
        num_encoder_blocks=(1, 2),
        num_decoder_blocks=(2, 1),
    )


@architecture("taesd_encoder", ts(17, dynamic=True))
def taesd_encoder() -> Example:
    call = lambda net, x: net.encode(x, return_dict=False)[0]
    return Example(tiny(), {"sample": torch.randn(1, 3, 16, 16)}, call, LATENT, image_axes("sample"))


@architecture("taesd_decoder", ts(17, dynamic=True), dynamo(20))
def taesd_decoder() -> Example:
    call = lambda net, z: net.decode(z, return_dict=False)[0]
    return Example(tiny(), {"latent": torch.randn(1, 4, 8, 8)}, call, ("sample",), image_axes("latent"))


@architecture("dc_autoencoder_decoder", dynamo(18), dynamo(20))
def dc_autoencoder_decoder() -> Example:
    """Deep compression: multi-scale linear attention and pixel-shuffle upsampling with channel repeats."""
    network = AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(16, 32),
        decoder_block_out_channels=(16, 32),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
    )
    for module in network.modules():
        if getattr(module, "eps", 1) == 1e-15:
            # The exporter takes an addition of 1e-15 for an addition of zero and drops it: the quotient becomes NaN.
            module.eps = 1e-6
    call = lambda net, z: net.decode(z, return_dict=False)[0]
    return Example(network, {"latent": torch.randn(1, 8, 8, 8)}, call, ("sample",), batch_only("latent"))


@architecture("oobleck_decoder", ts(17, dynamic=True), dynamo(20))
def oobleck_decoder() -> Example:
    """Stable Audio's decoder: snake activations, weight norm and transposed convolutions."""
    network = AutoencoderOobleck(
        encoder_hidden_size=16,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=16,
        decoder_input_channels=8,
    )
    call = lambda net, z: net.decode(z, return_dict=False)[0]
    return Example(network, {"latent": torch.randn(1, 8, 16)}, call, ("audio",), batch_only("latent"))
