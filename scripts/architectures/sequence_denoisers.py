"""Denoisers of sound, tables and tokens: gated dilated convolutions, residual MLPs, and masked-token transformers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .guided_diffusion import timestep_embedding
from .registry import Example, architecture, batch_only, dynamo, ts

TIMESTEPS = torch.tensor([3, 500])


class GatedResidual(nn.Module):
    """DiffWave's layer: dilated convolution, tanh times sigmoid of two halves, residual and skip from one output."""

    def __init__(self, channels: int, mels: int, dilation: int, time_width: int):
        super().__init__()
        self.dilated = nn.Conv1d(channels, channels * 2, 3, padding=dilation, dilation=dilation)
        self.time = nn.Linear(time_width, channels)
        self.condition = nn.Conv1d(mels, channels * 2, 1)
        self.output = nn.Conv1d(channels, channels * 2, 1)

    def forward(self, x, embedding, mel):
        hidden = self.dilated(x + self.time(embedding).unsqueeze(-1)) + self.condition(mel)
        gate, value = torch.chunk(hidden, 2, dim=1)
        residual, skip = torch.chunk(self.output(torch.sigmoid(gate) * torch.tanh(value)), 2, dim=1)
        return (x + residual) / math.sqrt(2.0), skip


class WaveDenoiser(nn.Module):
    def __init__(self, channels=32, mels=12, layers=4, time_width=64):
        super().__init__()
        self.stem, self.time_width = nn.Conv1d(1, channels, 1), time_width
        self.time = nn.Sequential(
            nn.Linear(time_width, time_width), nn.SiLU(), nn.Linear(time_width, time_width), nn.SiLU()
        )
        # The spectrogram is stretched to the waveform's length by two transposed convolutions.
        stretch = lambda: nn.ConvTranspose2d(1, 1, (3, 8), stride=(1, 4), padding=(1, 2))
        self.stretch = nn.ModuleList([stretch(), stretch()])
        self.layers = nn.ModuleList(GatedResidual(channels, mels, 2 ** (i % 3), time_width) for i in range(layers))
        self.skip, self.out = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, 1, 1)

    def forward(self, audio, t, mel):
        x = F.relu(self.stem(audio.unsqueeze(1)))
        embedding = self.time(timestep_embedding(t, self.time_width))
        mel = mel.unsqueeze(1)
        for layer in self.stretch:
            mel = F.leaky_relu(layer(mel), 0.4)
        mel = mel.squeeze(1)
        total = None
        for layer in self.layers:
            x, skip = layer(x, embedding, mel)
            total = skip if total is None else skip + total
        return self.out(F.relu(self.skip(total / math.sqrt(len(self.layers))))).squeeze(1)


class TableDenoiser(nn.Module):
    """A residual MLP over one row: layer norm, ReLU, and the time embedding added after the first layer."""

    def __init__(self, features=11, width=64, layers=3):
        super().__init__()
        self.width = width
        self.stem, self.time = nn.Linear(features, width), nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.label = nn.Embedding(5, width)
        block = lambda: nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width * 2), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width * 2, width)
        )
        self.blocks = nn.ModuleList(block() for _ in range(layers))
        self.out = nn.Sequential(nn.BatchNorm1d(width), nn.LeakyReLU(0.2), nn.Linear(width, features))

    def forward(self, x, t, y):
        x = self.stem(x) + self.time(timestep_embedding(t, self.width)) + F.silu(self.label(y))
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


class TokenDenoiser(nn.Module):
    """Discrete diffusion over tokens; the output layer shares the embedding's weight."""

    def __init__(self, vocabulary=40, width=64, heads=4, length=12):
        super().__init__()
        self.width, self.heads = width, heads
        self.embed, self.position = nn.Embedding(vocabulary, width), nn.Parameter(torch.randn(length, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.q, self.k, self.v, self.o = (
            nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2)) for _ in range(4)
        )
        self.up, self.down = (
            nn.ModuleList(nn.Linear(a, b) for _ in range(2)) for a, b in ((width, width * 4), (width * 4, width))
        )

    def attend(self, x, layer: int):
        split = lambda v: v.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q, k, v = (split(m[layer](x)) for m in (self.q, self.k, self.v))
        weight = (torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.size(-1))).softmax(-1)
        return self.o[layer](torch.matmul(weight, v).transpose(1, 2).flatten(2))

    def forward(self, tokens, t):
        x = self.embed(tokens) + self.position + self.time(timestep_embedding(t, self.width)).unsqueeze(1)
        for layer in range(2):
            x = x + self.attend(self.norms[2 * layer](x), layer)
            x = x + self.down[layer](F.gelu(self.up[layer](self.norms[2 * layer + 1](x))))
        return F.linear(self.norms[4](x), self.embed.weight)


@architecture("wave_denoiser", ts(17, dynamic=True), dynamo(20))
def wave_denoiser() -> Example:
    inputs = {"audio": torch.randn(2, 128), "t": TIMESTEPS, "mel": torch.randn(2, 12, 8)}
    return Example(WaveDenoiser(), inputs, dynamic=batch_only(*inputs))


@architecture("table_denoiser", ts(17, dynamic=True), dynamo(20))
def table_denoiser() -> Example:
    inputs = {"x": torch.randn(2, 11), "t": TIMESTEPS, "y": torch.tensor([1, 2])}
    return Example(TableDenoiser(), inputs, dynamic=batch_only(*inputs))


@architecture("token_denoiser", ts(17, dynamic=True), dynamo(20))
def token_denoiser() -> Example:
    inputs = {"tokens": torch.randint(0, 40, (2, 12)), "t": TIMESTEPS}
    return Example(TokenDenoiser(), inputs, outputs=("logits",), dynamic=batch_only(*inputs))
