"""Cuts and trains the network of recovery_table.py with Torch-Pruning and PyTorch: rows of the tables of docs/quality.md.

    python scripts/torch_pruning_peer.py TOOL [--shares 0.559,0.251] [--criteria diff-pruning,magnitude,random] [--steps 300]
        [--features NET.onnx] [--samples 512] [--jobs 2] [--out FOLDER]

Loads fixtures/ddpm_fashion16.onnx into diffusers' UNet2DModel and cuts it with Torch-Pruning like the script of
Diff-Pruning: gradients of 32 training images at every tenth timestep, summed until the loss falls below 0.05 of its
maximum; `MagnitudePruner` in one step, without the output layer, at the ratio that leaves the given share of the MACs.
Then PyTorch trains it with the default recipe of `finetune`: AdamW at 1e-3, cosine schedule with a warm-up of a tenth,
batch 32, gradients clipped to 1, a moving average of 0.999, stratified timesteps; on clean images alone (MSE), or with
0.7 of the loss against the output of the unpruned network (distilled). Every network is exported to ONNX and measured
by the same commands as ours (`recovery_table.py`). Results are kept in `--out`. Prints Markdown.

Needs torch, diffusers, onnx (`requirements-export.txt`) and torch-pruning 1.6.1.
"""

import argparse
import concurrent.futures
import copy
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import recovery_table
import torch
from diffusers import DDPMScheduler
from make_finetune_reference import loaded
from refit_table import FASHION, ROOT

SIZE, THRESHOLD = 16, 0.05


def clean_images() -> torch.Tensor:
    return torch.from_numpy(np.load(FASHION / "train_images.npy")).float() / 127.5 - 1


def add_gradients(network: torch.nn.Module, scheduler: DDPMScheduler, is_thresholded: bool) -> None:
    """Adds up the gradients of the paper, eq. 8: of all timesteps whose loss is above a share of the largest."""
    images = clean_images()[:32]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    largest = 0.0
    for step in range(0, scheduler.config.num_train_timesteps, 10):
        timesteps = torch.full((len(images),), step)
        output = network(scheduler.add_noise(images, noise, timesteps), timesteps).sample
        loss = torch.nn.functional.mse_loss(output, noise)
        largest = max(largest, loss.item())
        if is_thresholded and loss.item() < THRESHOLD * largest:
            break
        loss.backward()


def cut(source: torch.nn.Module, criterion: str, ratio: float) -> tuple[torch.nn.Module, float]:
    """Returns a cut copy, and the share of the MACs that is left by Torch-Pruning's count."""
    import torch_pruning

    torch.manual_seed(0)
    network = copy.deepcopy(source)
    for weight, original in zip(network.parameters(), source.parameters()):
        weight.grad = None if original.grad is None else original.grad.clone()
    kinds = {
        "diff-pruning": lambda: torch_pruning.importance.TaylorImportance(multivariable=False),
        "magnitude": torch_pruning.importance.MagnitudeImportance,
        "random": torch_pruning.importance.RandomImportance,
    }
    example = (torch.randn(1, 1, SIZE, SIZE), torch.ones((1,), dtype=torch.long))
    before, _ = torch_pruning.utils.count_ops_and_params(network, example)
    pruner = torch_pruning.pruner.MagnitudePruner(
        network,
        {"sample": example[0], "timestep": example[1]},
        importance=kinds[criterion](),
        iterative_steps=1,
        pruning_ratio=ratio,
        ignored_layers=[network.conv_out],
    )
    pruner.step()
    for module in network.modules():
        if hasattr(module, "conv") and hasattr(module, "channels"):
            module.channels, module.out_channels = module.conv.in_channels, module.conv.out_channels
    after, _ = torch_pruning.utils.count_ops_and_params(network, example)
    network.zero_grad()
    return network, after / before


def cut_to(source: torch.nn.Module, criterion: str, share: float) -> torch.nn.Module:
    """Returns the cut whose share of the MACs is nearest to `share`."""
    low, high, best = 0.0, 0.9, None
    for _ in range(12):
        ratio = (low + high) / 2
        network, left = cut(source, criterion, ratio)
        if best is None or abs(left - share) < abs(best[1] - share):
            best = (network, left)
        low, high = (ratio, high) if left > share else (low, ratio)
    return best[0]


def train(network: torch.nn.Module, teacher: torch.nn.Module | None, steps: int, scheduler: DDPMScheduler) -> torch.nn.Module:
    """Trains a network. Returns the moving average of its weights."""
    images, random = clean_images(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    average, warmup, batch = copy.deepcopy(network), min(100, steps // 10), 32
    total = scheduler.config.num_train_timesteps
    for step in range(steps):
        rate = (step + 1) / warmup if step < warmup else (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate
        clean = images[torch.randint(0, len(images), (batch,), generator=random)]
        noise = torch.randn(clean.shape, generator=random)
        spread = (torch.arange(batch) + torch.rand(batch, generator=random)) / batch
        timesteps = (spread * total).long()
        noisy = scheduler.add_noise(clean, noise, timesteps)
        output = network(noisy, timesteps).sample
        loss = torch.nn.functional.mse_loss(output, noise)
        if teacher is not None:
            with torch.no_grad():
                taught = teacher(noisy, timesteps).sample
            loss = 0.3 * loss + 0.7 * torch.nn.functional.mse_loss(output, taught)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (1 + step + 1) / (10 + step + 1))
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), network.parameters()):
                mean.lerp_(weight, 1 - decay)
    return average


def export(network: torch.nn.Module, target: pathlib.Path) -> None:
    class Sample(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network.eval()

        def forward(self, sample, timestep):
            return self.network(sample, timestep).sample

    part = target.with_suffix(".part")
    torch.onnx.export(
        Sample(),
        (torch.randn(2, 1, SIZE, SIZE), torch.zeros(2, dtype=torch.long)),
        str(part),
        dynamo=False,
        opset_version=17,
        input_names=["sample", "timestep"],
        output_names=["out_sample"],
        dynamic_axes={"sample": {0: "batch"}, "timestep": {0: "batch"}, "out_sample": {0: "batch"}},
    )
    part.rename(target)


def make(criterion: str, share: str, steps: int, folder: pathlib.Path) -> None:
    """Makes the networks of one row: the cut, trained by MSE, and distilled."""
    torch.set_num_threads(1)
    scheduler = DDPMScheduler(**json.loads((FASHION / "scheduler_config.json").read_text()))
    original, _ = loaded(onnx.load(ROOT / "fixtures/ddpm_fashion16.onnx"))
    original.eval()
    if criterion == "diff-pruning":
        add_gradients(original, scheduler, True)
    pruned = cut_to(original, criterion, float(share))
    original.requires_grad_(False)
    names = row(criterion, share, steps)
    for name, teacher in zip(names, (None, None, original)):
        target = folder / f"{name}.onnx"
        if target.exists():
            continue
        is_trained = name != names[0]
        start = copy.deepcopy(pruned).train()
        export(train(start, teacher, steps, scheduler) if is_trained else start, target)
        print(f"{name} done", file=sys.stderr, flush=True)


def row(criterion: str, share: str, steps: int) -> list[str]:
    start = f"torch-pruning-{criterion}-{share}"
    return [start, f"{start}-mse-{steps}", f"{start}-distilled-{steps}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("--shares", default="0.559,0.251", help="shares of the MACs to keep")
    parser.add_argument("--criteria", default="diff-pruning,magnitude,random")
    parser.add_argument("--steps", default="300", help="number of steps of every training run")
    parser.add_argument("--features", help="feature network for FD and KID")
    parser.add_argument("--samples", type=int, default=512, help="number of samples generated by each trained network")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs, each on one core")
    parser.add_argument("--out", default=str(ROOT / "target/recovery"))
    parser.add_argument("--make", nargs=2, metavar=("CRITERION", "SHARE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.finetune = ""
    bench = recovery_table.Bench(options)
    if options.make:
        make(*options.make, int(options.steps), bench.folder)
        return
    pairs = [(criterion, share) for share in options.shares.split(",") for criterion in options.criteria.split(",")]

    def work(pair: tuple[str, str]) -> None:
        names = row(*pair, int(options.steps))
        if not all((bench.folder / f"{name}.onnx").exists() for name in names):
            core = bench.worker.core
            subprocess.run(
                [sys.executable, __file__, options.tool, "--make", *pair, "--steps", options.steps, "--out", options.out],
                check=True,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )

    free = sorted(os.sched_getaffinity(0))[: options.jobs]
    with concurrent.futures.ThreadPoolExecutor(len(free), initializer=bench.take_core, initargs=(free,)) as pool:
        list(pool.map(work, pairs))
        names = [name for pair in pairs for name in row(*pair, int(options.steps))]
        qualities = pool.submit(bench.quality, "torch-pruning", names).result()
    rows = []
    for criterion, share in pairs:
        names = row(criterion, share, int(options.steps))
        left = qualities[names[0]]["cost"]["macs"] / qualities["original"]["cost"]["macs"]
        rows.append((f"{left:.1%} of the MACs", f"Torch-Pruning, {criterion}", names))
    print(recovery_table.table(options, rows, qualities))


if __name__ == "__main__":
    main()
