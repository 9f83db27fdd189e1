"""Diffusion transformers and policies as their original code bases write them, re-implemented from their structure.

DiT and U-ViT with one fused linear layer for query, key and value, a rotary RMS-norm SwiGLU block as in Lightning-DiT,
motion diffusion on nn.TransformerEncoder, and the FiLM-conditioned
one-dimensional U-Net of diffusion policy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .guided_diffusion import timestep_embedding
from .registry import Example, architecture, batch_only, dynamo, ts


class FusedAttention(nn.Module):
    def __init__(self, width: int, heads: int, fused_kernel: bool = True, rotary: bool = False):
        super().__init__()
        self.heads, self.fused_kernel, self.rotary = heads, fused_kernel, rotary
        self.qkv, self.proj = nn.Linear(width, width * 3), nn.Linear(width, width)
        if rotary:
            self.q_norm, self.k_norm = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)

    def rotate(self, x, cos, sin):
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-b, a], dim=-1) * sin

    def forward(self, x, cos=None, sin=None):
        batch, length, width = x.shape
        q, k, v = (
            self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        if self.rotary:
            q, k = self.rotate(self.q_norm(q), cos, sin), self.rotate(self.k_norm(k), cos, sin)
        if self.fused_kernel:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = (q * (width // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(batch, length, width))


class AdaptiveBlock(nn.Module):
    def __init__(self, width: int, heads: int, modern: bool):
        super().__init__()
        self.modern = modern
        norm = nn.RMSNorm(width) if modern else nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        other = nn.RMSNorm(width) if modern else nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm1, self.norm2 = norm, other
        self.attention = FusedAttention(width, heads, fused_kernel=modern, rotary=modern)
        if modern:
            self.w12, self.w3 = nn.Linear(width, width * 4), nn.Linear(width * 2, width)
        else:
            self.mlp = nn.Sequential(
                nn.Linear(width, width * 4), nn.GELU(approximate="tanh"), nn.Linear(width * 4, width)
            )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, width * 6))

    def feed_forward(self, x):
        if not self.modern:
            return self.mlp(x)
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)

    def forward(self, x, condition, cos, sin):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=1)
        attended = self.attention(self.norm1(x) * (1 + scale1[:, None]) + shift1[:, None], cos, sin)
        x = x + gate1.unsqueeze(1) * attended
        return x + gate2.unsqueeze(1) * self.feed_forward(self.norm2(x) * (1 + scale2[:, None]) + shift2[:, None])


class NativeDiT(nn.Module):
    def __init__(self, channels=4, width=64, heads=4, depth=2, classes=5, size=8, modern=False):
        super().__init__()
        self.channels, self.width, self.side = channels, width, size // 2
        self.patch = nn.Conv2d(channels, width, 2, stride=2)
        self.position = nn.Parameter(torch.randn(1, self.side**2, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes, width)
        self.blocks = nn.ModuleList(AdaptiveBlock(width, heads, modern) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, width * 2))
        self.out = nn.Linear(width, 2 * 2 * channels * 2)
        angles = torch.arange(self.side**2)[:, None] / 100 ** (
            torch.arange(width // heads // 2) / (width // heads // 2)
        )
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, dim=-1))
        self.register_buffer("sin", torch.cat([angles.sin()] * 2, dim=-1))

    def forward(self, x, t, y):
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        condition = self.time(timestep_embedding(t, self.width)) + self.label(y)
        for block in self.blocks:
            tokens = block(tokens, condition, self.cos, self.sin)
        shift, scale = self.modulation(condition).chunk(2, dim=1)
        tokens = self.out(self.norm(tokens) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1))
        tokens = tokens.reshape(x.shape[0], self.side, self.side, 2, 2, self.channels * 2)
        return torch.einsum("nhwpqc->nchpwq", tokens).reshape(x.shape[0], self.channels * 2, *x.shape[2:])


class NativeUViT(nn.Module):
    """Time and label are tokens; long skips concatenate token features."""

    def __init__(self, channels=4, width=64, heads=4, classes=5, size=8):
        super().__init__()
        self.channels, self.width, self.side = channels, width, size // 2
        self.patch, self.label = nn.Conv2d(channels, width, 2, stride=2), nn.Embedding(classes, width)
        self.position = nn.Parameter(torch.randn(1, self.side**2 + 2, width) * 0.02)
        layer = lambda: nn.ModuleList(
            [
                nn.LayerNorm(width),
                FusedAttention(width, heads),
                nn.LayerNorm(width),
                nn.Sequential(nn.Linear(width, width * 4), nn.GELU(), nn.Linear(width * 4, width)),
            ]
        )
        self.down, self.middle, self.up = layer(), layer(), layer()
        self.skip = nn.Linear(width * 2, width)
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 4 * channels)
        self.final = nn.Conv2d(channels, channels, 3, padding=1)

    def block(self, layer, x):
        x = x + layer[1](layer[0](x))
        return x + layer[3](layer[2](x))

    def forward(self, x, t, y):
        image = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.label(y)[:, None], timestep_embedding(t, self.width)[:, None], image], dim=1)
        first = self.block(self.down, tokens + self.position)
        tokens = self.block(self.middle, first)
        tokens = self.block(self.up, self.skip(torch.cat([tokens, first], dim=-1)))
        tokens = self.out(self.norm(tokens))[:, 2:]
        tokens = tokens.reshape(x.shape[0], self.side, self.side, 2, 2, self.channels).permute(0, 5, 1, 3, 2, 4)
        return self.final(tokens.reshape(x.shape))


class MotionDenoiser(nn.Module):
    """A human-motion denoiser on nn.TransformerEncoder, which packs query, key and value into one weight."""

    def __init__(self, features=20, width=64):
        super().__init__()
        self.width = width
        self.embed, self.out = nn.Linear(features, width), nn.Linear(width, features)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        layer = nn.TransformerEncoderLayer(width, 4, 96, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.position = nn.Parameter(torch.randn(13, 1, width))

    def forward(self, x, t):
        frames = self.embed(x.permute(1, 0, 2))
        tokens = torch.cat([self.time(timestep_embedding(t, self.width))[None], frames], dim=0) + self.position
        return self.out(self.encoder(tokens)[1:]).permute(1, 0, 2)


class FilmBlock(nn.Module):
    def __init__(self, channels: int, out_channels: int, condition: int):
        super().__init__()
        layer = lambda a: nn.Sequential(
            nn.Conv1d(a, out_channels, 5, padding=2), nn.GroupNorm(8, out_channels), nn.Mish()
        )
        self.first, self.second = layer(channels), layer(out_channels)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, out_channels * 2))
        self.out_channels = out_channels
        self.skip = nn.Conv1d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x, condition):
        film = self.film(condition).reshape(x.shape[0], 2, self.out_channels, 1)
        return self.second(film[:, 0] * self.first(x) + film[:, 1]) + self.skip(x)


class PolicyUNet(nn.Module):
    """Diffusion policy: actions over time, conditioned on an observation by FiLM."""

    def __init__(self, action=7, observation=10, width=32):
        super().__init__()
        self.width, c = width, width + observation
        self.time = nn.Sequential(nn.Linear(width, width * 4), nn.Mish(), nn.Linear(width * 4, width))
        self.down0, self.shrink = FilmBlock(action, width, c), nn.Conv1d(width, width, 3, 2, 1)
        self.down1, self.middle = FilmBlock(width, width * 2, c), FilmBlock(width * 2, width * 2, c)
        self.up0, self.grow = FilmBlock(width * 4, width, c), nn.ConvTranspose1d(width, width, 4, 2, 1)
        self.up1, self.out = FilmBlock(width * 2, width, c), nn.Conv1d(width, action, 1)

    def forward(self, sample, t, observation):
        condition = torch.cat([self.time(timestep_embedding(t, self.width)), observation], dim=-1)
        high = self.down0(sample.transpose(1, 2), condition)
        low = self.down1(self.shrink(high), condition)
        x = self.up0(torch.cat((self.middle(low, condition), low), dim=1), condition)
        x = self.up1(torch.cat((self.grow(x), high), dim=1), condition)
        return self.out(x).transpose(1, 2)


def class_inputs() -> dict[str, torch.Tensor]:
    return {"x": torch.randn(2, 4, 8, 8), "t": torch.tensor([3, 500]), "y": torch.tensor([1, 2])}


@architecture("native_dit", ts(17, dynamic=True), dynamo(18), dynamo(20))
def native_dit() -> Example:
    return Example(NativeDiT(), class_inputs(), dynamic=batch_only(*class_inputs()))


@architecture("lightning_dit", ts(17), dynamo(20), dynamo(23))
def lightning_dit() -> Example:
    return Example(NativeDiT(modern=True), class_inputs(), dynamic=batch_only(*class_inputs()))


@architecture("native_uvit", ts(17, dynamic=True), dynamo(20))
def native_uvit() -> Example:
    return Example(NativeUViT(), class_inputs(), dynamic=batch_only(*class_inputs()))


@architecture("motion_encoder", ts(17), dynamo(20))
def motion_encoder() -> Example:
    inputs = {"x": torch.randn(2, 12, 20), "t": torch.tensor([3, 500])}
    return Example(MotionDenoiser(), inputs, dynamic=batch_only(*inputs))


@architecture("policy_unet1d", ts(17, dynamic=True), dynamo(20))
def policy_unet1d() -> Example:
    inputs = {"sample": torch.randn(2, 16, 7), "t": torch.tensor([3, 500]), "observation": torch.randn(2, 10)}
    return Example(PolicyUNet(), inputs, dynamic=batch_only(*inputs))
