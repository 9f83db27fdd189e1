"""The conditioned U-Net of latent-diffusion, re-implemented from its published structure.

It is guided-diffusion's U-Net with spatial transformers: self-attention, cross-attention and a GEGLU feed-forward,
with einsum in two forms and heads folded into the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from .guided_diffusion import Downsample, ResBlock, Upsample, norm, timestep_embedding
from .registry import Example, architecture, batch_only, dynamo, ts


class GatedGelu(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(width, hidden * 2)

    def forward(self, x):
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class CrossAttention(nn.Module):
    def __init__(self, width: int, context_width: int | None, heads: int, head_width: int):
        super().__init__()
        inner = heads * head_width
        self.heads, self.scale = heads, head_width**-0.5
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(context_width or width, inner, bias=False)
        self.to_v = nn.Linear(context_width or width, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width), nn.Dropout(0.1))

    def forward(self, x, context=None, mask=None):
        context = x if context is None else context
        q, k, v = (
            rearrange(value, "b n (h d) -> (b h) n d", h=self.heads)
            for value in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        scores = torch.einsum("b i d, b j d -> b i j", q, k) * self.scale
        if mask is not None:
            keep = repeat(mask, "b j -> (b h) 1 j", h=self.heads)
            scores = scores.masked_fill(~keep, -torch.finfo(scores.dtype).max)
        out = torch.einsum("b i j, b j d -> b i d", scores.softmax(dim=-1), v)
        return self.to_out(rearrange(out, "(b h) n d -> b n (h d)", h=self.heads))


class TransformerLayer(nn.Module):
    def __init__(self, width, heads, head_width, context_width):
        super().__init__()
        self.attn1 = CrossAttention(width, None, heads, head_width)
        self.attn2 = CrossAttention(width, context_width, heads, head_width)
        self.ff = nn.Sequential(GatedGelu(width, width * 4), nn.Dropout(0.1), nn.Linear(width * 4, width))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x, context, mask):
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context, mask) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    def __init__(self, channels, heads, head_width, depth, context_width):
        super().__init__()
        inner = heads * head_width
        self.norm = norm(channels)
        self.proj_in = nn.Conv2d(channels, inner, 1)
        self.layers = nn.ModuleList(TransformerLayer(inner, heads, head_width, context_width) for _ in range(depth))
        self.proj_out = nn.Conv2d(inner, channels, 1)

    def forward(self, x, context, mask):
        height, width = x.shape[2:]
        hidden = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for layer in self.layers:
            hidden = layer(hidden, context, mask)
        return x + self.proj_out(rearrange(hidden, "b (h w) c -> b c h w", h=height, w=width))


class LatentUNet(nn.Module):
    def __init__(self, channels=4, width=32, multipliers=(1, 2), head_width=16, depth=1, context_width=24):
        super().__init__()
        self.width = width
        time_width = width * 4
        self.time = nn.Sequential(nn.Linear(width, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        wide = [width * multiplier for multiplier in multipliers]
        make = lambda a, b: ResBlock(a, time_width, b, scale_shift=False)
        attend = lambda c: SpatialTransformer(c, c // head_width, head_width, depth, context_width)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        sizes, current = [width], width
        for level, out in enumerate(wide):
            last = level == len(wide) - 1
            step = None if last else Downsample(out, True)
            self.down.append(nn.ModuleList([make(current, out), attend(out), step or nn.Identity()]))
            sizes += [out] if last else [out, out]
            current = out
        self.middle_in, self.middle_attend, self.middle_out = (
            make(current, current),
            attend(current),
            make(current, current),
        )
        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(wide))):
            for index in range(2):
                step = Upsample(out, True) if level and index else nn.Identity()
                self.up.append(nn.ModuleList([make(current + sizes.pop(), out), attend(out), step]))
                current = out
        self.out = nn.Sequential(norm(current), nn.SiLU(), nn.Conv2d(current, channels, 3, padding=1))

    def forward(self, x, timesteps, context, mask=None):
        embedding = self.time(timestep_embedding(timesteps, self.width))
        x = self.stem(x)
        skips = [x]
        for residual, attend, step in self.down:
            x = attend(residual(x, embedding), context, mask)
            skips.append(x)
            if not isinstance(step, nn.Identity):
                x = step(x)
                skips.append(x)
        x = self.middle_out(self.middle_attend(self.middle_in(x, embedding), context, mask), embedding)
        for residual, attend, step in self.up:
            x = step(attend(residual(torch.cat([x, skips.pop()], dim=1), embedding), context, mask))
        return self.out(x)


def inputs() -> dict[str, torch.Tensor]:
    return {"x": torch.randn(2, 4, 16, 16), "timesteps": torch.tensor([3, 500]), "context": torch.randn(2, 7, 24)}


@architecture("latent_unet", ts(17, dynamic=True), dynamo(18), dynamo(20))
def latent_unet() -> Example:
    axes = {**batch_only("timesteps"), "x": {0: "batch", 2: "height", 3: "width"}, "context": {0: "batch", 1: "length"}}
    return Example(LatentUNet(), inputs(), dynamic=axes)


@architecture("latent_unet_masked", ts(14), ts(17), dynamo(20))
def latent_unet_masked() -> Example:
    """Two transformer layers a block and a boolean mask over the context."""
    values = {**inputs(), "mask": torch.ones(2, 7, dtype=torch.bool)}
    return Example(LatentUNet(depth=2), values, dynamic=batch_only(*values))
