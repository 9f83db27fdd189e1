"""U-Nets of EDM and k-diffusion, re-implemented from their published structure.

SongUNet / DhariwalUNet-like blocks (weights scaled at run time by an initial gain, resampling by a fixed filter with
grouped convolutions, preconditioning around the network), EDM2's magnitude-preserving layers (weights normalised
inside the graph), and adaptive group norm whose scale and shift come from a mapping network.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .registry import Example, architecture, batch_only, dynamo, ts


class GainConv(nn.Module):
    """A convolution that may resample with a fixed filter first, as a grouped (transposed) convolution."""

    def __init__(self, channels, out_channels, kernel=3, up=False, down=False):
        super().__init__()
        self.up, self.down, self.channels = up, down, channels
        self.weight = nn.Parameter(torch.randn(out_channels, channels, kernel, kernel) / (channels * kernel) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        taps = torch.ones(2)
        # One copy for each channel: the TorchScript exporter needs kernels of known shape.
        self.register_buffer("filter", (torch.outer(taps, taps)[None, None] / 4).repeat(channels, 1, 1, 1))

    def forward(self, x):
        if self.up:
            x = F.conv_transpose2d(x, self.filter * 4, groups=self.channels, stride=2)
        if self.down:
            x = F.conv2d(x, self.filter, groups=self.channels, stride=2)
        x = F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2)
        return x + self.bias.reshape(1, -1, 1, 1)


class EdmBlock(nn.Module):
    def __init__(self, channels, out_channels, width, up=False, down=False, heads=0, adaptive=True):
        super().__init__()
        self.heads, self.adaptive = heads, adaptive
        self.norm0, self.conv0 = nn.GroupNorm(8, channels), GainConv(channels, out_channels, up=up, down=down)
        self.affine = nn.Linear(width, out_channels * (2 if adaptive else 1))
        self.norm1, self.conv1 = nn.GroupNorm(8, out_channels), GainConv(out_channels, out_channels)
        plain = channels == out_channels and not up and not down
        self.skip = None if plain else GainConv(channels, out_channels, 1, up, down)
        if heads:
            self.norm2 = nn.GroupNorm(8, out_channels)
            self.qkv, self.project = (
                GainConv(out_channels, out_channels * 3, 1),
                GainConv(out_channels, out_channels, 1),
            )

    def forward(self, x, embedding):
        origin = x
        x = self.conv0(F.silu(self.norm0(x)))
        parameters = self.affine(embedding)[:, :, None, None]
        if self.adaptive:
            scale, shift = parameters.chunk(chunks=2, dim=1)
            x = F.silu(torch.addcmul(shift, self.norm1(x), scale + 1))
        else:
            x = F.silu(self.norm1(x + parameters))
        x = (self.conv1(x) + (origin if self.skip is None else self.skip(origin))) * math.sqrt(0.5)
        if self.heads:
            # Query, key and value alternate on the innermost of the split channel axes.
            packed = self.qkv(self.norm2(x))
            q, k, v = packed.reshape(x.shape[0] * self.heads, x.shape[1] // self.heads, 3, -1).unbind(2)
            weight = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(k.shape[1])).softmax(dim=2)
            x = (self.project(torch.einsum("nqk,nck->ncq", weight, v).reshape(*x.shape)) + x) * math.sqrt(0.5)
        return x


class EdmUNet(nn.Module):
    """Preconditioned denoiser: scales around the network depend on the noise level."""

    def __init__(self, channels=3, width=32, adaptive=True, labels=4):
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(width // 2) * 16, requires_grad=False)
        self.map0, self.map1 = nn.Linear(width, width * 4), nn.Linear(width * 4, width * 4)
        self.map_label = nn.Linear(labels, width, bias=False)
        make = lambda a, b, **how: EdmBlock(a, b, width * 4, adaptive=adaptive, **how)
        self.stem = GainConv(channels, width)
        self.encoder = nn.ModuleList(
            [make(width, width), make(width, width, down=True), make(width, width * 2, heads=2)]
        )
        self.middle = nn.ModuleList([make(width * 2, width * 2, heads=2), make(width * 2, width * 2)])
        self.decoder = nn.ModuleList(
            [
                make(width * 4, width * 2, heads=2),
                make(width * 3, width * 2),
                make(width * 2, width * 2, up=True),
                make(width * 3, width),
                make(width * 2, width),
            ]
        )
        self.norm_out, self.conv_out = nn.GroupNorm(8, width), GainConv(width, channels)

    def forward(self, x, sigma, labels):
        sigma = sigma.reshape(-1, 1, 1, 1)
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
        angles = (sigma.log() / 4).flatten()[:, None] * (2 * math.pi * self.frequencies)[None]
        embedding = torch.cat([angles.cos(), angles.sin()], dim=1) + self.map_label(labels * 2.0)
        embedding = F.silu(self.map1(F.silu(self.map0(embedding))))
        hidden = self.stem(x / (sigma**2 + 0.25).sqrt())
        skips = [hidden]
        for block in self.encoder:
            hidden = block(hidden, embedding)
            skips.append(hidden)
        for block in self.middle:
            hidden = block(hidden, embedding)
        for index, block in enumerate(self.decoder):
            if index != 2:
                hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = block(hidden, embedding)
        return c_skip * x + c_out * self.conv_out(F.silu(self.norm_out(hidden)))


def unit_rows(weight: torch.Tensor) -> torch.Tensor:
    """Each output channel's weights divided by their root mean square (plus epsilon)."""
    axes = list(range(1, weight.ndim))
    length = torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
    return weight / (1e-4 + length * math.sqrt(length.numel() / weight.numel()))


class MagnitudeConv(nn.Module):
    def __init__(self, channels: int, out_channels: int, kernel: int = 3):
        super().__init__()
        shape = (out_channels, channels) + ((kernel, kernel) if kernel else ())
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x, gain=1.0):
        weight = unit_rows(self.weight) * (gain / math.sqrt(self.weight[0].numel()))
        if weight.ndim == 2:
            return x @ weight.t()
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def blend(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    return torch.lerp(a, b, t) / math.sqrt((1 - t) ** 2 + t**2)


def balanced_concat(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    total = math.sqrt((a.shape[1] + b.shape[1]) / 0.5)
    return torch.cat([total / math.sqrt(a.shape[1]) * 0.5 * a, total / math.sqrt(b.shape[1]) * 0.5 * b], dim=1)


def pixel_norm(x: torch.Tensor) -> torch.Tensor:
    return x / (1e-4 + torch.linalg.vector_norm(x, dim=1, keepdim=True) / math.sqrt(x.shape[1]))


class MagnitudeBlock(nn.Module):
    def __init__(self, channels, out_channels, width, encoder: bool, heads: int = 0):
        super().__init__()
        self.encoder, self.heads = encoder, heads
        self.gain = nn.Parameter(torch.zeros([]))
        inner = out_channels if encoder else channels
        self.skip = MagnitudeConv(channels, out_channels, 1) if channels != out_channels else None
        self.conv0, self.conv1 = MagnitudeConv(inner, out_channels), MagnitudeConv(out_channels, out_channels)
        self.linear = MagnitudeConv(width, out_channels, 0)
        if heads:
            self.qkv = MagnitudeConv(out_channels, out_channels * 3, 1)
            self.project = MagnitudeConv(out_channels, out_channels, 1)

    def forward(self, x, embedding):
        if self.encoder:
            x = pixel_norm(x if self.skip is None else self.skip(x))
        scale = self.linear(embedding, self.gain) + 1
        hidden = F.silu(self.conv0(F.silu(x) / 0.596) * scale[:, :, None, None]) / 0.596
        hidden = self.conv1(hidden)
        if not self.encoder and self.skip is not None:
            x = self.skip(x)
        x = blend(x, hidden, 0.3)
        if self.heads:
            batch, channels, height, width = x.shape
            packed = self.qkv(x).reshape(batch, self.heads, channels // self.heads, 3, height * width)
            packed = packed / (
                1e-4 + torch.linalg.vector_norm(packed, dim=2, keepdim=True) / math.sqrt(channels // self.heads)
            )
            q, k, v = packed.unbind(3)
            weight = torch.einsum("nhcq,nhck->nhqk", q, k / math.sqrt(q.shape[2])).softmax(dim=3)
            y = torch.einsum("nhqk,nhck->nhcq", weight, v).reshape(batch, channels, height, width)
            x = blend(x, self.project(y), 0.3)
        return x.clip(-256, 256)


class MagnitudeUNet(nn.Module):
    def __init__(self, channels=3, width=32):
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(width))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width))
        self.embed = MagnitudeConv(width, width * 2, 0)
        self.stem = MagnitudeConv(channels + 1, width)
        make = lambda a, b, **how: MagnitudeBlock(a, b, width * 2, **how)
        self.enc0, self.enc1 = make(width, width, encoder=True), make(width, width * 2, encoder=True, heads=2)
        self.dec0 = make(width * 4, width * 2, encoder=False, heads=2)
        self.dec1 = make(width * 3, width, encoder=False)
        self.out = MagnitudeConv(width, channels)
        self.out_gain = nn.Parameter(torch.ones([]))

    def forward(self, x, noise):
        angles = noise[:, None].float() * self.frequencies + self.phases
        embedding = F.silu(self.embed(torch.cos(angles) * math.sqrt(2))) / 0.596
        # A channel of ones takes the place of biases.
        x = self.stem(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))
        high = self.enc0(x, embedding)
        low = self.enc1(F.avg_pool2d(high, 2), embedding)
        x = self.dec0(balanced_concat(low, low), embedding)
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.out(self.dec1(balanced_concat(x, high), embedding), self.out_gain)


@architecture("edm_adm", ts(17, dynamic=True), dynamo(18), dynamo(20))
def edm_adm() -> Example:
    inputs = {"x": torch.randn(2, 3, 16, 16), "sigma": torch.rand(2) + 0.1, "labels": torch.eye(4)[:2]}
    return Example(EdmUNet(), inputs, dynamic=batch_only(*inputs))


@architecture("edm_ddpmpp", ts(14), dynamo(23))
def edm_ddpmpp() -> Example:
    inputs = {"x": torch.randn(2, 3, 16, 16), "sigma": torch.rand(2) + 0.1, "labels": torch.eye(4)[:2]}
    return Example(EdmUNet(adaptive=False), inputs, dynamic=batch_only(*inputs))


@architecture("edm2_magnitude", ts(17, dynamic=True), dynamo(18), dynamo(20))
def edm2_magnitude() -> Example:
    inputs = {"x": torch.randn(2, 3, 16, 16), "noise": torch.rand(2)}
    return Example(MagnitudeUNet(), inputs, dynamic=batch_only(*inputs))
