"""Measures how much of the loss a refit recovers, by criterion: the tables of docs/quality.md.

    python scripts/refit_table.py TOOL [--model M.onnx] [--train DATA] [--heldout DATA] [--scheduler-config FILE]
        [--ratios 0.2,0.3,0.5] [--macs 0.57,0.34] [--criteria diff-pruning,magnitude,random] [--seeds 3] [--refit=ARGS]
        [--more=ARGS] [--count N] [--loss-timesteps N]

Prunes a trained network by every criterion, with and without the refit, and measures the mean denoising loss of both on
held-out images: by default 256 images and 25 timesteps, seed 0 (`onnx-diffprune loss`). Every run has one CPU core to
itself, so that its CPU seconds can be compared between machines. They include the whole run: gradients, cut, both
verifications, the refit and the losses that assess it. `--more` is passed to the cut and to `loss` (such as the options
of the diffusion process), `--refit` to the refit. Prints Markdown: the increase of the loss above that of the unpruned
network.
"""

import argparse
import json
import os
import pathlib
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
FASHION = ROOT / "fixtures/ddpm_fashion16"


def one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def run(command: list[str]) -> tuple[dict, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, "--format", "json"], capture_output=True, text=True, check=False, preexec_fn=one_core
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(command)}\n{done.stderr}")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("--model", default=str(ROOT / "fixtures/ddpm_fashion16.onnx"))
    parser.add_argument("--train", default=str(FASHION / "train_images.npy"))
    parser.add_argument("--heldout", default=str(FASHION / "heldout_images.npy"))
    parser.add_argument("--scheduler-config", default=str(FASHION / "scheduler_config.json"))
    parser.add_argument("--ratios", default="0.2,0.3,0.5")
    parser.add_argument("--macs", default="")
    parser.add_argument("--criteria", default="diff-pruning,magnitude,random")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of criteria and refit")
    parser.add_argument("--count", default="256", help="held-out images")
    parser.add_argument("--loss-timesteps", default="25", help="timesteps of the loss on held-out images")
    parser.add_argument("--refit", default="", help="options of the refit")
    parser.add_argument("--more", default="", help="options of the network, for every command")
    parser.add_argument("--cut", default="--timesteps 100", help="options of the cut")
    parser.add_argument("--train-inputs", help="conditioning of the training data")
    parser.add_argument("--heldout-inputs", help="conditioning of the held-out data")
    options = parser.parse_args()
    network = shlex.split(options.more)
    if options.scheduler_config:
        network += ["--scheduler-config", options.scheduler_config]

    def loss(model: str) -> float:
        command = [options.tool, "loss", model, "--data", options.heldout, *network]
        if options.heldout_inputs:
            command += ["--inputs", options.heldout_inputs]
        return run([*command, "--count", options.count, "--timesteps", options.loss_timesteps, "--seed", "0"])[0]["mean"]

    targets = [(f"ratio {ratio}", ["--ratio", ratio]) for ratio in options.ratios.split(",") if ratio]
    targets += [(f"{float(share):.0%} of the MACs", ["--target-macs", share]) for share in options.macs.split(",") if share]
    unpruned = loss(options.model)
    print(f"Unpruned: {unpruned:.4f}\n", flush=True)
    print("| cut | MACs kept | criterion | cut | refitted | by seed | CPU s |\n|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pruned = str(pathlib.Path(folder) / "pruned.onnx")
        for name, target in targets:
            for criterion in options.criteria.split(","):
                command = [options.tool, options.model, pruned, *target, "--criterion", criterion, "--no-latency"]
                command += ["--data", options.train, *network, *shlex.split(options.cut)]
                if options.train_inputs:
                    command += ["--inputs", options.train_inputs]
                cuts, fits, seconds, kept = [], [], [], 0.0
                for seed in range(options.seeds):
                    seeded = [*command, "--seed", str(seed)]
                    if seed == 0 or criterion == "random":
                        run([*seeded, "--no-refit", "--no-verify"])
                        cuts.append(loss(pruned) - unpruned)
                    result, cpu = run([*seeded, "--refit", *shlex.split(options.refit)])
                    kept = result["after"]["macs"] / result["before"]["macs"]
                    fits.append(loss(pruned) - unpruned)
                    seconds.append(cpu)
                by_seed = " ".join(f"{fit:+.4f}" for fit in fits)
                print(
                    f"| {name} | {kept:.1%} | {criterion} | {statistics.mean(cuts):+.4f} | {statistics.mean(fits):+.4f} "
                    f"| {by_seed} | {statistics.mean(seconds):.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
