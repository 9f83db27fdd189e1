"""How much a cut costs before anything is trained, by criterion: the table of docs/quality.md.

    python scripts/quality_table.py TOOL [--ratios 0.1,0.2,0.3,0.5] [--macs 0.57,0.34] [--scope local|global]

Prunes fixtures/ddpm_fashion16.onnx by every criterion and measures the mean denoising loss of what is left on images
that were not trained on: 256 images, t = 0, 40, ..., 960, one noise for all timesteps (`onnx-diffprune loss`).
Gradients are taken of 32 training images at 50 timesteps; random is the mean of three seeds. Prints Markdown.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "fixtures/ddpm_fashion16.onnx"
SCHEDULER = ROOT / "fixtures/ddpm_fashion16/scheduler_config.json"
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


def loss(tool: str, model: str, heldout: str) -> float:
    return run([tool, "loss", model, "--data", heldout, "--scheduler-config", str(SCHEDULER)])["mean"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("--train", default=str(ROOT / "fixtures/ddpm_fashion16/train_images.npy"))
    parser.add_argument("--heldout", default=str(ROOT / "fixtures/ddpm_fashion16/heldout_images.npy"))
    parser.add_argument("--ratios", default="0.1,0.2,0.3,0.5")
    parser.add_argument("--macs", default="0.57,0.34")
    parser.add_argument("--scope", default="local", help="where channels compete")
    options = parser.parse_args()
    targets = [("ratio " + ratio, ["--ratio", ratio]) for ratio in options.ratios.split(",") if ratio]
    targets += [(f"{float(share):.0%} of the MACs", ["--target-macs", share]) for share in options.macs.split(",") if share]
    print(f"Unpruned: {loss(options.tool, str(MODEL), options.heldout):.4f}\n", flush=True)
    print("| cut | MACs kept | " + " | ".join(CRITERIA) + " |")
    print("|---|---|" + "---|" * len(CRITERIA), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pruned = str(pathlib.Path(folder) / "pruned.onnx")
        for name, target in targets:
            cells = []
            kept = 0.0
            for variants in CRITERIA.values():
                losses = []
                for arguments in variants:
                    command = [options.tool, str(MODEL), pruned, *target, *arguments, "--scope", options.scope, "--no-verify"]
                    if arguments[1] not in ("magnitude", "random"):
                        command += ["--data", options.train, "--batch", "32", "--timesteps", "50"]
                        command += ["--scheduler-config", str(SCHEDULER)]
                    result = run(command)
                    kept = max(kept, result["after"]["macs"] / result["before"]["macs"])
                    losses.append(loss(options.tool, pruned, options.heldout))
                cells.append(sum(losses) / len(losses))
            best = min(cells)
            row = [f"**{cell:.4f}**" if cell == best else f"{cell:.4f}" for cell in cells]
            print(f"| {name} | {kept:.1%} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
