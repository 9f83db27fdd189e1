"""Measures how much generated samples change the importance of a network: the tables of docs/diffusion.md.

    python scripts/drawing_table.py TOOL MODEL.onnx [--reference ddim:50] [--candidates dpm++2m:20,dpm++2m:10,dpm++2m:5]
        [--seeds 0,1,2] [--ratio 0.3] [--heldout SAMPLES --scheduler-config FILE.json] [-- OPTIONS OF THE TOOL]

Scores the network on samples that it generated, once for every sampler and every seed, and compares the scores by
channel group: Spearman's rank correlation, and the share of the removed channels that both remove. The mean is over all
groups from which channels are removed, weighted by their number of channels, and over the pairs of seeds. There are
three kinds of rows:

- the reference with one seed against the reference with another: the effect of another seed;
- the reference against a candidate with the same seed: the effect of the candidate alone;
- a candidate with one seed against the reference with another: both at once.

`seconds` is the mean time of sampling, `loss` the mean denoising loss of the cut networks on held-out samples (the
tool's command `loss`), over the seeds. Prints Markdown. Needs numpy.
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy


def run(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def score(options: argparse.Namespace, rest: list[str], drawing: str, seed: str, folder: str) -> tuple[list[dict], float, float]:
    """Returns the channel groups of a run's plan, the seconds of sampling, and the loss of the cut network."""
    sampler, steps = drawing.split(":")
    pruned = pathlib.Path(folder) / "pruned.onnx"
    command = [options.tool, options.model, str(pruned), "--ratio", options.ratio, "--seed", seed, "--no-verify", "--no-refit"]
    command += ["--draw-sampler", sampler, "--draw-steps", steps, "--format", "json", *rest]
    process = ["--scheduler-config", options.scheduler_config] if options.scheduler_config else []
    result = run([*command, *process])
    plan = json.loads((pathlib.Path(folder) / "pruned.plan.json").read_text())
    seconds, loss = result["gradients"]["drawing_seconds"], float("nan")
    if options.heldout:
        loss = run([options.tool, "loss", str(pruned), "--data", options.heldout, "--format", "json", *process])["mean"]
    print(f"{drawing}, seed {seed}: sampled in {seconds:.1f} s, loss {loss:.4f}", file=sys.stderr, flush=True)
    return [group for group in plan["groups"] if group["scores"]], seconds, loss


def ranks(scores: list[float]) -> numpy.ndarray:
    """Returns ranks from 0. Equal scores share their mean rank."""
    _, inverse, counts = numpy.unique(scores, return_inverse=True, return_counts=True)
    return (numpy.cumsum(counts) - (counts + 1) / 2)[inverse]


def agreement(left: list[dict], right: list[dict]) -> tuple[float, float]:
    """Returns the rank correlation, and the share of the removed channels that both remove."""
    correlations, weights, common, removed = [], [], 0, 0
    for a, b in zip(left, right, strict=True):
        assert a["name"] == b["name"]
        channels = set(range(a["channels"]))
        gone = channels - set(a["kept"]), channels - set(b["kept"])
        if not gone[0] or not gone[1]:
            continue
        common += len(gone[0] & gone[1])
        removed += max(len(gone[0]), len(gone[1]))
        correlation = numpy.corrcoef(ranks(a["scores"]), ranks(b["scores"]))[0, 1]
        if numpy.isfinite(correlation):
            correlations.append(correlation)
            weights.append(a["channels"])
    return float(numpy.average(correlations, weights=weights)), common / removed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("model")
    parser.add_argument("--reference", default="ddim:50", help="SAMPLER:STEPS")
    parser.add_argument("--candidates", default="dpm++2m:20,dpm++2m:10,dpm++2m:5")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--ratio", default="0.3")
    parser.add_argument("--heldout", help="held-out samples for the loss of the cut networks")
    parser.add_argument("--scheduler-config")
    own, rest = sys.argv[1:], []
    if "--" in own:
        at = own.index("--")
        own, rest = own[:at], own[at + 1 :]
    options = parser.parse_args(own)
    candidates, seeds = options.candidates.split(","), options.seeds.split(",")
    runs, seconds, losses = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for drawing in [options.reference, *candidates]:
            found = [score(options, rest, drawing, seed, folder) for seed in seeds]
            runs[drawing] = [groups for groups, *_ in found]
            seconds[drawing], losses[drawing] = numpy.mean([values for _, *values in found], axis=0)
    both = list(itertools.permutations(range(len(seeds)), 2))
    same = [(at, at) for at in range(len(seeds))]
    rows = [(options.reference, "another seed", both)]
    rows += [(drawing, what, pairs) for drawing in candidates for what, pairs in (("same seed", same), ("another seed", both))]
    print(f"| drawn by | against {options.reference} with | rank correlation | removed by both | seconds | loss |")
    print("|---|---|---|---|---|---|")
    for drawing, what, pairs in rows:
        values = [agreement(runs[options.reference][a], runs[drawing][b]) for a, b in pairs]
        correlation, share = numpy.mean(values, axis=0)
        worst = min(value for value, _ in values)
        cost = f"{seconds[drawing]:.1f} | {losses[drawing]:.4f}" if options.heldout else f"{seconds[drawing]:.1f} | -"
        print(f"| {drawing} | {what} | {correlation:.3f} (least {worst:.3f}) | {share:.1%} | {cost} |")


if __name__ == "__main__":
    main()
