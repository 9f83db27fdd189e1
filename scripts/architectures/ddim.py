"""The base U-Net of the DDIM and score-SDE code bases, re-implemented from its published structure.

Attention has one head, computed by batched matrix products of 1x1 convolutions; swish is x * sigmoid(x); strided
convolutions pad on one side only.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .registry import Example, architecture, batch_only, dynamo, image_axes, ts


def swish(x):
    return x * torch.sigmoid(x)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels, eps=1e-6)


def timestep_embedding(timesteps: torch.Tensor, width: int) -> torch.Tensor:
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000) / (half - 1)))
    angles = timesteps.float()[:, None] * frequencies[None, :]
    embedding = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    return F.pad(embedding, (0, 1, 0, 0)) if width % 2 else embedding


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ResnetBlock(nn.Module):
    def __init__(self, channels: int, out_channels: int, time_width: int, shortcut: str = "linear"):
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_width, out_channels)
        self.norm2, self.conv2 = norm(out_channels), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        kernel, padding = (3, 1) if shortcut == "convolution" else (1, 0)
        same = channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, out_channels, kernel, padding=padding)

    def forward(self, x, embedding):
        hidden = self.conv1(swish(self.norm1(x))) + self.time(swish(embedding))[:, :, None, None]
        return self.shortcut(x) + self.conv2(swish(self.norm2(hidden)))


class SingleHeadAttention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.project = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        hidden = self.norm(x)
        batch, channels, height, width = hidden.shape
        q = self.q(hidden).reshape(batch, channels, height * width).permute(0, 2, 1)
        k = self.k(hidden).reshape(batch, channels, height * width)
        weight = torch.softmax(torch.bmm(q, k) * int(channels) ** -0.5, dim=2).permute(0, 2, 1)
        v = self.v(hidden).reshape(batch, channels, height * width)
        return x + self.project(torch.bmm(v, weight).reshape(batch, channels, height, width))


class DdimUNet(nn.Module):
    def __init__(self, channels=3, width=32, multipliers=(1, 2), blocks=2, attention_levels=(1,), shortcut="linear"):
        super().__init__()
        self.width = width
        time_width = width * 4
        self.dense = nn.ModuleList([nn.Linear(width, time_width), nn.Linear(time_width, time_width)])
        make = lambda a, b: ResnetBlock(a, b, time_width, shortcut)
        attend = lambda level, c: SingleHeadAttention(c) if level in attention_levels else nn.Identity()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down, sizes, current = nn.ModuleList(), [width], width
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(nn.ModuleList([make(current, width * multiplier), attend(level, width * multiplier)]))
                current = width * multiplier
                sizes.append(current)
            if level != len(multipliers) - 1:
                self.down.append(Downsample(current))
                sizes.append(current)
        self.middle = nn.ModuleList([make(current, current), SingleHeadAttention(current), make(current, current)])
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                pair = [make(current + sizes.pop(), width * multiplier), attend(level, width * multiplier)]
                self.up.append(nn.ModuleList(pair))
                current = width * multiplier
            if level:
                self.up.append(Upsample(current))
        self.norm_out, self.conv_out = norm(current), nn.Conv2d(current, channels, 3, padding=1)

    def forward(self, x, t):
        embedding = self.dense[1](swish(self.dense[0](timestep_embedding(t, self.width))))
        skips = [self.stem(x)]
        for stage in self.down:
            if isinstance(stage, Downsample):
                skips.append(stage(skips[-1]))
            else:
                skips.append(stage[1](stage[0](skips[-1], embedding)))
        x = self.middle[2](self.middle[1](self.middle[0](skips[-1], embedding)), embedding)
        for stage in self.up:
            if isinstance(stage, Upsample):
                x = stage(x)
            else:
                x = stage[1](stage[0](torch.cat([x, skips.pop()], dim=1), embedding))
        return self.conv_out(swish(self.norm_out(x)))


def inputs() -> dict[str, torch.Tensor]:
    return {"x": torch.randn(2, 3, 16, 16), "t": torch.tensor([3, 500])}


@architecture("ddim_base", ts(17, dynamic=True), dynamo(18), dynamo(20, dynamic=True), dynamo(23))
def ddim_base() -> Example:
    return Example(DdimUNet(), inputs(), dynamic=batch_only("x", "t"))


@architecture("ddim_odd_widths", ts(14), ts(17, dynamic=True))
def ddim_odd_widths() -> Example:
    """Convolutional shortcuts, three levels, widths that are no power of two."""
    network = DdimUNet(width=24, multipliers=(1, 2, 3), blocks=1, attention_levels=(1, 2), shortcut="convolution")
    return Example(network, inputs(), dynamic=image_axes("x", "t"))
