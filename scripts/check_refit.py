#!/usr/bin/env python3
"""Prune many models at one ratio by magnitude, refit them on random samples, and verify what comes out.

The tool is given clean samples of the right shape, made here. For every model it prints how many layers were fitted, how
many kept their weights, and why. A network that does not denoise can't be refitted: then the tool has to say so. The exit
code is 0 when every model was refitted and verified, or was refused with a reason, else 1.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import skeleton
from check_models import CheckFailed, compare, first_line, unpacked

# What the tool says of a network that is no denoiser, or of which it can't tell how it is one.
REFUSALS = ("denois", "sample", "timestep", "prediction", "clean", "nothing can be pruned", "no gradient")


def default_size(symbol: str) -> int:
    """The size that the tool takes for a symbolic dimension of this name."""
    name = symbol.lower()
    has = lambda *words: any(word in name for word in words)
    if has("batch") or name in ("b", "n"):
        return 1
    if has("height", "width", "size") or name in ("h", "w"):
        return 16
    if has("seq", "len", "token", "text") or name == "l":
        return 7
    return 8 if has("frame", "depth", "time") else 2


def samples(model: Path, count: int, target: Path) -> int:
    """Write `count` random samples for every floating point input that could be the one that is denoised.

    Returns the elements of the largest sample.
    """
    graph = onnx.load(model, load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    generator = np.random.default_rng(0)
    arrays = {}
    for value in graph.input:
        tensor = value.type.tensor_type
        if value.name in stored or tensor.elem_type not in (1, 10, 11, 16) or len(tensor.shape.dim) < 2:
            continue
        dims = [dim.dim_value if dim.HasField("dim_value") else default_size(dim.dim_param) for dim in tensor.shape.dim]
        arrays[value.name] = generator.standard_normal([count, *dims[1:]]).astype(np.float32)
    if not arrays:
        raise CheckFailed("no input could be a sample")
    np.savez(target, **arrays)
    return max(array[0].size for array in arrays.values())


def refit(model: Path, pruned: Path, options: argparse.Namespace) -> dict:
    """Run the tool on a model; what became of its layers."""
    data = options.out / f"{model.stem}.samples.npz"
    elements = samples(model, options.samples, data)
    count = max(2, min(options.samples, options.elements // elements))
    command = [options.tool, str(model), str(data), str(options.scheduler), str(pruned), options.ratio, "magnitude"]
    command += [str(count), "1e-3", "0", "2", "0", str(options.rows)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.timeout)
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(f"the tool ran longer than {options.timeout:.0f} s") from error
    finally:
        data.unlink()
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        reason = said[-1][:300] if said else "no message"
        if done.returncode == 2 and any(word in reason for word in REFUSALS):
            return {"status": "refused", "reason": reason}
        raise CheckFailed(f"exit code {done.returncode}: {reason}")
    return json.loads(done.stdout)


def check(source: Path, options: argparse.Namespace) -> dict:
    model = unpacked(source, options.out / "models")
    pruned = options.out / f"{model.stem}.refitted.onnx"
    pruned.unlink(missing_ok=True)
    started = time.monotonic()
    row = {"model": model.stem, "fitted": 0, "kept": 0, "reasons": {}, "reason": ""}
    try:
        found = refit(model, pruned, options)
        if found.get("status") == "refused":
            return {**row, **found}
        layers = found["layers"]
        fitted = [layer for layer in layers if layer["errors"]]
        reasons = collections.Counter(layer["reason"] for layer in layers if not layer["errors"])
        row |= {"fitted": len(fitted), "kept": len(layers) - len(fitted), "reasons": dict(reasons.most_common())}
        row["seconds"] = round(time.monotonic() - started, 1)
        worse = [layer["node"] for layer in fitted if not layer["errors"][1] <= layer["errors"][0]]
        if worse:
            raise CheckFailed(f"the error of {worse[0]} has grown")
        if not all(math.isfinite(error) for layer in fitted for error in layer["errors"]):
            raise CheckFailed("an error is not finite")
        compare(model, pruned, model)
    except CheckFailed as reason:
        return {**row, "status": "failed", "reason": str(reason)}
    finally:
        if not options.keep:
            pruned.unlink(missing_ok=True)
    return {**row, "status": "ok"}


def print_row(row: dict) -> None:
    seconds = f"{row['seconds']:7.1f}" if "seconds" in row else "       "
    print(f"{row['model']:44} {row['fitted']:6} {row['kept']:5} {seconds}  {row['status']:8} {row['reason']}".rstrip())
    for reason, count in row["reasons"].items():
        print(f"{'':44} {count:6} kept: {reason}")
    sys.stdout.flush()


def parse_arguments() -> argparse.Namespace:
    root = Path(__file__).parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", default=root / "target/release/examples/refit", help="the built example refit")
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="*.onnx and skeletons, *.onnx.xz")
    parser.add_argument("--only", default="*", metavar="GLOB", help="only the models whose name matches")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the refitted models")
    parser.add_argument("--keep", action="store_true", help="keep the refitted models")
    parser.add_argument("--ratio", default="0.3")
    parser.add_argument("--samples", type=int, default=8, metavar="N")
    parser.add_argument("--elements", type=int, default=1 << 20, metavar="N", help="of all samples; large ones are fewer")
    parser.add_argument("--rows", type=int, default=1000, metavar="N", help="equations of a layer")
    parser.add_argument("--scheduler", type=Path, default=root / "fixtures/ddpm_fashion16/scheduler_config.json")
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="limit of one run of the tool")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write all rows as JSON too")
    options = parser.parse_args()
    patterns = (f"{options.only}.onnx", f"{options.only}{skeleton.SUFFIX}")
    options.sources = sorted(path for pattern in patterns for path in options.models.glob(pattern))
    if not options.sources:
        parser.error(f"no models in {options.models}")
    return options


def main() -> int:
    options = parse_arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{'model':44} fitted  kept seconds  status")
    rows = []
    for source in options.sources:
        try:
            row = check(source, options)
        except Exception as error:  # a model that can't be read is one failure, not the end
            row = {"model": source.stem, "fitted": 0, "kept": 0, "reasons": {}}
            row |= {"status": "failed", "reason": first_line(error)}
        print_row(row)
        rows.append(row)
    if options.save:
        options.save.write_text(json.dumps(rows, indent=1) + "\n")
    states = collections.Counter(row["status"] for row in rows)
    print(f"{states['ok']} refitted, {states['refused']} refused with a reason, {states['failed']} failed")
    return 1 if states["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
