"""Diffusion models and autoencoders of MONAI (formerly MONAI Generative)."""

from __future__ import annotations

import torch
from monai.networks.nets import VQVAE, AutoencoderKL, ControlNet, DiffusionModelUNet, SPADEDiffusionModelUNet

from .registry import Example, architecture, batch_only, dynamo, image_axes, ts

TIMESTEPS = torch.tensor([3, 500])
LEVELS = dict(num_res_blocks=1, channels=(32, 64), attention_levels=(False, True), norm_num_groups=8)


@architecture("monai_unet2d", ts(17, dynamic=True), dynamo(20), dynamo(23))
def monai_unet2d() -> Example:
    network = DiffusionModelUNet(2, 1, 1, **LEVELS, num_head_channels=16)
    inputs = {"x": torch.randn(2, 1, 16, 16), "timesteps": TIMESTEPS}
    return Example(network, inputs, dynamic=image_axes("x", "timesteps"))


@architecture("monai_unet2d_fused_qkv", ts(17), dynamo(20))
def monai_unet2d_fused_qkv() -> Example:
    """One linear layer for query, key and value; residual blocks that resample; class embedding."""
    network = DiffusionModelUNet(
        2,
        3,
        3,
        **LEVELS,
        num_head_channels=16,
        use_combined_linear=True,
        include_fc=False,
        resblock_updown=True,
        num_class_embeds=5,
    )
    inputs = {"x": torch.randn(2, 3, 16, 16), "timesteps": TIMESTEPS, "class_labels": torch.tensor([1, 2])}
    return Example(network, inputs, lambda net, x, t, y: net(x, t, class_labels=y), dynamic=batch_only(*inputs))


@architecture("monai_unet2d_conditioned", ts(14), dynamo(20))
def monai_unet2d_conditioned() -> Example:
    network = DiffusionModelUNet(
        2,
        1,
        1,
        **LEVELS,
        num_head_channels=(0, 16),
        with_conditioning=True,
        transformer_num_layers=2,
        cross_attention_dim=24,
        upcast_attention=True,
    )
    inputs = {"x": torch.randn(2, 1, 16, 16), "timesteps": TIMESTEPS, "context": torch.randn(2, 5, 24)}
    return Example(network, inputs, dynamic=batch_only(*inputs))


@architecture("monai_unet3d", ts(17, dynamic=True), dynamo(20))
def monai_unet3d() -> Example:
    network = DiffusionModelUNet(3, 1, 1, **LEVELS, num_head_channels=16)
    inputs = {"x": torch.randn(1, 1, 8, 8, 8), "timesteps": torch.tensor([3])}
    return Example(network, inputs, dynamic=batch_only(*inputs))


@architecture("monai_spade_unet", ts(17))
def monai_spade_unet() -> Example:
    """Norms modulated by convolutions over a segmentation map."""
    network = SPADEDiffusionModelUNet(
        2, 1, 1, label_nc=3, **LEVELS, num_head_channels=16, spade_intermediate_channels=16
    )
    inputs = {"x": torch.randn(2, 1, 16, 16), "timesteps": TIMESTEPS, "seg": torch.randn(2, 3, 16, 16)}
    return Example(network, inputs, dynamic=batch_only(*inputs))


@architecture("monai_controlnet", ts(17))
def monai_controlnet() -> Example:
    network = ControlNet(2, 1, **LEVELS, num_head_channels=16, conditioning_embedding_num_channels=(16,))
    inputs = {"x": torch.randn(2, 1, 16, 16), "timesteps": TIMESTEPS, "controlnet_cond": torch.randn(2, 1, 16, 16)}

    def call(net, x, t, image):
        residuals, middle = net(x, t, image)
        return (*residuals, middle)

    outputs = (*(f"residual_{i}" for i in range(4)), "middle")
    return Example(network, inputs, call, outputs, batch_only(*inputs))


@architecture("monai_kl_autoencoder", ts(17), dynamo(20))
def monai_kl_autoencoder() -> Example:
    network = AutoencoderKL(2, 1, 1, **LEVELS, latent_channels=3)
    return Example(
        network, {"x": torch.randn(1, 1, 16, 16)}, lambda net, x: net.reconstruct(x), dynamic=batch_only("x")
    )


@architecture("monai_kl_decoder3d", ts(17))
def monai_kl_decoder3d() -> Example:
    network = AutoencoderKL(
        3,
        1,
        1,
        num_res_blocks=1,
        channels=(16, 32),
        attention_levels=(False, False),
        norm_num_groups=8,
        latent_channels=3,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
        use_convtranspose=True,
    )
    return Example(
        network, {"latent": torch.randn(1, 3, 4, 4, 4)}, lambda net, z: net.decode(z), dynamic=batch_only("latent")
    )


@architecture("monai_vqvae", ts(17), dynamo(20))
def monai_vqvae() -> Example:
    network = VQVAE(
        2,
        1,
        1,
        channels=(32, 48),
        num_res_layers=1,
        num_res_channels=(32, 48),
        downsample_parameters=((2, 4, 1, 1),) * 2,
        upsample_parameters=((2, 4, 1, 1, 0),) * 2,
        num_embeddings=16,
        embedding_dim=24,
    )
    return Example(
        network, {"images": torch.randn(1, 1, 16, 16)}, lambda net, x: net(x)[0], dynamic=batch_only("images")
    )
