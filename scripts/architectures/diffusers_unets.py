"""Unconditional and one-dimensional U-Nets of diffusers."""

from __future__ import annotations

import torch
from diffusers import UNet1DModel, UNet2DModel

from .registry import Example, architecture, batch_only, dynamo, image_axes, ts


def unet2d(size: int = 16, channels: int = 3, labels: int = 0, square: bool = True, **config) -> Example:
    """A UNet2DModel with small defaults that ``config`` overrides."""
    defaults = dict(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    network = UNet2DModel(**{**defaults, **config})
    inputs = {
        "sample": torch.randn(2, channels, size, size if square else size * 2),
        "timestep": torch.tensor([3, 500]),
    }
    if labels:
        inputs["class_labels"] = torch.tensor([1, 2])
        call = lambda net, x, t, y: net(x, t, class_labels=y, return_dict=False)[0]
    else:
        call = lambda net, x, t: net(x, t, return_dict=False)[0]
    return Example(network, inputs, call, dynamic=image_axes("sample", *list(inputs)[1:]))


@architecture("ddpm_cifar10", ts(17, dynamic=True), full_size=True)
def ddpm_cifar10() -> Example:
    """The layout and full size of google/ddpm-cifar10-32."""
    example = unet2d(
        size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        norm_num_groups=32,
        norm_eps=1e-6,
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    example.dynamic = batch_only("sample", "timestep")
    return example


@architecture("unet2d_attention", ts(14), ts(17, dynamic=True), dynamo(18), dynamo(20, dynamic=True), dynamo(23))
def unet2d_attention() -> Example:
    return unet2d()


@architecture("unet2d_single_head", ts(17), dynamo(20))
def unet2d_single_head() -> Example:
    return unet2d(attention_head_dim=None, mid_block_scale_factor=2.0, downsample_padding=0)


@architecture("unet2d_scale_shift_labels", ts(17, dynamic=True), dynamo(20))
def unet2d_scale_shift_labels() -> Example:
    return unet2d(labels=5, num_class_embeds=5, resnet_time_scale_shift="scale_shift")


@architecture("unet2d_timestep_labels", ts(17))
def unet2d_timestep_labels() -> Example:
    return unet2d(labels=5, class_embed_type="timestep", act_fn="gelu")


@architecture("unet2d_skip_fourier", ts(17, dynamic=True), dynamo(20))
def unet2d_skip_fourier() -> Example:
    """The score-SDE layout: FIR resampling, skip blocks, Fourier embedding of a positive noise level."""
    example = unet2d(
        time_embedding_type="fourier",
        mid_block_scale_factor=1.41421,
        norm_num_groups=None,
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    )
    example.inputs["timestep"] = torch.tensor([0.3, 5.0])
    return example


@architecture("unet2d_resnet_resampling", ts(17), dynamo(18))
def unet2d_resnet_resampling() -> Example:
    return unet2d(
        block_out_channels=(32, 48, 64),
        resnet_time_scale_shift="scale_shift",
        down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
    )


@architecture("unet2d_straddling_groups", ts(17, dynamic=True), dynamo(20))
def unet2d_straddling_groups() -> Example:
    """Widths for which the norm after a concatenation has groups that straddle the seam."""
    return unet2d(
        size=16,
        square=False,
        block_out_channels=(24, 40, 56),
        norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
    )


@architecture("unet2d_no_middle_attention", ts(17))
def unet2d_no_middle_attention() -> Example:
    return unet2d(
        channels=1,
        add_attention=False,
        layers_per_block=2,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        dropout=0.1,
        center_input_sample=True,
    )


@architecture("unet2d_learned_time", ts(17))
def unet2d_learned_time() -> Example:
    return unet2d(time_embedding_type="learned", num_train_timesteps=1000, attn_norm_num_groups=4)


@architecture("unet1d_audio", dynamo(20))
def unet1d_audio() -> Example:
    """The dance-diffusion layout."""
    network = UNet1DModel(
        sample_size=256,
        in_channels=2,
        out_channels=2,
        extra_in_channels=64,
        time_embedding_type="fourier",
        flip_sin_to_cos=True,
        use_timestep_embedding=False,
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
        mid_block_type="UNetMidBlock1D",
        block_out_channels=(32, 32, 64),
    )
    inputs = {"sample": torch.randn(2, 2, 256), "timestep": torch.tensor([3, 500])}
    call = lambda net, x, t: net(x, t, return_dict=False)[0]
    return Example(network, inputs, call, dynamic=batch_only("sample", "timestep"))


@architecture("unet1d_value_function", ts(17), dynamo(20))
def unet1d_value_function() -> Example:
    """The planner ("diffuser") value function: convolutions over a trajectory, then a linear head."""
    network = UNet1DModel(
        sample_size=32,
        in_channels=14,
        out_channels=14,
        extra_in_channels=0,
        time_embedding_type="positional",
        use_timestep_embedding=True,
        flip_sin_to_cos=False,
        freq_shift=1,
        down_block_types=("DownResnetBlock1D",) * 4,
        up_block_types=(),
        out_block_type="ValueFunction",
        mid_block_type="ValueFunctionMidBlock1D",
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        act_fn="mish",
    )
    inputs = {"sample": torch.randn(2, 14, 32), "timestep": torch.tensor([3, 500])}
    return Example(network, inputs, lambda net, x, t: net(x, t, return_dict=False)[0])


@architecture("unet1d_planner", ts(17, dynamic=True), dynamo(20))
def unet1d_planner() -> Example:
    network = UNet1DModel(
        sample_size=32,
        in_channels=14,
        out_channels=14,
        extra_in_channels=0,
        time_embedding_type="positional",
        use_timestep_embedding=True,
        flip_sin_to_cos=False,
        freq_shift=1,
        down_block_types=("DownResnetBlock1D",) * 3,
        up_block_types=("UpResnetBlock1D",) * 2,
        out_block_type="OutConv1DBlock",
        mid_block_type="MidResTemporalBlock1D",
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        act_fn="mish",
    )
    inputs = {"sample": torch.randn(2, 14, 32), "timestep": torch.tensor([3, 500])}
    call = lambda net, x, t: net(x, t, return_dict=False)[0]
    return Example(network, inputs, call, dynamic=batch_only("sample", "timestep"))
