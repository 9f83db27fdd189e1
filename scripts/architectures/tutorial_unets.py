"""Small U-Nets in the manner of widely copied tutorials and first implementations.

They use what the larger code bases do not: batch norm, layer norm over images, transposed convolutions, bilinear
upsampling, max pooling, nn.MultiheadAttention, weight standardisation, depthwise convolutions, pixel shuffling,
instance norm, and odd image sizes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .guided_diffusion import timestep_embedding
from .registry import Example, architecture, batch_only, dynamo, ts


def double_convolution(channels: int, out_channels: int, middle: int | None = None) -> nn.Sequential:
    middle = middle or out_channels
    return nn.Sequential(
        nn.Conv2d(channels, middle, 3, padding=1, bias=False),
        nn.GroupNorm(1, middle),
        nn.GELU(),
        nn.Conv2d(middle, out_channels, 3, padding=1, bias=False),
        nn.GroupNorm(1, out_channels),
    )


class ResidualDouble(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.body = double_convolution(channels, channels)

    def forward(self, x):
        return F.gelu(x + self.body(x))


class TokenAttention(nn.Module):
    """nn.MultiheadAttention over pixels; its packed projection holds query, key and value."""

    def __init__(self, channels: int, heads: int = 4):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.norm = nn.LayerNorm([channels])
        self.mlp = nn.Sequential(
            nn.LayerNorm([channels]), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels)
        )

    def forward(self, x):
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).swapaxes(1, 2)
        normed = self.norm(tokens)
        tokens = self.attention(normed, normed, normed, need_weights=False)[0] + tokens
        return (self.mlp(tokens) + tokens).swapaxes(2, 1).reshape(batch, channels, height, width)


class PoolingUNet(nn.Module):
    """Max pooling down, bilinear upsampling with aligned corners, single-group norms, attention at each level."""

    def __init__(self, channels=3, width=32, classes=5):
        super().__init__()
        self.width = width
        self.label = nn.Embedding(classes, width * 2)
        self.stem, self.half = double_convolution(channels, width), width * 2
        self.down = nn.Sequential(nn.MaxPool2d(2), ResidualDouble(width), double_convolution(width, width * 2))
        self.down_time = nn.Sequential(nn.SiLU(), nn.Linear(width * 2, width * 2))
        self.attend_low = TokenAttention(width * 2)
        self.middle = nn.Sequential(double_convolution(width * 2, width * 4), double_convolution(width * 4, width * 2))
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.up = nn.Sequential(ResidualDouble(width * 3), double_convolution(width * 3, width, width * 3 // 2))
        self.up_time = nn.Sequential(nn.SiLU(), nn.Linear(width * 2, width))
        self.attend_high = TokenAttention(width)
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, x, t, y):
        embedding = timestep_embedding(t, self.width * 2) + self.label(y)
        high = self.stem(x)
        low = self.down(high)
        # Repeated over the image rather than broadcast.
        low = low + self.down_time(embedding)[:, :, None, None].repeat(1, 1, low.shape[-2], low.shape[-1])
        low = self.middle(self.attend_low(low))
        merged = self.up(torch.cat([high, self.upsample(low)], dim=1))
        merged = merged + self.up_time(embedding)[:, :, None, None].repeat(1, 1, merged.shape[-2], merged.shape[-1])
        return self.out(self.attend_high(merged))


def normed_convolution(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out_channels, 3, 1, 1), nn.BatchNorm2d(out_channels), nn.GELU())


class BatchNormUNet(nn.Module):
    """A context U-Net: batch norm, a bottleneck pooled to a vector, embeddings that multiply and add."""

    def __init__(self, channels=1, width=32, classes=5):
        super().__init__()
        self.first, self.second = normed_convolution(channels, width), normed_convolution(width, width)
        self.down1 = nn.Sequential(normed_convolution(width, width), nn.MaxPool2d(2))
        self.down2 = nn.Sequential(normed_convolution(width, width * 2), nn.MaxPool2d(2))
        self.to_vector = nn.Sequential(nn.AvgPool2d(7), nn.GELU())
        mlp = lambda a, b: nn.Sequential(nn.Linear(a, b), nn.GELU(), nn.Linear(b, b))
        self.time1, self.time2 = mlp(1, width * 2), mlp(1, width)
        self.label1, self.label2 = mlp(classes, width * 2), mlp(classes, width)
        self.up0 = nn.Sequential(nn.ConvTranspose2d(width * 2, width * 2, 7, 7), nn.GroupNorm(8, width * 2), nn.ReLU())
        self.up1 = nn.Sequential(nn.ConvTranspose2d(width * 4, width, 2, 2), normed_convolution(width, width))
        self.up2 = nn.Sequential(nn.ConvTranspose2d(width * 2, width, 2, 2), normed_convolution(width, width))
        self.out = nn.Sequential(
            nn.Conv2d(width * 2, width, 3, 1, 1),
            nn.GroupNorm(8, width),
            nn.PReLU(width),
            nn.Conv2d(width, channels, 3, 1, 1),
        )

    def forward(self, x, t, label):
        first = self.first(x)
        stem = (first + self.second(first)) / 1.414
        down1 = self.down1(stem)
        down2 = self.down2(down1)
        low = self.up0(self.to_vector(down2))
        scale1, shift1 = (f(v).view(-1, low.shape[1], 1, 1) for f, v in ((self.label1, label), (self.time1, t)))
        mid = self.up1(torch.cat((scale1 * low + shift1, down2), 1))
        scale2, shift2 = (f(v).view(-1, mid.shape[1], 1, 1) for f, v in ((self.label2, label), (self.time2, t)))
        high = self.up2(torch.cat((scale2 * mid + shift2, down1), 1))
        return self.out(torch.cat((high, stem), 1))


class StandardisedConv(nn.Conv2d):
    """Weights are standardised for each output channel inside the graph, before every use."""

    def forward(self, x):
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        variance = self.weight.var(dim=(1, 2, 3), keepdim=True, unbiased=False)
        weight = (self.weight - mean) * (variance + 1e-5).rsqrt()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ChannelNorm(nn.Module):
    """Layer norm over the channel axis of an image, written out."""

    def __init__(self, channels: int):
        super().__init__()
        self.g, self.b = nn.Parameter(torch.ones(1, channels, 1, 1)), nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        variance, mean = x.var(dim=1, unbiased=False, keepdim=True), x.mean(dim=1, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * self.g + self.b


class DepthwiseBlock(nn.Module):
    """A ConvNeXt block: depthwise convolution, channel norm, expansion by four."""

    def __init__(self, channels: int, out_channels: int, time_width: int):
        super().__init__()
        self.time = nn.Sequential(nn.GELU(), nn.Linear(time_width, channels))
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.body = nn.Sequential(
            ChannelNorm(channels),
            StandardisedConv(channels, out_channels * 2, 3, padding=1),
            nn.GELU(),
            ChannelNorm(out_channels * 2),
            StandardisedConv(out_channels * 2, out_channels, 3, padding=1),
        )
        self.skip = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x, embedding):
        hidden = self.depthwise(x) + self.time(embedding)[:, :, None, None]
        return self.body(hidden) + self.skip(x)


class ShuffleUNet(nn.Module):
    """ConvNeXt blocks, pixel unshuffling down and pixel shuffling up."""

    def __init__(self, channels=3, width=24):
        super().__init__()
        self.width, time_width = width, width * 4
        self.time = nn.Sequential(nn.Linear(width, time_width), nn.GELU(), nn.Linear(time_width, time_width))
        self.stem = nn.Conv2d(channels, width, 7, padding=3)
        self.high, self.low = DepthwiseBlock(width, width, time_width), DepthwiseBlock(width * 2, width * 2, time_width)
        self.shrink = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(width * 4, width * 2, 1))
        self.grow = nn.Sequential(nn.Conv2d(width * 2, width * 4, 1), nn.SiLU(), nn.PixelShuffle(2))
        self.last, self.out = DepthwiseBlock(width * 2, width, time_width), nn.Conv2d(width, channels, 1)

    def forward(self, x, t):
        embedding = self.time(timestep_embedding(t, self.width))
        high = self.high(self.stem(x), embedding)
        low = self.low(self.shrink(high), embedding)
        return self.out(self.last(torch.cat([self.grow(low), high], dim=1), embedding))


class ScoreNet(nn.Module):
    """The score-matching tutorial's network: unpadded strided convolutions, their transposes, odd sizes."""

    def __init__(self, widths=(16, 32, 48, 64), embed=32):
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(embed // 2) * 30, requires_grad=False)
        self.embed = nn.Sequential(nn.Linear(embed, embed), nn.SiLU())
        strides, sizes = (1, 2, 2, 2), (1, *widths)
        self.down = nn.ModuleList(nn.Conv2d(sizes[i], sizes[i + 1], 3, strides[i], bias=False) for i in range(4))
        self.down_dense = nn.ModuleList(nn.Linear(embed, w) for w in widths)
        self.down_norm = nn.ModuleList(nn.GroupNorm(4, w) for w in widths)
        up = [(widths[3], widths[2], 0), (widths[2] * 2, widths[1], 1), (widths[1] * 2, widths[0], 1)]
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 3, 2, bias=False, output_padding=p) for a, b, p in up)
        self.up_dense = nn.ModuleList(nn.Linear(embed, b) for _, b, _ in up)
        self.up_norm = nn.ModuleList(nn.InstanceNorm2d(b, affine=True) for _, b, _ in up)
        self.out = nn.ConvTranspose2d(widths[0] * 2, 1, 3, 1)

    def forward(self, x, t):
        angles = t[:, None] * self.frequencies[None] * 2 * math.pi
        embedding = self.embed(torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1))
        skips = []
        for conv, dense, norm in zip(self.down, self.down_dense, self.down_norm, strict=True):
            x = F.silu(norm(conv(x) + dense(embedding)[..., None, None]))
            skips.append(x)
        skips.pop()
        for conv, dense, norm in zip(self.up, self.up_dense, self.up_norm, strict=True):
            x = F.silu(norm(conv(x) + dense(embedding)[..., None, None]))
            x = torch.cat([x, skips.pop()], dim=1)
        deviation = torch.sqrt((25.0 ** (2 * t) - 1.0) / 2.0 / math.log(25.0))
        return self.out(x) / deviation[:, None, None, None]


TIMESTEPS = torch.tensor([3, 500])


@architecture("tutorial_pooling", ts(17, dynamic=True), dynamo(20))
def tutorial_pooling() -> Example:
    inputs = {"x": torch.randn(2, 3, 16, 16), "t": TIMESTEPS, "y": torch.tensor([1, 2])}
    return Example(PoolingUNet(), inputs, dynamic=batch_only(*inputs))


@architecture("tutorial_batch_norm", ts(17, dynamic=True), dynamo(20))
def tutorial_batch_norm() -> Example:
    inputs = {"x": torch.randn(2, 1, 28, 28), "t": torch.rand(2, 1), "label": torch.eye(5)[:2]}
    return Example(BatchNormUNet(), inputs, dynamic=batch_only(*inputs))


@architecture("tutorial_convnext_shuffle", ts(17, dynamic=True), dynamo(20))
def tutorial_convnext_shuffle() -> Example:
    inputs = {"x": torch.randn(2, 3, 16, 16), "t": TIMESTEPS}
    return Example(ShuffleUNet(), inputs, dynamic=batch_only(*inputs))


@architecture("tutorial_score_net", ts(17, dynamic=True), dynamo(20))
def tutorial_score_net() -> Example:
    inputs = {"x": torch.randn(2, 1, 28, 28), "t": torch.rand(2) + 0.1}
    return Example(ScoreNet(), inputs, dynamic=batch_only(*inputs))
