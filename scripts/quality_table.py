"""Measures the loss of a cut before training, by criterion: the table of docs/quality.md.

    python scripts/quality_table.py TOOL [--fixture dit_fashion16] [--ratios 0.1,0.2,0.3,0.5] [--macs 0.57,0.34]
        [--scope local|global] [--criteria diff-pruning,magnitude,random]

Prunes a trained fixture (default: fixtures/ddpm_fashion16.onnx) by every criterion, and measures the mean denoising
loss of the pruned network on held-out images, with their labels if there are any: 256 images, t = 0, 40, ..., 960, the
same noise for all timesteps (`onnx-diffprune loss`). Every cut is verified. Gradients are computed on 32 training
images at 50 timesteps; random is the mean of three seeds. Prints Markdown.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CRITERIA = {
    "diff-pruning": [["--criterion", "diff-pruning"]],
    "taylor": [["--criterion", "taylor"]],
    "hessian": [["--criterion", "hessian"]],
    "magnitude": [["--criterion", "magnitude"]],
    "random (3 seeds)": [["--criterion", "random", "--seed", str(seed)] for seed in range(3)],
}


def run(command: list[str]) -> dict:
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def samples_of(folder: pathlib.Path, which: str, images: str | None) -> list[str]:
    """Returns the arguments for images, their labels if there are any, and the schedule."""
    data = ["--data", images or str(folder / f"{which}_images.npy")]
    labels = folder / f"{which}_labels.npz"
    if labels.exists() and not images:
        data += ["--inputs", str(labels)]
    return [*data, "--scheduler-config", str(folder / "scheduler_config.json")]


def loss(tool: str, model: str, heldout: list[str]) -> float:
    return run([tool, "loss", model, *heldout])["mean"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("--fixture", default="ddpm_fashion16", help="a trained network of fixtures/")
    parser.add_argument("--train", help="images for gradients, in place of the fixture's")
    parser.add_argument("--heldout", help="images for the loss, in place of the fixture's")
    parser.add_argument("--criteria", default=",".join(name.split()[0] for name in CRITERIA))
    parser.add_argument("--ratios", default="0.1,0.2,0.3,0.5")
    parser.add_argument("--macs", default="0.57,0.34")
    parser.add_argument("--scope", default="local", help="scope in which channels compete")
    options = parser.parse_args()
    model, folder = str(ROOT / f"fixtures/{options.fixture}.onnx"), ROOT / "fixtures" / options.fixture
    train, heldout = samples_of(folder, "train", options.train), samples_of(folder, "heldout", options.heldout)
    criteria = {name: how for name, how in CRITERIA.items() if name.split()[0] in options.criteria.split(",")}
    targets = [("ratio " + ratio, ["--ratio", ratio]) for ratio in options.ratios.split(",") if ratio]
    targets += [(f"{float(share):.0%} of the MACs", ["--target-macs", share]) for share in options.macs.split(",") if share]
    print(f"Unpruned: {loss(options.tool, model, heldout):.4f}\n", flush=True)
    print("| cut | MACs kept | " + " | ".join(criteria) + " |")
    print("|---|---|" + "---|" * len(criteria), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pruned = str(pathlib.Path(folder) / "pruned.onnx")
        for name, target in targets:
            cells = []
            kept = 0.0
            for variants in criteria.values():
                losses = []
                for arguments in variants:
                    command = [options.tool, model, pruned, *target, *arguments, "--scope", options.scope, "--no-latency", "--no-refit"]
                    if arguments[1] not in ("magnitude", "random"):
                        command += [*train, "--batch", "32", "--timesteps", "50"]
                    result = run(command)
                    kept = max(kept, result["after"]["macs"] / result["before"]["macs"])
                    losses.append(loss(options.tool, pruned, heldout))
                cells.append(sum(losses) / len(losses))
            best = min(cells)
            row = [f"**{cell:.4f}**" if cell == best else f"{cell:.4f}" for cell in cells]
            print(f"| {name} | {kept:.1%} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
