#!/usr/bin/env python3
"""Computes weights after three steps of PyTorch's optimizers with clipping and a moving average, in float64.

    python scripts/reference_optimizer.py

Prints the numbers that the test of `src/finetune/optimizer.rs` expects: a weight of three elements whose gradient is
three times the weight, learning rate 0.1, weight decay 0.01; AdamW with the gradients clipped to a norm of 1 and an
average with the warm-up of diffusers' EMAModel, and Adam without clipping. Needs torch (`requirements-export.txt`).
"""

import torch

RATE, DECAY, STEPS, EMA = 0.1, 0.01, 3, 0.999


def run(kind: type, clip: float | None) -> tuple[list[float], list[float]]:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    average = weight.detach().clone()
    optimizer = kind([weight], lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY)
    for step in range(1, STEPS + 1):
        weight.grad = 3.0 * weight.detach()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([weight], clip)
        optimizer.step()
        average += (1 - min(EMA, (1 + step) / (10 + step))) * (weight.detach() - average)
    return weight.tolist(), average.tolist()


if __name__ == "__main__":
    print("AdamW, clipped:", *run(torch.optim.AdamW, 1.0))
    print("Adam:          ", *run(torch.optim.Adam, None))
