"""A diffusion transformer (Peebles and Xie 2023) with adaLN-zero, conditioned on a class."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, DEPTH, HEADS, PATCH, CONDITION = 128, 6, 4, 4, 64
SIZE = 16
# The row of the label table for "no class", for classifier-free guidance.
NO_CLASS = 10


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class Block(nn.Module):
    """Attention and a feed-forward network, both shifted, scaled and gated by the conditioning."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)
        self.adaln = nn.Linear(CONDITION, 6 * WIDTH)
        nn.init.zeros_(self.adaln.weight)
        nn.init.zeros_(self.adaln.bias)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, WIDTH))

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(condition).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attention(modulate(self.norm1(x), shift1, scale1))
        hidden = F.gelu(self.fc1(modulate(self.norm2(x), shift2, scale2)), approximate="tanh")
        return x + gate2.unsqueeze(1) * self.fc2(hidden)


class ConditionalDiT(nn.Module):
    """sample [n, 1, 16, 16], timestep [n] from 0 to 1000, class_labels int64 [n] -> velocity like the sample."""

    def __init__(self) -> None:
        super().__init__()
        tokens = (SIZE // PATCH) ** 2
        self.patch = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, WIDTH))
        self.time1 = nn.Linear(CONDITION, CONDITION)
        self.time2 = nn.Linear(CONDITION, CONDITION)
        self.label = nn.Embedding(NO_CLASS + 1, CONDITION)
        nn.init.normal_(self.label.weight, std=0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False, eps=1e-6)
        self.adaln = nn.Linear(CONDITION, 2 * WIDTH)
        self.out = nn.Linear(WIDTH, PATCH * PATCH)
        for layer in (self.adaln, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        half = CONDITION // 2
        frequencies = torch.exp(-math.log(10000) / half * torch.arange(half))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        angles = timestep[:, None] * self.frequencies
        time = self.time2(F.silu(self.time1(torch.cat([angles.cos(), angles.sin()], dim=1))))
        condition = F.silu(time + self.label(class_labels))
        x = self.patch(sample).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.adaln(condition).chunk(2, dim=1)
        x = self.out(modulate(self.norm(x), shift, scale))
        side = SIZE // PATCH
        x = x.view(-1, side, side, PATCH, PATCH).permute(0, 1, 3, 2, 4)
        return x.reshape(-1, 1, SIZE, SIZE)
