#!/usr/bin/env python3
"""Computes losses and gradients of the distillation terms in PyTorch, as the reference of the trainer's tests.

    python scripts/make_distill_reference.py OUT.npz

Loads the weights of fixtures/ddpm_fashion16.onnx into diffusers' UNet2DModel and computes, in float64, the terms of
`docs/finetune.md` on fixed inputs with artificial values of a teacher: the output (`distill`), inner values
(`features`), and the derivative of the output along a direction (`jacobian`), by the same centred difference as the
trainer. OUT.npz contains the inputs (x, t, target, teacher, direction, slopes, and the inner values `feature|NAME` by
their names in the ONNX file), the losses, and for every weight, in the order of `names`, up to 8 evenly spaced elements
of its gradient, `gradients` [terms, weights, 8], with the largest element, `largest` [terms, weights]. Needs torch,
diffusers and onnx (`requirements-export.txt`).
"""

import pathlib
import sys

import numpy
import onnx
import torch
from make_finetune_reference import loaded

ROOT = pathlib.Path(__file__).resolve().parent.parent
BATCH, SHOWN, DISTILL, STEP = 2, 8, 0.7, 0.16
# Modules of PyTorch, and the value in the ONNX file that each computes.
FEATURES = {
    "down_blocks.1.resnets.0": "/down_blocks.1/resnets.0/Div_output_0",
    "mid_block.resnets.1": "/mid_block/resnets.1/Div_output_0",
}


def main() -> None:
    torch.set_num_threads(1)
    network, layouts = loaded(onnx.load(ROOT / "fixtures/ddpm_fashion16.onnx"))
    network.double()
    parameters = dict(network.named_parameters())
    inner = {}
    for module in FEATURES:
        hook = lambda _module, _inputs, output, name=module: inner.__setitem__(name, output)
        network.get_submodule(module).register_forward_hook(hook)
    random = numpy.random.default_rng(7)

    def normal(*shape: int) -> numpy.ndarray:
        return random.standard_normal(shape).astype(numpy.float32)

    x, target, teacher = (normal(BATCH, 1, 16, 16) for _ in range(3))
    direction = normal(BATCH, 1, 16, 16)
    direction /= numpy.linalg.norm(direction.reshape(BATCH, -1), axis=1).reshape(-1, 1, 1, 1)
    t = random.integers(100, 900, BATCH)
    slopes = random.uniform(0.5, 3.0, BATCH).astype(numpy.float32)
    result = dict(x=x, t=t, target=target, teacher=teacher, direction=direction, slopes=slopes)
    step = numpy.float64(numpy.float32(STEP))

    def of(value: numpy.ndarray) -> torch.Tensor:
        return torch.from_numpy(value.astype(numpy.float64))

    def output(values: torch.Tensor) -> torch.Tensor:
        return network(values, torch.from_numpy(t)).sample

    with torch.no_grad():
        output(of(x))
    features = {name: (inner[name].numpy() + 0.5 * normal(*inner[name].shape)).astype(numpy.float32) for name in FEATURES}
    result |= {f"feature|{FEATURES[name]}": value for name, value in features.items()}

    def distill() -> torch.Tensor:
        found = output(of(x))
        to_target, to_teacher = ((found - of(value)).square().mean() for value in (target, teacher))
        return (1 - DISTILL) * to_target + DISTILL * to_teacher

    def by_features() -> torch.Tensor:
        output(of(x))
        total = 0.0
        for name, value in features.items():
            rows = of(value).flatten(1)
            difference = (inner[name].flatten(1) - rows).square().mean(1) / rows.square().mean(1)
            total = total + difference.mean() / len(features)
        return total

    def jacobian() -> torch.Tensor:
        moved = step * of(direction)
        slope = (output(of(x) + moved) - output(of(x) - moved)) / (2 * step)
        return (slope.flatten(1).square().sum(1) - of(slopes)).square().mean()

    losses, shown, largest = [], [], []
    for loss in (distill, by_features, jacobian):
        network.zero_grad()
        value = loss()
        value.backward()
        losses.append(value.item())
        places, most = [], []
        for name, layout, dims in layouts.values():
            gradient = parameters[name].grad
            gradient = torch.zeros_like(parameters[name]) if gradient is None else gradient
            flat = (gradient.T if layout == "transposed" else gradient).reshape(tuple(dims)).flatten().numpy()
            places.append(flat[numpy.linspace(0, flat.size - 1, SHOWN).astype(int)])
            most.append(numpy.abs(flat).max())
        shown.append(places)
        largest.append(most)
    result["losses"] = numpy.array(losses)
    result["gradients"] = numpy.array(shown, dtype=numpy.float32)
    result["largest"] = numpy.array(largest, dtype=numpy.float32)
    result["names"] = numpy.frombuffer("\n".join(layouts).encode(), dtype=numpy.uint8)
    numpy.savez_compressed(sys.argv[1], **result)
    print(f"{len(layouts)} weights, losses {losses}")


if __name__ == "__main__":
    main()
