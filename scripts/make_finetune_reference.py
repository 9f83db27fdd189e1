#!/usr/bin/env python3
"""Runs twenty steps of PyTorch on the network of fixtures/ddpm_fashion16.onnx, as the reference of the trainer's tests.

    python scripts/make_finetune_reference.py OUT.npz

Loads the weights of the ONNX file into diffusers' UNet2DModel and trains it on fixed inputs: AdamW, learning rate 1e-3,
weight decay 0.01, gradients clipped to a norm of 1, and a moving average with the warm-up of diffusers' EMAModel.
OUT.npz contains the inputs of every step (x [20,4,1,16,16], t [20,4], target), the losses, and for every weight, by its
name and in its layout in the ONNX file, up to 48 evenly spaced elements (`w|NAME`, `ema|NAME`) and the largest gradient
of the first step (`g|NAME`). Needs torch, diffusers and onnx (`requirements-export.txt`).
"""

import pathlib
import sys

import numpy
import onnx
import torch
from bench_gradients import NETWORKS
from diffusers import UNet2DModel
from onnx import numpy_helper

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS, BATCH, RATE, DECAY, EMA, SHOWN = 20, 4, 1e-3, 0.01, 0.999, 48


def places(model: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """Returns the PyTorch parameter for every initializer, and how its layout differs."""
    found = {tensor.name: (tensor.name, "same") for tensor in model.graph.initializer}
    for node in model.graph.node:
        module = ".".join(part for part in node.name.split("/")[1:-1])
        for name in node.input:
            if name.startswith("onnx::MatMul"):
                found[name] = (f"{module}.weight", "transposed")
            elif name.startswith("onnx::Mul"):
                found[name] = (f"{module}.weight", "flat")
            elif name.startswith("onnx::Add"):
                found[name] = (f"{module}.bias", "flat")
    return found


def shown(values: numpy.ndarray) -> numpy.ndarray:
    flat = values.reshape(-1)
    return flat[numpy.linspace(0, flat.size - 1, min(SHOWN, flat.size)).astype(int)].astype(numpy.float32)


def loaded(model: onnx.ModelProto) -> tuple[UNet2DModel, dict[str, tuple[str, str, list[int]]]]:
    """Returns the PyTorch network with the weights of the ONNX file, and parameter, layout and shape of every
    initializer."""
    network = UNet2DModel(**NETWORKS["ddpm_fashion16"])
    parameters = dict(network.named_parameters())
    layouts = {}
    for tensor in model.graph.initializer:
        name, layout = places(model)[tensor.name]
        if name not in parameters:
            continue
        value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        value = value.T if layout == "transposed" else value
        with torch.no_grad():
            parameters[name].copy_(value.reshape(parameters[name].shape))
        layouts[tensor.name] = (name, layout, tensor.dims)
    missing = set(parameters) - {name for name, _, _ in layouts.values()}
    if missing:
        sys.exit(f"no initializer for {sorted(missing)}")
    return network, layouts


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = onnx.load(ROOT / "fixtures/ddpm_fashion16.onnx")
    network, layouts = loaded(model)
    parameters = dict(network.named_parameters())
    random = numpy.random.default_rng(5)
    x = random.standard_normal((STEPS, BATCH, 1, 16, 16)).astype(numpy.float32)
    target = random.standard_normal(x.shape).astype(numpy.float32)
    t = random.integers(0, 1000, (STEPS, BATCH))
    average = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY)
    result, losses = {"x": x, "t": t, "target": target}, []

    def in_layout(value: torch.Tensor, layout: str, dims) -> numpy.ndarray:
        value = value.detach()
        return (value.T if layout == "transposed" else value).reshape(tuple(dims)).numpy()

    for step in range(STEPS):
        optimizer.zero_grad()
        output = network(torch.from_numpy(x[step]), torch.from_numpy(t[step])).sample
        loss = torch.nn.functional.mse_loss(output, torch.from_numpy(target[step]))
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            for onnx_name, (name, _, _) in layouts.items():
                result[f"g|{onnx_name}"] = numpy.float32(parameters[name].grad.abs().max())
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA, (1 + step + 1) / (10 + step + 1))
        for name, value in average.items():
            value += (1 - decay) * (parameters[name].detach() - value)
    for onnx_name, (name, layout, dims) in layouts.items():
        result[f"w|{onnx_name}"] = shown(in_layout(parameters[name], layout, dims))
        result[f"ema|{onnx_name}"] = shown(in_layout(average[name], layout, dims))
    result["losses"] = numpy.array(losses, dtype=numpy.float64)
    numpy.savez_compressed(sys.argv[1], **result)
    print(f"{len(layouts)} weights, losses {losses[0]:.4f} to {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
