#!/usr/bin/env python3
"""Write the tables of docs/models.md from the saved results of check_models.py and check_tensorrt.py.

    models_table.py --architectures ROWS.json --models ROWS.json [...] [--tensorrt RESULTS.json [...]]

TensorRT's results are matched by file name: NAME.r0.5.onnx is a pruned model, NAME.onnx an original. Failed exports of
an architecture are named; several parameter counts and shares become a range.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "models.md"
EXPORT = re.compile(r"(_(ts|dy)(\d+))?(_dyn)?$")
EXPORTERS = {"ts": "TorchScript", "dy": "dynamo"}


def load_all(paths: list[Path]) -> list[dict]:
    return [row for path in paths for row in json.loads(path.read_text())]


def architecture(name: str) -> str:
    return EXPORT.sub("", name)


def export(name: str) -> str:
    """Return `TorchScript 17, symbolic` for NAME_ts17_dyn."""
    found = EXPORT.search(name)
    exporter = f"{EXPORTERS[found[2]]} {found[3]}" if found[1] else "as its name says"
    return exporter + (" symbolic" if found[4] else "")


def number_range(values: list[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def engine_of(row: dict, engines: dict[str, dict]) -> str:
    pruned = engines.get(f"{row['model']}.r{row['ratio']:g}.onnx")
    if pruned is None:
        return "not tried"
    if pruned["ok"]:
        return "builds"
    original = engines.get(f"{row['model']}.onnx")
    if original is None:
        return "fails"
    return "fails, the original builds" if original["ok"] else "neither does the original"


def joined(states: dict[str, list[str]]) -> str:
    """Return one state for all exports, or each state with its exports."""
    if len(states) == 1:
        return next(iter(states))
    return "; ".join(f"{state}: {', '.join(names)}" for state, names in states.items())


def architecture_table(rows: list[dict], engines: dict[str, dict]) -> list[str]:
    groups: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        groups[architecture(row["model"])].append(row)
    lines = [
        "| architecture | exports | parameters | kept | worst error | TensorRT-RTX engine |",
        "|---|---|---|---|---|---|",
    ]
    for name, group in groups.items():
        states: dict[str, list[str]] = defaultdict(list)
        for row in group:
            state = engine_of(row, engines) if row["status"] == "ok" else f"not pruned: {row['reason']}"
            states[state].append(export(row["model"]))
        passed = [row for row in group if row["status"] == "ok"]
        size = number_range([row["before"] / 1e3 for row in group], "{:.0f} k")
        kept = number_range([row["kept"] for row in passed], "{:.1f} %") if passed else "-"
        errors = [row["error"] for row in passed if row["error"] is not None]
        worst = f"{max(errors):.1e}" if errors else "-"
        exports = ", ".join(export(row["model"]) for row in group)
        lines.append(f"| {name} | {exports} | {size} | {kept} | {worst} | {joined(states)} |")
    return lines


def model_table(rows: list[dict], engines: dict[str, dict]) -> list[str]:
    lines = [
        "| model | ratio | parameters | after | kept | worst error | TensorRT-RTX engine |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["status"] != "ok":
            lines.append(f"| {row['model']} | {row['ratio']:g} | {row['before'] / 1e6:.2f} M | {row['reason']} | | | |")
            continue
        error = "-" if row["error"] is None else f"{row['error']:.1e}"
        lines.append(
            f"| {row['model']} | {row['ratio']:g} | {row['before'] / 1e6:.2f} M | {row['after'] / 1e6:.2f} M "
            f"| {row['kept']:.1f} % | {error} | {engine_of(row, engines)} |"
        )
    return lines


def replace_section(text: str, name: str, lines: list[str]) -> str:
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        sys.exit(f"{DOCUMENT}: expected the markers {begin} and {end}, found none")
    return before + "\n".join([begin, "", *lines, "", end]) + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--models", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--tensorrt", type=Path, nargs="*", default=[], metavar="FILE")
    options = parser.parse_args()
    engines = {Path(result["model"]).name: result for result in load_all(options.tensorrt)}
    rows = load_all(options.architectures)
    tried = [engine_of(row, engines) for row in rows if row["status"] == "ok"]
    summary = [
        f"{sum(row['status'] == 'ok' for row in rows)} of {len(rows)} exports of "
        f"{len({architecture(row['model']) for row in rows})} architectures are pruned and verified; of "
        f"{sum(state != 'not tried' for state in tried)} pruned models that TensorRT-RTX was given, it builds "
        f"{tried.count('builds')}.",
        "",
    ]
    text = DOCUMENT.read_text()
    text = replace_section(text, "models", model_table(load_all(options.models), engines))
    text = replace_section(text, "architectures", summary + architecture_table(rows, engines))
    DOCUMENT.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
