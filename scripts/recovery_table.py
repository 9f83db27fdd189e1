"""Compares pruned networks by criterion, refit and training: the tables of docs/quality.md.

    python scripts/recovery_table.py TOOL [--ratios 0.3,0.5] [--criteria diff-pruning,magnitude,random] [--steps 300]
        [--scratch 300,3000] [--features NET.onnx] [--samples 512] [--jobs 2] [--out FOLDER] [--finetune=ARGS] [--curve 50]

Cuts fixtures/ddpm_fashion16.onnx by every criterion, with and without a refit, and trains it by the default recipe, on
clean images alone (MSE) or with the original as teacher too (distilled). A network with the architecture of the cut by
Diff-Pruning and with random weights, as PyTorch initialises them, is trained from scratch for the steps of `--scratch`.
For all of them it measures the increase of the mean denoising loss above that of the unpruned network on held-out
images (256 images, 25 timesteps, seed 0), and at the end SSIM with the original's samples from the same noise and, with
`--features`, FD and KID to the held-out images (`onnx-diffprune evaluate`). No run selects weights by held-out images:
the last ones are used. Every run has one CPU core to itself. Results are kept in `--out`, so that an interrupted run
can continue. Prints Markdown.

With `--curve N`, it instead prints the loss of the networks of `--steps` every N steps, from the same starting weights,
above that of the unpruned network, on 128 of the held-out images.

Needs onnx and numpy (`requirements.txt`).
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import threading

import numpy as np
import onnx
from onnx import numpy_helper

from refit_table import FASHION, ROOT

MODEL = str(ROOT / "fixtures/ddpm_fashion16.onnx")
PROCESS = ["--scheduler-config", str(FASHION / "scheduler_config.json")]
TRAINED = ["--data", str(FASHION / "train_images.npy"), *PROCESS]
HELDOUT = ["--data", str(FASHION / "heldout_images.npy"), *PROCESS]


def randomise(source: pathlib.Path, target: pathlib.Path, seed: int) -> None:
    """Writes a network with PyTorch's initial weights: uniform up to 1 / sqrt(fan in), norms the identity."""
    model, random = onnx.load(source), np.random.default_rng(seed)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    drawn: dict[str, np.ndarray] = {}
    for node in model.graph.node:
        weight = tensors.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type not in ("Conv", "Gemm", "MatMul") or weight is None:
            continue
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        inputs = weight.dims[0] if node.op_type != "Conv" and not transposed else int(np.prod(weight.dims[1:]))
        for name in node.input[1:]:
            if name in tensors:
                drawn[name] = random.uniform(-1, 1, tuple(tensors[name].dims)) / np.sqrt(inputs)
    for name, slot in ((name, node) for node in model.graph.node for name in node.input):
        if name in tensors and name not in drawn and slot.op_type in ("Mul", "Add"):
            array = numpy_helper.to_array(tensors[name])
            if array.dtype == np.float32 and array.size > 1:
                drawn[name] = np.full(array.shape, 1.0 if slot.op_type == "Mul" else 0.0)
    for name, array in drawn.items():
        tensors[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(model, target)


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = pathlib.Path(options.out)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.worker = threading.local()

    def take_core(self, free: list[int]) -> None:
        """Assigns a CPU core to the calling worker."""
        self.worker.core = free.pop()

    def run(self, *command: str) -> dict:
        core = self.worker.core
        done = subprocess.run(
            [self.options.tool, *command, "--format", "json"],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        if done.returncode != 0:
            raise SystemExit(f"{shlex.join(command)}\n{done.stderr}")
        return json.loads(done.stdout)

    def known(self, name: str, measure) -> dict:
        """Returns the result stored under a name, or measures and stores it."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            text = json.dumps(measure())
            part = path.with_suffix(".part")
            part.write_text(text)
            part.rename(path)
        return json.loads(path.read_text())

    def quality(self, group: str, names: list[str]) -> dict[str, dict]:
        """Returns loss, SSIM, FD and KID of networks of the folder, by name, and of the original, from a single run."""
        options = self.options
        networks = [str(self.folder / f"{name}.onnx") for name in names]
        command = ["evaluate", *networks, "--original", MODEL, *HELDOUT, "--no-latency"]
        command += ["--samples", str(options.samples), "--steps", "25", "--count", "256", "--timesteps", "25", "--seed", "0"]
        if options.features:
            command += ["--features", options.features, "--kid-subset-size", str(min(options.samples // 2, 1000))]
        found = self.known(f"{group}.quality", lambda: self.run(*command))
        return {**dict(zip(names, found["networks"])), "original": found["original"]}

    def cut(self, name: str, ratio: str, criterion: str, is_refitted: bool) -> None:
        """Makes a cut network."""
        target = self.folder / f"{name}.onnx"
        if target.exists():
            return
        command = [MODEL, str(target), "--ratio", ratio, "--criterion", criterion, *TRAINED, "--timesteps", "100"]
        self.run(*command, "--seed", "0", "--no-latency", "--refit" if is_refitted else "--no-refit")

    def curve(self, start: str, steps: str, is_distilled: bool) -> dict[int, float]:
        """Returns the held-out loss of a training run by step. Step 0 is the loss of the starting network."""
        every = self.options.curve
        source = MODEL if start == "original" else str(self.folder / f"{start}.onnx")

        def measure() -> dict:
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                command = ["finetune", source, f"{folder}/tuned.onnx", "--steps", steps, *TRAINED]
                command += ["--eval-data", str(FASHION / "heldout_images.npy"), "--eval-samples", "128"]
                command += ["--eval-every", str(every), "--threads", "1", "--seed", "0"]
                command += shlex.split(self.options.finetune)
                if is_distilled:
                    command += ["--teacher", MODEL]
                return self.run(*command)["training"]

        found = self.known(f"{start}-{'distilled' if is_distilled else 'mse'}-{steps}.curve{every}", measure)
        return {evaluation["step"]: evaluation["loss"] for evaluation in found["evaluations"]}

    def train(self, start: str, name: str, steps: str, is_distilled: bool) -> None:
        """Trains a network of the folder."""
        target = self.folder / f"{name}.onnx"
        if target.exists():
            return
        # An interrupted run writes its file too. Only a run that completed gets the final name.
        part = self.folder / f"{name}.part.onnx"
        command = ["finetune", str(self.folder / f"{start}.onnx"), str(part), "--steps", steps, *TRAINED]
        command += ["--eval-samples", "0", "--threads", "1", "--seed", "0", *shlex.split(self.options.finetune)]
        if is_distilled:
            command += ["--teacher", MODEL]
        if (self.folder / f"{name}.part.finetune").exists():
            command += ["--resume", "latest"]
        self.run(*command)
        part.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("--ratios", default="0.3,0.5")
    parser.add_argument("--criteria", default="diff-pruning,magnitude,random")
    parser.add_argument("--steps", default="300", help="number of steps of every training run")
    parser.add_argument("--scratch", default="300,3000", help="numbers of steps of the training runs from random weights")
    parser.add_argument("--features", help="feature network for FD and KID")
    parser.add_argument("--samples", type=int, default=512, help="number of samples generated by each trained network")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs, each on one core")
    parser.add_argument("--finetune", default="", help="further options of `finetune`")
    parser.add_argument("--out", default=str(ROOT / "target/recovery"))
    parser.add_argument("--curve", type=int, help="print the loss every N steps instead")
    options = parser.parse_args()
    bench = Bench(options)

    # Each row: its starting network, and how it was trained: the names of its networks by column.
    rows: list[tuple[str, str, list[str]]] = []
    jobs = []
    for ratio in options.ratios.split(","):
        for criterion in options.criteria.split(","):
            for is_refitted in (False, True):
                start = f"{criterion}-{ratio}-{'refit' if is_refitted else 'cut'}"
                names = [start]
                trainings = []
                for is_distilled in (False, True):
                    names.append(f"{start}-{'distilled' if is_distilled else 'mse'}-{options.steps}")
                    trainings.append((start, names[-1], options.steps, is_distilled))
                jobs.append(((start, ratio, criterion, is_refitted), trainings))
                rows.append((f"ratio {ratio}", f"{criterion}{', refitted' if is_refitted else ''}", names))
        names = []
        for steps in options.scratch.split(","):
            names.append(f"scratch-{ratio}-{steps}")
            jobs.append((None, [(f"scratch-{ratio}", names[-1], steps, False)]))
        rows.append((f"ratio {ratio}", "from scratch", names))

    def prepare(job) -> None:
        cut, trainings = job
        if cut:
            bench.cut(*cut)
        for start, *_ in trainings:
            if start.startswith("scratch") and not (bench.folder / f"{start}.onnx").exists():
                ratio = start.removeprefix("scratch-")
                bench.cut(f"scratch-shape-{ratio}", ratio, "diff-pruning", False)
                randomise(bench.folder / f"scratch-shape-{ratio}.onnx", bench.folder / f"{start}.onnx", 0)

    def work(job) -> None:
        prepare(job)
        for start, name, steps, is_distilled in job[1]:
            bench.train(start, name, steps, is_distilled)
            print(f"{name} done", file=sys.stderr, flush=True)

    # The longest jobs first, so that no core is idle at the end.
    jobs.sort(key=lambda job: -sum(int(steps) for _, _, steps, _ in job[1]))
    free = sorted(os.sched_getaffinity(0))[: options.jobs]
    with concurrent.futures.ThreadPoolExecutor(len(free), initializer=bench.take_core, initargs=(free,)) as pool:
        if options.curve:
            # One job a start: the trainings from scratch of a ratio share theirs.
            list(pool.map(prepare, {job[1][0][0]: job for job in jobs}.values()))
            print(curves(bench, pool, rows))
            return
        list(pool.map(work, jobs))
        groups = [(cut, [name for other, _, names in rows if other == cut for name in names]) for cut, *_ in rows]
        qualities = {}
        for quality in pool.map(lambda group: bench.quality(*group), dict(groups).items()):
            qualities |= quality
    print(table(options, rows, qualities))


def curves(bench: Bench, pool: concurrent.futures.Executor, rows: list[tuple[str, str, list[str]]]) -> str:
    """Returns a table of the increase of the loss above the original's by step, for every start and training of the
    rows."""
    steps = bench.options.steps
    runs = [("original", "", "original", "1", False)]
    for cut, kind, names in rows:
        starts = [(names[0], False), (names[0], True)] if kind != "from scratch" else [(f"scratch-{cut.split()[1]}", False)]
        runs += [(cut, kind, start, steps, is_distilled) for start, is_distilled in starts]
    (original, *found) = pool.map(lambda run: bench.curve(*run[2:]), runs)
    at = sorted(found[0])
    lines = ["| cut | network | training | " + " | ".join(map(str, at)) + " |", "|---" * (3 + len(at)) + "|"]
    for (cut, kind, _, _, is_distilled), losses in zip(runs[1:], found):
        above = [f"{losses[step] - original[0]:+.4f}" for step in at]
        lines.append(f"| {cut} | {kind} | {'distilled' if is_distilled else 'MSE'} | {' | '.join(above)} |")
    return "\n".join(lines)


def table(options: argparse.Namespace, rows: list[tuple[str, str, list[str]]], qualities: dict[str, dict]) -> str:
    steps, has_features = options.steps, bool(options.features)
    figures = ["SSIM", *(["FD", "KID x 1000"] if has_features else [])]
    lines = ["| cut | network | training | loss above | " + " | ".join(figures) + " |"]
    lines.append("|---" * (4 + len(figures)) + "|")
    for cut, kind, names in rows:
        for name in names:
            *_, tail = name.split("-")
            trained = name.endswith(f"-{steps}") or kind == "from scratch"
            training = f"{tail} steps, {'distilled' if 'distilled' in name else 'MSE'}" if trained else "none"
            network, original = qualities[name], qualities["original"]
            cells = [cut, kind, training, f"{network['mean_loss'] - original['mean_loss']:+.4f}"]
            cells.append(f"{network['consistency']['ssim']['mean']:.3f}")
            if has_features:
                distances = network["distances"]
                cells += [f"{distances['fd_to_data']:.1f}", f"{distances['kid_to_data']['mean'] * 1e3:.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
