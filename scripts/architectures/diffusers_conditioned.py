"""Conditioned, video and control U-Nets of diffusers."""

from __future__ import annotations

import torch
from diffusers import (
    ControlNetModel,
    T2IAdapter,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)

from .registry import Example, architecture, batch_only, dynamo, image_axes, ts

SMALL = dict(
    sample_size=16,
    block_out_channels=(32, 64),
    layers_per_block=1,
    norm_num_groups=8,
    cross_attention_dim=32,
    attention_head_dim=4,
)


def conditioned_axes(*batch: str) -> dict[str, dict[int, str]]:
    return {**image_axes("sample", *batch), "encoder_hidden_states": {0: "batch", 1: "length"}}


def conditioned(channels: int = 4, extra: dict | None = None, arguments=None, **config) -> Example:
    """A UNet2DConditionModel; ``arguments`` turns extra inputs into keyword arguments of its call."""
    defaults = dict(
        SMALL,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    network = UNet2DConditionModel(**{"in_channels": channels, "out_channels": channels, **defaults, **config})
    width = config.get("encoder_hid_dim") or network.config.cross_attention_dim
    inputs = {
        "sample": torch.randn(2, channels, 16, 16),
        "timestep": torch.tensor([3, 500]),
        "encoder_hidden_states": torch.randn(2, 7, width if isinstance(width, int) else width[0]),
        **(extra or {}),
    }
    arguments = arguments or (lambda *values: {})
    call = lambda net, x, t, c, *rest: net(x, t, c, return_dict=False, **arguments(*rest))[0]
    return Example(network, inputs, call, dynamic=conditioned_axes("timestep", *(extra or {})))


@architecture("sd15", ts(14, dynamic=True), dynamo(18, dynamic=True), dynamo(23))
def sd15() -> Example:
    return conditioned()


@architecture("sd21", ts(17, dynamic=True), dynamo(20))
def sd21() -> Example:
    """Stable Diffusion 2.1: linear projections, head counts by level, attention upcast."""
    return conditioned(attention_head_dim=(2, 4), use_linear_projection=True, upcast_attention=True)


@architecture("sdxl", ts(17, dynamic=True), dynamo(20))
def sdxl() -> Example:
    return conditioned(
        extra={"text_embeds": torch.randn(2, 24), "time_ids": torch.rand(2, 6) * 100},
        arguments=lambda text, ids: {"added_cond_kwargs": {"text_embeds": text, "time_ids": ids}},
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


@architecture("kandinsky21", ts(17), dynamo(20))
def kandinsky21() -> Example:
    """Simple cross-attention with added key and value projections, scale-shift norm, ResNet resampling."""
    return conditioned(
        extra={"image_embeds": torch.randn(2, 20)},
        arguments=lambda image: {"added_cond_kwargs": {"image_embeds": image}},
        out_channels=8,
        encoder_hid_dim=20,
        encoder_hid_dim_type="image_proj",
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=8,
    )


@architecture("if_text_projection", ts(17), dynamo(20))
def if_text_projection() -> Example:
    """DeepFloyd IF: text pooling, gelu, skip scaling, no time activation."""
    return conditioned(
        channels=3,
        out_channels=6,
        act_fn="gelu",
        encoder_hid_dim=24,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
        resnet_skip_time_act=True,
        resnet_out_scale_factor=1.4142,
        only_cross_attention=True,
        time_embedding_act_fn="gelu",
        class_embed_type=None,
        attention_head_dim=8,
    )


@architecture("k_upscaler", dynamo(20))
def k_upscaler() -> Example:
    """The latent upscaler: K-diffusion blocks with adaptive group norm and a fixed blur."""
    return conditioned(
        channels=4,
        act_fn="gelu",
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        time_cond_proj_dim=24,
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
        mid_block_type=None,
        conv_in_kernel=1,
        conv_out_kernel=1,
        norm_num_groups=None,
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=8,
        extra={"timestep_cond": torch.randn(2, 24)},
        arguments=lambda cond: {"timestep_cond": cond},
    )


@architecture("sd_class_concat", ts(17))
def sd_class_concat() -> Example:
    """Class embedding concatenated to the time embedding, GLIGEN-free dual cross-attention, LCM guidance input."""
    return conditioned(
        extra={"class_labels": torch.randn(2, 12), "timestep_cond": torch.randn(2, 16)},
        arguments=lambda labels, cond: {"class_labels": labels, "timestep_cond": cond},
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=12,
        class_embeddings_concat=True,
        time_cond_proj_dim=16,
        dual_cross_attention=False,
    )


@architecture("video_unet3d", ts(17), dynamo(20))
def video_unet3d() -> Example:
    """Text-to-video (ModelScope): temporal convolutions and temporal transformers."""
    network = UNet3DConditionModel(
        **SMALL,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )
    inputs = {
        "sample": torch.randn(1, 4, 3, 8, 8),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(1, 7, 32),
    }
    return Example(network, inputs, lambda net, x, t, c: net(x, t, c, return_dict=False)[0])


@architecture("stable_video", ts(17), dynamo(20))
def stable_video() -> Example:
    network = UNetSpatioTemporalConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        num_attention_heads=(2, 4),
        num_frames=3,
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=48,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )
    inputs = {
        "sample": torch.randn(1, 3, 8, 8, 8),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(1, 1, 32),
        "added_time_ids": torch.rand(1, 3) * 10,
    }
    return Example(network, inputs, lambda net, x, t, c, ids: net(x, t, c, ids, return_dict=False)[0])


@architecture("animate_motion", ts(17), dynamo(20))
def animate_motion() -> Example:
    network = UNetMotionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
    )
    inputs = {
        "sample": torch.randn(1, 4, 4, 8, 8),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": torch.randn(4, 7, 32),
    }
    return Example(network, inputs, lambda net, x, t, c: net(x, t, c, return_dict=False)[0])


@architecture("controlnet", ts(17, dynamic=True), dynamo(20))
def controlnet() -> Example:
    network = ControlNetModel(
        **{key: value for key, value in SMALL.items() if key != "sample_size"},
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        conditioning_embedding_out_channels=(8, 16),
    )
    inputs = {
        "sample": torch.randn(2, 4, 16, 16),
        "timestep": torch.tensor([3, 500]),
        "encoder_hidden_states": torch.randn(2, 7, 32),
        "controlnet_cond": torch.randn(2, 3, 32, 32),
    }

    def call(net, x, t, c, image):
        residuals, middle = net(x, t, c, image, return_dict=False)
        return (*residuals, middle)

    outputs = (*(f"residual_{i}" for i in range(4)), "middle")
    return Example(network, inputs, call, outputs, batch_only(*inputs))


@architecture("controlled_unet", ts(17), dynamo(20))
def controlled_unet() -> Example:
    """A conditioned U-Net whose skip connections receive a ControlNet's residuals as graph inputs."""
    shapes = [(32, 16), (32, 16), (32, 8), (64, 8)]
    residuals = {f"residual_{i}": torch.randn(2, c, s, s) for i, (c, s) in enumerate(shapes)}
    return conditioned(
        extra={**residuals, "middle": torch.randn(2, 64, 8, 8)},
        arguments=lambda *values: {
            "down_block_additional_residuals": values[:-1],
            "mid_block_additional_residual": values[-1],
        },
    )


def adapter(kind: str, channels: list[int]) -> Example:
    network = T2IAdapter(in_channels=3, channels=channels, num_res_blocks=1, downscale_factor=8, adapter_type=kind)
    inputs = {"image": torch.randn(1, 3, 64, 64)}
    with torch.no_grad():
        count = len(network(inputs["image"]))
    outputs = tuple(f"feature_{i}" for i in range(count))
    return Example(network, inputs, lambda net, x: tuple(net(x)), outputs, batch_only("image"))


@architecture("t2i_adapter", ts(17, dynamic=True), dynamo(20))
def t2i_adapter() -> Example:
    return adapter("full_adapter", [32, 48, 64])


@architecture("t2i_adapter_light", ts(17))
def t2i_adapter_light() -> Example:
    return adapter("light_adapter", [32, 48, 64])
