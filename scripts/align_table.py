#!/usr/bin/env python3
"""Prune a network with different alignments and measure MACs and CPU time of each: a table in Markdown.

The shares are relative to the original: its MACs, including products of activations, and the CPU time of a run in ONNX
Runtime on 64x64 latents. The networks run in turn. Each run is compared with that of the original in the same turn, and
the table has the median of these ratios. CPU time, summed over threads, is less sensitive to other load on the machine
than wall time.

    make_sd_unet.py /tmp/unet.onnx --widths 320,640,1280 --no-middle
    align_table.py /tmp/unet.onnx --tool target/release/onnx-diffprune [--ratio 0.5] [--threads 1] [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy
import onnxruntime

ALIGNMENTS = ("", "--align tensorrt", "--align tensorrt:int8", "--align cpu", "--round-to 32")
SIZES = {"batch": 1, "height": 64, "width": 64}


def pruned(tool: str, model: Path, alignment: str, args: argparse.Namespace, place: Path) -> dict:
    """Prunes the model. Returns the summary as JSON."""
    sizes = [f"--size={name}={size}" for name, size in SIZES.items()]
    command = [tool, str(model), str(place), "--ratio", str(args.ratio), "--criterion", "magnitude", *sizes]
    command += [*alignment.split(), "--no-verify", "--no-latency", "--quiet", "--format", "json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


class Timed:
    """A session of a network, with the CPU times of its runs."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # A thread that spins while it waits for work would be counted as busy.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        random = numpy.random.default_rng(0)
        self.inputs = {}
        for value in self.session.get_inputs():
            shape = [size if isinstance(size, int) else SIZES[size] for size in value.shape]
            array = random.normal(size=shape) if value.type == "tensor(float)" else numpy.full(shape, 500)
            self.inputs[value.name] = array.astype(numpy.float32 if value.type == "tensor(float)" else numpy.int64)
        self.seconds: list[float] = []

    def run(self) -> None:
        began = time.process_time()
        self.session.run(None, self.inputs)
        self.seconds.append(time.process_time() - began)


def total(cost: dict) -> float:
    return cost["macs"] + cost["attention_macs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tool", required=True)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--alignments", default=",".join(ALIGNMENTS), help="alignments, separated by commas")
    args = parser.parse_args()
    rows, networks = [], [Timed(args.model, args.threads)]
    with tempfile.TemporaryDirectory() as folder:
        for at, alignment in enumerate(args.alignments.split(",")):
            place = Path(folder) / f"{at}.onnx"
            summary = pruned(args.tool, args.model, alignment, args, place)
            rows.append((alignment, total(summary["after"]) / total(summary["before"])))
            networks.append(Timed(place, args.threads))
        # The first turn allocates memory and is not counted.
        for _ in range(args.runs + 1):
            for network in networks:
                network.run()
    print(f"{networks[0].seconds[-1]:.2f} s of CPU time for a run of the original, {args.threads} threads\n")
    print("| alignment | MACs | time | time / MACs |\n|---|---|---|---|")
    for (alignment, macs), network in zip(rows, networks[1:], strict=True):
        shares = [own / original for own, original in zip(network.seconds[1:], networks[0].seconds[1:], strict=True)]
        share = statistics.median(shares)
        name = f"`{alignment}`" if alignment else "none"
        print(f"| {name} | {macs:.1%} | {share:.1%} | {share / macs:.2f} |")


if __name__ == "__main__":
    main()
