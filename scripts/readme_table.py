#!/usr/bin/env python3
"""Prune models of ``fixtures/`` at ratio 0.5 with the tool and print the results as a Markdown table.

    readme_table.py [--tool target/release/onnx-diffprune] [--ratio 0.5]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ("ddpm_fashion16", "dit_tiny", "sd15_tiny_fp16")
# Random weights, unpacked with skeleton.py.
ARCHITECTURES = ("sdxl_tiny", "sd3_dy20", "flux_ts17", "edm_adm_dy20", "kl_decoder_ts17_dyn", "wan_video_dy20")


def short(value: float) -> str:
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.2f} {unit}"
    return f"{value:.0f}"


def row(tool: Path, model: Path, ratio: str, folder: Path) -> str:
    command = [tool, model, folder / "out.onnx", "--ratio", ratio, "--criterion", "magnitude", "--no-latency", "--format", "json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{model.name}: exit code {done.returncode}\n{done.stderr}")
    result = json.loads(done.stdout)
    pairs = [(result[when]["parameters"], result[when]["macs"]) for when in ("before", "after")]
    size = result["file_bytes"]
    cells = [f"`{model.stem}`"]
    for before, after in (*zip(*pairs), (size["before"], size["after"])):
        cells.append(f"{short(before)} → {short(after)} ({100 * after / before:.0f} %)")
    outputs = [output for run in result["verification"]["runs"] for output in run["outputs"]]
    cells.append(f"{max(output['relative'] for output in outputs):.1e}")
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", type=Path, default=ROOT / "target/release/onnx-diffprune")
    parser.add_argument("--ratio", default="0.5")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packed = [ROOT / "fixtures/architectures" / f"{model}.onnx.xz" for model in ARCHITECTURES]
        unpack = [sys.executable, ROOT / "scripts/skeleton.py", "unpack", *packed, "--out", folder]
        subprocess.run([str(part) for part in unpack], check=True, stdout=subprocess.DEVNULL)
        models = [ROOT / "fixtures" / f"{model}.onnx" for model in FIXTURES]
        models += [folder / f"{model}.onnx" for model in ARCHITECTURES]
        print("| model | parameters | MACs | file, bytes | worst relative error |\n|---|---|---|---|---|")
        for model in models:
            print(row(options.tool, model, options.ratio, folder), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
