"""Measures gradients of the denoising loss: the tool against PyTorch on the same network, batch, threads and machine.

    python scripts/bench_gradients.py [--networks ddpm_fashion16,ddpm_cifar10] [--batches 8,32] [--threads 1,2] [--steps 7]

Exports each network (diffusers' UNet2DModel, random weights) to ONNX. Then two processes take turns: the example
`gradients serve`, which runs the tool's gradient graph in ONNX Runtime and adds the gradients to their sums, and
PyTorch in eager mode, whose `backward` adds to `.grad`. Prints Markdown: the median time of a timestep of each, the
median of the ratios of neighbouring steps, and the peak of resident memory of each process, with and without the memory
used before it read the network (for PyTorch, Python and its libraries).

Needs torch and diffusers (`requirements-export.txt`) and `cargo build --release --example gradients`.
"""

import argparse
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
NETWORKS = {
    # The architecture of fixtures/ddpm_fashion16.onnx.
    "ddpm_fashion16": dict(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=None,
    ),
    # google/ddpm-cifar10-32, the network of the paper.
    "ddpm_cifar10": dict(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=32,
        attention_head_dim=None,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    ),
}


def network(name: str):
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(**NETWORKS[name]).eval()


def inputs(name: str, batch: int):
    import torch

    sizes = NETWORKS[name]
    shape = (batch, sizes["in_channels"], sizes["sample_size"], sizes["sample_size"])
    return torch.randn(shape), torch.randint(0, 1000, (batch,)), torch.randn(shape)


def export(name: str, path: str) -> None:
    import torch

    class Sample(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(name)

        def forward(self, sample, timestep):
            return self.network(sample, timestep, return_dict=False)[0]

    sample, timestep, _ = inputs(name, 2)
    torch.onnx.export(
        Sample(),
        (sample, timestep),
        path,
        dynamo=False,
        opset_version=17,
        input_names=["sample", "timestep"],
        output_names=["out_sample"],
        dynamic_axes={"sample": {0: "batch"}, "timestep": {0: "batch"}, "out_sample": {0: "batch"}},
    )


def memory(field: str, process: str = "self") -> int:
    """Returns a figure of /proc/PID/status in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", pathlib.Path(f"/proc/{process}/status").read_text(), re.M)
    return int(found[1]) * 1024 if found else 0


def serve_pytorch(name: str, batch: int, threads: int) -> None:
    """Runs one step for every line of standard input."""
    import torch
    import diffusers.models.unets.unet_2d  # noqa: F401  part of the libraries, not of the network

    torch.set_num_threads(threads)
    print(f"torch {torch.__version__}\nbase {memory('VmRSS')}\nready", flush=True)
    torch.manual_seed(1)
    net = network(name)
    for _ in sys.stdin:
        started = time.perf_counter()
        sample, timestep, noise = inputs(name, batch)
        loss = torch.nn.functional.mse_loss(net(sample, timestep).sample, noise)
        loss.backward()
        loss.item()
        print(f"{(time.perf_counter() - started) * 1e3:.3f}", flush=True)


class Server:
    """A process that runs one step for every line of its input."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.base = 0
        self.label = ""
        for line in self.process.stdout:
            word, _, rest = line.strip().partition(" ")
            self.base = int(rest) if word == "base" else self.base
            self.label = line.strip() if word in ("torch", "onnxruntime") else self.label
            if word == "ready":
                return
        sys.exit(f"{' '.join(command)} ended before it was ready")

    def step(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit("a process ended during the measurement")
        return float(answer)

    def end(self) -> int:
        """Ends the process. Returns the peak of its resident memory."""
        peak = memory("VmHWM", str(self.process.pid))
        self.process.stdin.close()
        self.process.wait()
        return peak


def measure(example: str, model: str, name: str, batch: int, threads: int, steps: int) -> tuple[str, str]:
    def ours() -> Server:
        arguments = ["--batch", str(batch), "--micro-batch", str(batch), "--threads", str(threads)]
        return Server([example, "serve", model, *arguments])

    def theirs() -> Server:
        return Server([sys.executable, __file__, "--serve", name, str(batch), str(threads)])

    pair = [ours(), theirs()]
    for _ in range(2):
        for server in pair:
            server.step()
    times: list[list[float]] = [[], []]
    for _ in range(steps):
        for at, server in enumerate(pair):
            # Threads of the other process may still be spinning.
            time.sleep(0.05)
            times[at].append(server.step())
    peaks = [server.end() for server in pair]
    own = [peak - server.base for peak, server in zip(peaks, pair)]
    ratio = statistics.median(a / b for a, b in zip(*times))
    cells = [name, str(batch), str(threads)]
    cells += [f"{statistics.median(each):.0f} ms" for each in times] + [f"**{ratio:.2f}**"]
    cells += [f"{peak / 1e6:.0f} MB ({grown / 1e6:.0f})" for peak, grown in zip(peaks, own)]
    cells += [f"**{peaks[0] / peaks[1]:.2f}** ({own[0] / own[1]:.2f})"]
    return "| " + " | ".join(cells) + " |", f"{pair[0].label}, {pair[1].label}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--batches", default="8,32")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--example", default=str(ROOT / "target/release/examples/gradients"))
    parser.add_argument("--serve", nargs=3, metavar=("NETWORK", "BATCH", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_pytorch(options.serve[0], int(options.serve[1]), int(options.serve[2]))
        return
    print("| network | batch | threads | ours | PyTorch | ratio | our memory | PyTorch's | ratio |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    labels = set()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks.split(","):
            model = str(pathlib.Path(folder) / f"{name}.onnx")
            export(name, model)
            for batch in map(int, options.batches.split(",")):
                for threads in map(int, options.threads.split(",")):
                    row, label = measure(options.example, model, name, batch, threads, options.steps)
                    labels.add(label)
                    print(row, flush=True)
    print("\n" + "; ".join(sorted(labels)))


if __name__ == "__main__":
    main()
