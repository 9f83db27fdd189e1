"""Measures a step of fine-tuning: the tool against PyTorch, eager and compiled, on the same networks, batch and threads.

    python scripts/bench_finetune.py [--networks ddpm_fashion16,ddpm_cifar10] [--batches 32,128] [--threads 2] [--steps 7]
        [--no-compile] [--apart] [--micro-batch N]

A step consists of the teacher's output, forward and backward pass, clipping by the global norm, AdamW and a moving
average of the weights. The trained network and its teacher have the same architecture (diffusers' UNet2DModel, random
weights). Three processes take turns: the example `training_step`, PyTorch in eager mode, and PyTorch with both networks
under `torch.compile`. Prints Markdown: the median time of a step of each, the median of the ratios of neighbouring
steps, and the peaks of resident memory. With `--apart` every turn starts its process anew, runs one step to warm up and
one that counts, so that only one process takes memory at a time. With `--micro-batch N` the tool runs the batch in parts
of N samples, as `finetune --micro-batch` does; PyTorch always runs the whole batch.

Needs torch and diffusers (`requirements-export.txt`) and `cargo build --release --example training_step`.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time

from bench_gradients import NETWORKS, ROOT, Server, export, inputs, memory, network


def serve_pytorch(name: str, batch: int, threads: int, is_compiled: bool, device: str) -> None:
    """Runs one step for every line of standard input."""
    import torch
    import diffusers.models.unets.unet_2d  # noqa: F401  part of the libraries, not of the network

    torch.set_num_threads(threads)
    print(f"torch {torch.__version__}\nbase {memory('VmRSS')}\nready", flush=True)
    torch.manual_seed(1)
    # As in the tool: float32 without rounding of factors to TensorFloat-32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    teacher, student = network(name).to(device), network(name).to(device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    weights = list(student.parameters())
    averages = [weight.detach().clone() for weight in weights]
    if is_compiled:
        teacher, student = torch.compile(teacher), torch.compile(student)
    for _ in sys.stdin:
        started = time.perf_counter()
        sample, timestep, noise = (tensor.to(device) for tensor in inputs(name, batch))
        with torch.no_grad():
            taught = teacher(sample, timestep).sample
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(student(sample, timestep).sample, torch.lerp(noise, taught, 0.7))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 0.001)
        loss.item()
        if device != "cpu":
            torch.cuda.synchronize(device)
        print(f"{(time.perf_counter() - started) * 1e3:.3f}", flush=True)


def together(commands: list[list[str]], steps: int) -> tuple[list[list[float]], list[int], list[int]]:
    """Times of steps, peaks of memory, and what memory grew by, of processes that run at the same time."""
    servers = [Server(command) for command in commands]
    for server in servers:
        server.step()
        server.step()
    times: list[list[float]] = [[] for _ in servers]
    for _ in range(steps):
        for server, each in zip(servers, times):
            # Threads of the other processes may still be spinning.
            time.sleep(0.05)
            each.append(server.step())
    peaks = [server.end() for server in servers]
    return times, peaks, [peak - server.base for peak, server in zip(peaks, servers)]


def apart(commands: list[list[str]], steps: int) -> tuple[list[list[float]], list[int], list[int]]:
    """The same, of processes that run one after the other."""
    times: list[list[float]] = [[] for _ in commands]
    peaks, own = [0] * len(commands), [0] * len(commands)
    for _ in range(steps):
        for at, command in enumerate(commands):
            server = Server(command)
            server.step()
            times[at].append(server.step())
            peak = server.end()
            peaks[at], own[at] = max(peaks[at], peak), max(own[at], peak - server.base)
    return times, peaks, own


def measure(example: str, models: list[str], name: str, batch: int, threads: int, options) -> str:
    commands = [[example, *models, "--batch", str(batch), "--threads", str(threads)]]
    if options.micro_batch:
        commands[0] += ["--micro-batch", str(min(batch, options.micro_batch))]
    kinds = ["eager"] if options.no_compile else ["eager", "compiled"]
    commands += [[sys.executable, __file__, "--serve", name, str(batch), str(threads), kind] for kind in kinds]
    times, peaks, own = (apart if options.apart else together)(commands, options.steps)
    cells = [name, str(batch), str(threads)] + [f"{statistics.median(each):.0f} ms" for each in times]
    cells += [f"**{statistics.median(a / b for a, b in zip(times[0], each)):.2f}**" for each in times[1:]]
    cells += [f"{peak / 1e6:.0f} MB ({grown / 1e6:.0f})" for peak, grown in zip(peaks, own)]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--batches", default="32,128")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--micro-batch", type=int, help="samples of a run of the tool's graph; default: the batch")
    parser.add_argument("--apart", action="store_true", help="one process at a time, started anew for every turn")
    parser.add_argument("--example", default=str(ROOT / "target/release/examples/training_step"))
    parser.add_argument("--serve", nargs=4, metavar=("NETWORK", "BATCH", "THREADS", "KIND"), help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help="device of PyTorch with --serve")
    options = parser.parse_args()
    if options.serve:
        name, batch, threads, kind = options.serve
        serve_pytorch(name, int(batch), int(threads), kind == "compiled", options.device)
        return
    kinds = ["eager"] if options.no_compile else ["eager", "compiled"]
    header = ["network", "batch", "threads", "ours", *kinds, *(f"ours / {kind}" for kind in kinds)]
    header += [f"memory of {who}" for who in ["ours", *kinds]]
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks.split(","):
            model = str(pathlib.Path(folder) / f"{name}.onnx")
            export(name, model)
            for batch in map(int, options.batches.split(",")):
                for threads in map(int, options.threads.split(",")):
                    print(measure(options.example, [model, model], name, batch, threads, options), flush=True)


if __name__ == "__main__":
    main()
