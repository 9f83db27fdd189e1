"""Measures how much of the loss fine-tuning recovers after a cut and its refit: the table of docs/finetune.md.

    python scripts/finetune_table.py TOOL [--ratios 0.3,0.5] [--steps 200,1000] [--seed 0] [--finetune=ARGS]

Cuts fixtures/ddpm_fashion16.onnx by Diff-Pruning on its training images, refits it, fine-tunes it by the default recipe
with the original as teacher, and measures the mean denoising loss on held-out images: 256 images, 25 timesteps, seed 0
(`onnx-diffprune loss`). No training images are held out and no evaluations run, so that the last weights are used.
Every run has one CPU core to itself. Prints Markdown: the increase of the loss above that of the unpruned network, and
the CPU seconds of the whole training run.
"""

import argparse
import pathlib
import shlex
import tempfile

from refit_table import FASHION, ROOT, run

MODEL = str(ROOT / "fixtures/ddpm_fashion16.onnx")
PROCESS = ["--scheduler-config", str(FASHION / "scheduler_config.json")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("--ratios", default="0.3,0.5")
    parser.add_argument("--steps", default="200,1000")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--finetune", default="", help="further options of `finetune`")
    options = parser.parse_args()
    data = ["--data", str(FASHION / "train_images.npy"), *PROCESS, "--seed", options.seed]

    def loss(model: str) -> float:
        command = [options.tool, "loss", model, "--data", str(FASHION / "heldout_images.npy"), *PROCESS]
        return run([*command, "--count", "256", "--timesteps", "25", "--seed", "0"])[0]["mean"]

    unpruned = loss(MODEL)
    steps = options.steps.split(",")
    print(f"Unpruned: {unpruned:.4f}\n", flush=True)
    print("| cut | refitted | " + " | ".join(f"{count} steps" for count in steps) + " |")
    print("|---" * (2 + len(steps)) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        cut, tuned = (str(pathlib.Path(folder) / name) for name in ("cut.onnx", "tuned.onnx"))
        for ratio in options.ratios.split(","):
            run([options.tool, MODEL, cut, "--ratio", ratio, "--timesteps", "100", "--no-latency", *data])
            cells = [f"ratio {ratio}", f"{loss(cut) - unpruned:+.4f}"]
            for count in steps:
                command = [options.tool, "finetune", cut, tuned, "--teacher", MODEL, "--steps", count, *data]
                command += ["--eval-samples", "0", "--threads", "1", *shlex.split(options.finetune)]
                seconds = run(command)[1]
                cells.append(f"{loss(tuned) - unpruned:+.4f} ({seconds:.0f} s)")
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
