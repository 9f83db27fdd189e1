#!/usr/bin/env python3
"""Run the step of action.yml as a workflow would, on networks of fixtures/, and check its outputs.

    check_action.py --tool target/debug/onnx-diffprune

The defaults of the inputs, the step's command and its environment are read from action.yml. The script replaces the
runner: it provides the files for outputs and the summary, and the folder of the action. Installing, comments and
uploads do not run. The exit code is 0 if every check passed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy
import onnx
import yaml
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"


class Run:
    """One run of the step, with its outputs."""

    def __init__(self, tool: Path, folder: Path, **inputs: str) -> None:
        action = yaml.safe_load((ROOT / "action.yml").read_text())
        step = next(step for step in action["runs"]["steps"] if step.get("id") == "run")
        unknown = set(inputs) - {name.replace("-", "_") for name in action["inputs"]}
        assert not unknown, f"action.yml has no inputs {unknown}"

        def value(expression: re.Match) -> str:
            name = expression.group(1)
            return inputs.get(name.replace("-", "_"), str(action["inputs"][name].get("default", "")))

        environment = {
            **os.environ,
            **{name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", value, text) for name, text in step["env"].items()},
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_OUTPUT": str(folder / "github-output"),
            "GITHUB_STEP_SUMMARY": str(folder / "github-summary"),
            "ONNX_DIFFPRUNE": str(tool),
            # The environment into which the previous step of the action installs the tool.
            "VIRTUAL_ENV": sys.prefix,
        }
        assert not any("${{" in text for text in environment.values()), "an expression was not replaced"
        done = subprocess.run(
            ["bash", "-e", "-c", step["run"]], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        self.code, self.log, self.messages = done.returncode, done.stdout, done.stderr
        outputs = (folder / "github-output").read_text().splitlines() if (folder / "github-output").exists() else []
        self.outputs = dict(line.split("=", 1) for line in outputs)
        declared = set(action["outputs"])
        assert set(self.outputs) <= declared, f"outputs that action.yml does not declare: {set(self.outputs) - declared}"
        summary = folder / "github-summary"
        self.summary = summary.read_text() if summary.exists() else ""
        self.results = folder / self.outputs.get("results", "none")

    def cases(self, name: str) -> list[tuple[str, bool]]:
        """Return the cases of a JUnit file: their names, and whether they passed."""
        root = ElementTree.parse(self.results / f"{name}.xml").getroot()
        cases = [(case.get("name", ""), len(case.findall("failure") + case.findall("error")) == 0) for case in root.iter("testcase")]
        # Readers of the file rely on its totals.
        failed = int(root.get("failures")) + int(root.get("errors"))
        assert int(root.get("tests")) == len(cases) and failed == sum(not passed for _, passed in cases)
        return cases


def parameters(path: Path) -> int:
    """Return the number of elements of the float initializers."""
    graph = onnx.load(path).graph
    return sum(int(numpy.prod(tensor.dims)) for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)


def pruned(tool: Path, folder: Path) -> None:
    """A pipeline is pruned, verified and reported on."""
    run = Run(tool, folder, model=str(FIXTURES / "pipelines/sd_tiny"), output="slim", arguments="--ratio 0.5 --criterion magnitude")
    assert run.code == 0, run.messages
    assert run.outputs["passed"] == "true" and run.outputs["output"] == "slim", run.outputs
    before, after = (parameters(place / "unet/model.onnx") for place in (FIXTURES / "pipelines/sd_tiny", folder / "slim"))
    assert abs(float(run.outputs["parameters-kept"]) - after / before) < 0.01, (run.outputs, before, after)
    assert 0 < float(run.outputs["macs-kept"]) < 1
    assert len(run.cases("verify")) > 1 and all(passed for _, passed in run.cases("verify"))
    assert (run.results / "report.html").stat().st_size > 1000
    assert run.summary.strip() == (run.results / "summary.md").read_text().strip() and "| passed |" in run.summary
    assert "::error" not in run.log


def wrong_weights(tool: Path, folder: Path) -> None:
    """A pruned file with changed weights fails with an annotation."""
    original = FIXTURES / "dit_tiny.onnx"
    first = Run(tool, folder, model=str(original), output="cut.onnx", arguments="--ratio 0.5 --criterion magnitude")
    assert first.code == 0, first.messages
    model = onnx.load(folder / "cut.onnx")
    tensor = max((t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT), key=lambda t: numpy.prod(t.dims))
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, folder / "cut.onnx")
    (folder / "github-output").unlink()
    run = Run(tool, folder, model=str(original), pruned="cut.onnx")
    assert run.code == 1 and run.outputs["passed"] == "false", (run.code, run.outputs, run.messages)
    assert not all(passed for _, passed in run.cases("verify"))
    assert "::error title=" in run.log and "**failed**" in run.summary


def limits(tool: Path, folder: Path) -> None:
    """A cut without refit exceeds a limit of its loss, and passes a higher one."""
    original, data = str(FIXTURES / "ddpm_fashion16.onnx"), str(FIXTURES / "ddpm_fashion16/heldout_images.npy")
    common = {
        "model": original,
        "data": data,
        "evaluate_arguments": "--samples 0 --count 8 --timesteps 2 --no-latency",
    }
    arguments = "--ratio 0.5 --criterion magnitude --no-refit --no-latency"
    run = Run(tool, folder, **common, output="cut.onnx", arguments=arguments, max_loss_increase="5%")
    assert run.code == 1 and run.outputs["passed"] == "false", (run.code, run.messages)
    assert all(passed for _, passed in run.cases("verify")), "the cut should pass verification"
    assert run.cases("evaluate") == [("max-loss-increase", False)], run.cases("evaluate")
    (folder / "github-output").unlink()
    run = Run(tool, folder, **common, pruned="cut.onnx", max_loss_increase="100000%")
    assert run.code == 0 and run.cases("evaluate") == [("max-loss-increase", True)], run.messages


def wrong_use(tool: Path, folder: Path) -> None:
    """A missing file and an unknown option are reported."""
    run = Run(tool, folder, model="missing.onnx")
    assert run.code == 2 and "::error title=pruning failed::" in run.log and "missing.onnx" in run.log, run.log
    (folder / "github-output").unlink()
    run = Run(tool, folder, model=str(FIXTURES / "dit_tiny.onnx"), arguments="--no-such-option")
    assert run.code == 2 and "--no-such-option" in run.log, run.log


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", type=Path, required=True)
    tool = parser.parse_args().tool.resolve()
    failed = 0
    checks = (pruned, wrong_weights, limits, wrong_use)
    for check in checks:
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(tool, Path(folder))
                print(f"passed: {check.__doc__}", flush=True)
            except (AssertionError, OSError, KeyError, ElementTree.ParseError) as error:
                failed += 1
                print(f"FAILED: {check.__doc__} {type(error).__name__}: {error}", flush=True)
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
