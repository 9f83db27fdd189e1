"""The U-Net of guided-diffusion (ADM), re-implemented from its published structure.

Residual blocks may resample, the time embedding may scale and shift a norm, and query, key and value come from one
convolution whose channels are laid out either head by head ("legacy") or query, key, value in turn.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .registry import Example, architecture, batch_only, dynamo, image_axes, ts


class Float32GroupNorm(nn.GroupNorm):
    """Group norm that always computes in single precision."""

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


def norm(channels: int, groups: int = 8) -> nn.Module:
    return Float32GroupNorm(groups, channels)


def timestep_embedding(timesteps: torch.Tensor, width: int, max_period: float = 10000) -> torch.Tensor:
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32) / half)
    angles = timesteps[:, None].float() * frequencies[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class Upsample(nn.Module):
    def __init__(self, channels: int, convolve: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if convolve else nn.Identity()

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Downsample(nn.Module):
    def __init__(self, channels: int, convolve: bool):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if convolve else nn.AvgPool2d(2)

    def forward(self, x):
        return self.op(x)


class ResBlock(nn.Module):
    def __init__(self, channels, time_width, out_channels, scale_shift=True, up=False, down=False):
        super().__init__()
        self.in_norm = nn.Sequential(norm(channels), nn.SiLU())
        self.in_conv = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.resample_hidden = self.resample_skip = nn.Identity()
        if up:
            self.resample_hidden, self.resample_skip = Upsample(channels, False), Upsample(channels, False)
        if down:
            self.resample_hidden, self.resample_skip = Downsample(channels, False), Downsample(channels, False)
        self.scale_shift = scale_shift
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time_width, out_channels * (2 if scale_shift else 1)))
        self.out_norm = norm(out_channels)
        self.out_conv = nn.Sequential(nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x, embedding):
        hidden = self.in_conv(self.resample_hidden(self.in_norm(x)))
        x = self.resample_skip(x)
        condition = self.time(embedding)[..., None, None]
        if self.scale_shift:
            scale, shift = torch.chunk(condition, 2, dim=1)
            hidden = self.out_conv(self.out_norm(hidden) * (1 + scale) + shift)
        else:
            hidden = self.out_conv(self.out_norm(hidden + condition))
        return self.skip(x) + hidden


def attend_legacy(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """Channels are grouped by head, and split into query, key and value within each."""
    batch, channels, length = qkv.shape
    width = channels // (3 * heads)
    q, k, v = qkv.reshape(batch * heads, width * 3, length).split(width, dim=1)
    scale = 1 / math.sqrt(math.sqrt(width))
    weight = torch.softmax(torch.einsum("bct,bcs->bts", q * scale, k * scale).float(), dim=-1).type(qkv.dtype)
    return torch.einsum("bts,bcs->bct", weight, v).reshape(batch, -1, length)


def attend_in_turn(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """Channels hold all queries, then all keys, then all values."""
    batch, channels, length = qkv.shape
    width = channels // (3 * heads)
    q, k, v = qkv.chunk(3, dim=1)
    scale = 1 / math.sqrt(math.sqrt(width))
    shape = (batch * heads, width, length)
    weight = torch.einsum("bct,bcs->bts", (q * scale).view(shape), (k * scale).view(shape))
    weight = torch.softmax(weight.float(), dim=-1).type(qkv.dtype)
    return torch.einsum("bts,bcs->bct", weight, v.reshape(shape)).reshape(batch, -1, length)


class AttentionBlock(nn.Module):
    def __init__(self, channels: int, heads: int, attend):
        super().__init__()
        self.heads = heads
        self.attend = attend
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, channels * 3, 1)
        self.project = nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        batch, channels, *spatial = x.shape
        x = x.reshape(batch, channels, -1)
        return (x + self.project(self.attend(self.qkv(self.norm(x)), self.heads))).reshape(batch, channels, *spatial)


class Conditioned(nn.Sequential):
    """Passes the time embedding to those layers that take one."""

    def forward(self, x, embedding):
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class AblatedUNet(nn.Module):
    def __init__(
        self,
        channels=3,
        width=32,
        multipliers=(1, 2),
        blocks=1,
        attention_levels=(1,),
        heads=2,
        classes=0,
        scale_shift=True,
        resample_in_blocks=False,
        attend=attend_legacy,
        learn_variance=True,
    ):
        super().__init__()
        self.width = width
        time_width = width * 4
        self.time = nn.Sequential(nn.Linear(width, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.label = nn.Embedding(classes, time_width) if classes else None
        make = lambda a, b, **how: ResBlock(a, time_width, b, scale_shift, **how)
        self.down = nn.ModuleList([Conditioned(nn.Conv2d(channels, width, 3, padding=1))])
        sizes, current = [width], width
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                layers = [make(current, width * multiplier)]
                current = width * multiplier
                if level in attention_levels:
                    layers.append(AttentionBlock(current, heads, attend))
                self.down.append(Conditioned(*layers))
                sizes.append(current)
            if level != len(multipliers) - 1:
                step = make(current, current, down=True) if resample_in_blocks else Downsample(current, True)
                self.down.append(Conditioned(step))
                sizes.append(current)
        self.middle = Conditioned(
            make(current, current), AttentionBlock(current, heads, attend), make(current, current)
        )
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for index in range(blocks + 1):
                layers = [make(current + sizes.pop(), width * multiplier)]
                current = width * multiplier
                if level in attention_levels:
                    layers.append(AttentionBlock(current, heads, attend))
                if level and index == blocks:
                    layers.append(make(current, current, up=True) if resample_in_blocks else Upsample(current, True))
                self.up.append(Conditioned(*layers))
        out_channels = channels * (2 if learn_variance else 1)
        self.out = nn.Sequential(norm(current), nn.SiLU(), nn.Conv2d(current, out_channels, 3, padding=1))

    def forward(self, x, timesteps, labels=None):
        embedding = self.time(timestep_embedding(timesteps, self.width))
        if self.label is not None:
            embedding = embedding + self.label(labels)
        skips = []
        for block in self.down:
            x = block(x, embedding)
            skips.append(x)
        x = self.middle(x, embedding)
        for block in self.up:
            x = block(torch.cat([x, skips.pop()], dim=1), embedding)
        return self.out(x)


def inputs(labels: bool = False) -> dict[str, torch.Tensor]:
    values = {"x": torch.randn(2, 3, 16, 16), "timesteps": torch.tensor([3, 500])}
    return {**values, "labels": torch.tensor([1, 2])} if labels else values


@architecture("guided_legacy", ts(17, dynamic=True), dynamo(18), dynamo(20))
def guided_legacy() -> Example:
    return Example(AblatedUNet(classes=5, resample_in_blocks=True), inputs(True), dynamic=batch_only(*inputs(True)))


@architecture("guided_in_turn", ts(17), dynamo(20), dynamo(23))
def guided_in_turn() -> Example:
    network = AblatedUNet(attend=attend_in_turn, heads=4, resample_in_blocks=True)
    return Example(network, inputs(), dynamic=batch_only(*inputs()))


@architecture("improved_diffusion", ts(14), ts(17, dynamic=True), dynamo(20))
def improved_diffusion() -> Example:
    """Without scale-shift norm, with convolutions that resample."""
    network = AblatedUNet(scale_shift=False, multipliers=(1, 1, 2), attention_levels=(1, 2), learn_variance=False)
    return Example(network, inputs(), dynamic=image_axes("x", "timesteps"))
