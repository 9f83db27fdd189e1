"""Compares local and global scope at equal MACs, after the refit: the table of docs/quality.md.

    python scripts/scope_table.py TOOL [--macs 0.57,0.34] [--seeds 0,1,2] [--criterion diff-pruning]
        [--model M.onnx --train X.npy --heldout Y.npy --scheduler S.json]

Prunes fixtures/ddpm_fashion16.onnx (or another network) to shares of the MACs in both scopes and measures the mean
denoising loss on held-out images: 256 images, t = 0, 40, ..., 960, the same noise for all timesteps (`onnx-diffprune
loss --count 256 --timesteps 25 --seed 0`). A seed determines samples and noise of gradients and refit. Prints Markdown.
"""

import argparse
import pathlib
import tempfile

from quality_table import run

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURE = ROOT / "fixtures/ddpm_fashion16"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("--model", default=str(ROOT / "fixtures/ddpm_fashion16.onnx"))
    parser.add_argument("--train", default=str(FIXTURE / "train_images.npy"))
    parser.add_argument("--heldout", default=str(FIXTURE / "heldout_images.npy"))
    parser.add_argument("--scheduler", default=str(FIXTURE / "scheduler_config.json"))
    parser.add_argument("--macs", default="0.57,0.34")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--criterion", default="diff-pruning")
    parser.add_argument("--timesteps", default="100", help="number of timesteps of the gradients")
    options = parser.parse_args()

    def loss(model: str) -> float:
        judged = ["--data", options.heldout, "--scheduler-config", options.scheduler]
        return run([options.tool, "loss", model, *judged, "--count", "256", "--timesteps", "25", "--seed", "0"])["mean"]

    seeds = options.seeds.split(",")
    print(f"Unpruned: {loss(options.model):.4f}\n", flush=True)
    print("| share of the MACs | scope | MACs kept | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean |")
    print("|---|---|---|" + "---|" * (len(seeds) + 1), flush=True)
    given = ["--criterion", options.criterion, "--data", options.train, "--scheduler-config", options.scheduler]
    given += ["--no-verify", "--no-latency"]
    if options.criterion not in ("magnitude", "random"):
        given += ["--timesteps", options.timesteps]
    with tempfile.TemporaryDirectory() as folder:
        pruned = str(pathlib.Path(folder) / "pruned.onnx")
        for share in options.macs.split(","):
            for scope in ("local", "global"):
                losses, kept = [], 0.0
                for seed in seeds:
                    command = [options.tool, options.model, pruned, "--target-macs", share, "--scope", scope]
                    result = run([*command, "--seed", seed, *given])
                    kept = max(kept, result["after"]["macs"] / result["before"]["macs"])
                    losses.append(loss(pruned))
                cells = " | ".join(f"{value:.4f}" for value in losses)
                mean = sum(losses) / len(losses)
                print(f"| {float(share):.0%} | {scope} | {kept:.1%} | {cells} | {mean:.4f} |", flush=True)


if __name__ == "__main__":
    main()
