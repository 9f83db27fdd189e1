#!/usr/bin/env python3
"""Prune many models by magnitude at one ratio, refit them on samples that they generate, and verify the results.

For every model, prints how many layers were fitted, how many kept their weights, and why. A network that does not
denoise can't be refitted, and the tool must report that. The exit code is 0 if every model was refitted and verified,
or refused with a reason, otherwise 1.
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

import skeleton
from check_models import CheckFailed, compare, first_line, unpacked

# Words of the tool's message for a network that is not recognised as a denoising network.
REFUSALS = ("denois", "sample", "timestep", "prediction", "clean", "nothing can be pruned", "no gradient")


def refit(model: Path, pruned: Path, options: argparse.Namespace) -> dict:
    """Run the tool on a model. Return the results of its layers."""
    command = [options.tool, model, pruned, "--ratio", options.ratio, "--criterion", "magnitude", "--refit"]
    command += ["--refit-samples", str(options.samples), "--refit-timesteps", str(options.timesteps)]
    command += ["--draw-steps", "2", "--no-latency", "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.timeout)
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(f"the tool ran longer than {options.timeout:.0f} s") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("error")] or done.stderr.splitlines()
        try:
            reason = json.loads(done.stdout)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            reason = said[-1] if said else "no message"
        reason = reason[:300]
        if done.returncode in (1, 2) and any(word in reason for word in REFUSALS):
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
        layers = found["refit"]["layers"]
        if not (found["verification"]["passed"] and found["cut_verification"]["passed"]):
            raise CheckFailed("it was not verified")
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
    parser.add_argument("--tool", default=root / "target/release/onnx-diffprune", help="the built tool")
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="*.onnx and skeletons, *.onnx.xz")
    parser.add_argument("--only", default="*", metavar="GLOB", help="check only models whose name matches")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the refitted models")
    parser.add_argument("--keep", action="store_true", help="keep the refitted models")
    parser.add_argument("--ratio", default="0.3")
    parser.add_argument("--samples", type=int, default=16, metavar="N")
    parser.add_argument("--timesteps", type=int, default=16, metavar="N")
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="time limit of one run of the tool")
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
        except Exception as error:  # an unreadable model is one failure and must not stop the others
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
