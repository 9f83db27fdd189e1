"""U-Nets of denoising-diffusion-pytorch: RMS norm over channels, linear attention, memory keys and values."""

from __future__ import annotations

import torch
from denoising_diffusion_pytorch import KarrasUnet, KarrasUnet1D, Unet, Unet1D

from .registry import Example, architecture, batch_only, dynamo, image_axes, ts


def image_inputs(channels: int = 3) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(2, channels, 16, 16), "time": torch.tensor([3, 500])}


@architecture("lucid_unet", ts(17, dynamic=True), dynamo(18), dynamo(20))
def lucid_unet() -> Example:
    network = Unet(dim=24, dim_mults=(1, 2), attn_dim_head=16, attn_heads=2)
    return Example(network, image_inputs(), dynamic=image_axes("x", "time"))


@architecture("lucid_unet_learned", ts(14))
def lucid_unet_learned() -> Example:
    """Learned sinusoidal time embedding, learned variance, self-conditioning."""
    network = Unet(
        dim=24,
        dim_mults=(1, 2),
        learned_sinusoidal_cond=True,
        learned_variance=True,
        self_condition=True,
        attn_dim_head=16,
        attn_heads=2,
    )
    inputs = {"x": torch.randn(2, 3, 16, 16), "time": torch.rand(2), "x_self_cond": torch.randn(2, 3, 16, 16)}
    return Example(network, inputs, dynamic=batch_only(*inputs))


@architecture("lucid_unet1d", ts(17, dynamic=True), dynamo(20))
def lucid_unet1d() -> Example:
    network = Unet1D(dim=24, dim_mults=(1, 2), channels=4, attn_dim_head=16, attn_heads=2)
    inputs = {"x": torch.randn(2, 4, 32), "time": torch.tensor([3, 500])}
    return Example(network, inputs, dynamic=batch_only(*inputs))


@architecture("karras_unet", ts(17, dynamic=True), dynamo(20))
def karras_unet() -> Example:
    """EDM2: magnitude-preserving layers whose weights are normalised inside the graph."""
    network = KarrasUnet(
        image_size=16,
        dim=32,
        dim_max=64,
        channels=3,
        num_downsamples=1,
        num_blocks_per_stage=1,
        attn_res=(8,),
        attn_dim_head=16,
        num_classes=5,
    )
    inputs = {"x": torch.randn(2, 3, 16, 16), "time": torch.rand(2), "class_labels": torch.tensor([1, 2])}
    call = lambda net, x, t, y: net(x, t, class_labels=y)
    return Example(network, inputs, call, dynamic=batch_only(*inputs))


@architecture("karras_unet1d", ts(17))
def karras_unet1d() -> Example:
    network = KarrasUnet1D(
        seq_len=32,
        dim=32,
        dim_max=64,
        channels=4,
        num_downsamples=1,
        num_blocks_per_stage=1,
        attn_res=(16,),
        attn_dim_head=16,
    )
    inputs = {"x": torch.randn(2, 4, 32), "time": torch.rand(2)}
    return Example(network, inputs, dynamic=batch_only(*inputs))
