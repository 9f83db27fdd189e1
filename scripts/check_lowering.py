#!/usr/bin/env python3
"""Check lowered fused operators against independent implementations.

Every case of `lowering/` is one node of a fused operator. The example `lowered` rewrites it in standard operators. ONNX
Runtime's result for those is compared with its own CPU kernel of the fused operator, if it has one, and with NumPy. If
both exist, they are also compared with each other. The lowered file must pass the ONNX checker and have no operator of
ONNX Runtime's domain. A case whose node is still fused in the file counts as not lowered, which is a failure unless
`--allow-unlowered` is given. The exit code is 0 if every check passed, otherwise 1.

    check_lowering.py --lowered target/debug/examples/lowered [--allow-unlowered] [--only REGEX] [--format json]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from lowering import all_cases
from lowering.case import MICROSOFT, Case

# Errors are relative to the largest element.
TOLERANCES = {"float32": 1e-5, "float16": 2e-3}


@dataclass
class Result:
    """The result of one case."""

    operator: str
    variant: str
    dtype: str
    references: list[str]
    lowered: bool
    error: float
    failures: list[str]


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return all outputs of a model in ONNX Runtime, without optimizations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip((output.name for output in session.get_outputs()), session.run(None, feeds)))


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> tuple[float, str | None]:
    """Return the largest error of several outputs relative to the largest element, and a description of other
    differences."""
    worst = 0.0
    for name, value in expected.items():
        other = found.get(name)
        if other is None or other.shape != value.shape or other.dtype != value.dtype:
            of = "nothing" if other is None else f"{other.dtype}{list(other.shape)}"
            return float("inf"), f"{name} is {of}, expected {value.dtype}{list(value.shape)}"
        wide, other = value.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(wide)
        if not np.array_equal(other[~finite], wide[~finite], equal_nan=True):
            return float("inf"), f"{name} is not finite at the same positions"
        if finite.any():
            largest = max(float(np.abs(wide[finite]).max()), 1e-30)
            error = np.abs(other[finite] - wide[finite]).max() / largest
            worst = max(worst, float(error) if np.isfinite(error) else float("inf"))
    return worst, None


def lower(case: Case, model: onnx.ModelProto, tool: Path) -> tuple[onnx.ModelProto | None, list[str]]:
    """Return the model in standard operators, or None if its node is still fused, and the faults of the file."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fused.onnx", Path(folder) / "lowered.onnx"
        onnx.save(model, source)
        done = subprocess.run([tool, source, target], capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            return None, [f"the tool failed: {done.stderr.strip().splitlines()[:1]}"]
        lowered = onnx.load(target)
    of_node = (case.domain, case.op_type)
    operators = {(node.domain, node.op_type) for node in lowered.graph.node}
    if of_node in operators:
        return None, []
    failures = [f"it contains {domain}.{op_type}" for domain, op_type in operators if domain == MICROSOFT]
    try:
        onnx.checker.check_model(lowered, full_check=True)
    except Exception as error:
        failures.append(f"the onnx checker refuses it: {str(error).splitlines()[0]}")
    return lowered, failures


def check(case: Case, tool: Path, symbolic: bool) -> Result:
    """Lower a case and compare it with every reference."""
    model, tolerance = case.model(symbolic), TOLERANCES[case.dtype]
    variant = case.variant + (", symbolic batch" if symbolic else "")
    failures: list[str] = []
    by_numpy = {f"output{slot}": value for slot, value in enumerate(case.expected) if value is not None}
    references = {"NumPy": by_numpy}
    if case.kernel:
        try:
            references = {"ONNX Runtime": run(model, case.feeds()), **references}
        except Exception as error:
            failures.append(f"ONNX Runtime does not run the fused node: {str(error).splitlines()[0]}")
    if "ONNX Runtime" in references:
        error, cause = difference(by_numpy, references["ONNX Runtime"])
        if error > tolerance:
            failures.append(f"NumPy and ONNX Runtime disagree: {cause or f'{error:.1e}'}")
    lowered, wrong = lower(case, model, tool)
    failures += wrong
    worst = 0.0
    if lowered is not None:
        try:
            found = run(lowered, case.feeds())
        except Exception as error:
            failures.append(f"ONNX Runtime does not run the lowered form: {str(error).splitlines()[0]}")
            found = {}
        for name, expected in references.items() if found else ():
            error, cause = difference(found, expected)
            worst = max(worst, error)
            if error > tolerance:
                failures.append(f"the lowered form differs from {name}: {cause or f'{error:.1e}'}")
    return Result(case.operator, variant, case.dtype, list(references), lowered is not None, worst, failures)


def table(results: list[Result]) -> str:
    """Format one row for each operator."""
    header = f"{'operator':<50} {'variants':>8} {'lowered':>8}  {'reference':<20} {'float32':>8} {'float16':>8}"
    lines = [header]
    for operator in dict.fromkeys(result.operator for result in results):
        rows = [result for result in results if result.operator == operator]
        names = [name for name in ("ONNX Runtime", "NumPy") if any(name in result.references for result in rows)]
        errors = []
        for dtype in TOLERANCES:
            of_dtype = [result.error for result in rows if result.dtype == dtype and result.lowered]
            errors.append(f"{max(of_dtype):>8.0e}" if of_dtype else f"{'-':>8}")
        count = sum(result.lowered for result in rows)
        state = f"{count:>8}" if count else f"{'none':>8}"
        line = f"{operator:<50} {len(rows):>8} {state}  {', '.join(names):<20} {' '.join(errors)}"
        failed = sum(bool(result.failures) for result in rows)
        lines.append(line + (f"  {failed} FAILED" if failed else ""))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lowered", type=Path, required=True, help="the built example `lowered`")
    parser.add_argument("--allow-unlowered", action="store_true", help="accept nodes that are still fused")
    parser.add_argument("--only", default="", help="regular expression for 'operator: variant, dtype'")
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel processes")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args()

    wanted = re.compile(options.only)
    cases = [case for case in all_cases() if wanted.search(f"{case.operator}: {case.variant}, {case.dtype}")]
    if not cases:
        parser.error("no case matches")
    # A symbolic batch does not change the values, so one element type is enough.
    symbolic = [case for case in cases if case.dtype == "float32"]
    with ProcessPoolExecutor(options.jobs) as pool:
        results = list(pool.map(partial(check, tool=options.lowered, symbolic=False), cases, chunksize=8))
        results += pool.map(partial(check, tool=options.lowered, symbolic=True), symbolic, chunksize=8)
    for result in results:
        if not result.lowered and not result.failures and not options.allow_unlowered:
            result.failures.append("not lowered")
    failed = [result for result in results if result.failures]
    unlowered = sum(not result.lowered for result in results)
    if options.format == "json":
        report = {"passed": not failed, "not_lowered": unlowered, "results": [asdict(result) for result in results]}
        print(json.dumps(report, indent=1))
        return 1 if failed else 0
    print(table(results))
    for result in failed:
        print(f"{result.operator}: {result.variant}, {result.dtype}: {'; '.join(result.failures)}")
    print(f"{len(results)} cases, {unlowered} not lowered, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
