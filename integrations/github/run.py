"""The step of action.yml that runs the tool.

Its inputs are environment variables with the names in action.yml. It prunes a network, or uses an already pruned one,
verifies it, and compares it with its original on samples if there are any. It writes the report, the JUnit files and
summary.md into the folder RESULTS, the step's outputs and summary into the files that GitHub names, and an annotation
for every failed check. The exit code is that of the first command that failed.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

TOOL = os.environ.get("ONNX_DIFFPRUNE", "onnx-diffprune")


def given(name: str) -> str:
    return os.environ.get(name, "").strip()


def append(variable: str, text: str) -> None:
    """Appends to a file that GitHub reads after the step. Outside of GitHub there is no such file."""
    if path := os.environ.get(variable):
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)


def escaped(text: str, is_property: bool = False) -> str:
    """Escapes text for a workflow command."""
    for sign, code in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        text = text.replace(sign, code)
    if is_property:
        text = text.replace(":", "%3A").replace(",", "%2C")
    return text


def annotate(title: str, text: str) -> None:
    print(f"::error title={escaped(title, True)}::{escaped(text)}", flush=True)


def run(*arguments: str) -> subprocess.CompletedProcess:
    """Runs the tool. Its messages go to the log, its result is returned."""
    print("$", shlex.join(["onnx-diffprune", *arguments]), flush=True)
    return subprocess.run([TOOL, *arguments], stdout=subprocess.PIPE, text=True, encoding="utf-8", check=False)


def cell(text: str) -> str:
    """Escapes text for a table cell, because names come from files."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("`", "'").replace("<", "&lt;").replace("\n", " ")


def cuts(result: dict) -> dict[str, dict]:
    """Returns the cuts in a result: one, or one for each component of a pipeline."""
    found = result.get("components", {"": result} if "before" in result else {})
    return {name: cut for name, cut in found.items() if isinstance(cut, dict) and cut.get("before") and cut.get("after")}


def table_of_cuts(found: dict[str, dict]) -> list[str]:
    lines = ["| | parameters | | MACs | |", "|---|--:|--:|--:|--:|"]
    for name, cut in found.items():
        before, after = cut["before"], cut["after"]
        cells = [cell(name or "network")]
        for what in ("parameters", "macs"):
            share = after[what] / before[what] if before[what] else 1.0
            cells += [f"{before[what] / 1e6:,.2f} M → {after[what] / 1e6:,.2f} M", f"{share:.1%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def table_of_checks(path: Path) -> list[str]:
    """Returns the cases of a JUnit file as table rows, and annotates those that failed."""
    lines = []
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        problem = next((child for child in case if child.tag in ("failure", "error")), None)
        place = case.get("classname", "")
        name = f"{place}: {case.get('name', '')}" if place else case.get("name", "")
        message = "" if problem is None else problem.get("message", "")
        if problem is not None:
            annotate(name, "\n".join(filter(None, (message, (problem.text or "").strip()))))
        lines.append(f"| {'passed' if problem is None else '**failed**'} | {cell(name)} | {cell(message)} |")
    return lines


def main() -> int:
    model, pruned, results = given("MODEL"), given("PRUNED"), Path(given("RESULTS") or "onnx-diffprune-results")
    if not model:
        annotate("onnx-diffprune", "no model given: set the input `model`")
        return 2
    results.mkdir(parents=True, exist_ok=True)
    append("GITHUB_OUTPUT", f"results={results}\n")
    summary, code, checks = ["## onnx-diffprune", ""], 0, []
    if not pruned:
        pruned = given("OUTPUT") or "pruned.onnx"
        report = ["--report", str(results / "report.html")]
        done = run(model, pruned, "--format", "json", *report, *shlex.split(given("ARGUMENTS")))
        (results / "prune.json").write_text(done.stdout, encoding="utf-8")
        code = done.returncode
        try:
            result = json.loads(done.stdout)
        except ValueError:
            result = {}
        if found := cuts(result):
            summary += [*table_of_cuts(found), ""]
            first = next(iter(found.values()))
            for what, name in (("macs", "macs-kept"), ("parameters", "parameters-kept")):
                append("GITHUB_OUTPUT", f"{name}={first['after'][what] / first['before'][what]:.6f}\n")
        if code:
            text = "\n".join(filter(None, (result.get("error"), result.get("hint")))) or f"exit code {code}"
            annotate("pruning failed", text)
            checks.append(f"| **failed** | prune | {cell(text)} |")
    if not code:
        append("GITHUB_OUTPUT", f"output={pruned}\n")
        commands = [("verify", ["verify", model, pruned])]
        if data := given("DATA"):
            options = shlex.split(given("EVALUATE_ARGUMENTS"))
            for option, value in (("--max-loss-increase", given("MAX_LOSS_INCREASE")), ("--min-ssim", given("MIN_SSIM"))):
                options += [option, value] if value else []
            report = ["--report", str(results / "evaluation.html")]
            commands.append(("evaluate", ["evaluate", pruned, "--original", model, "--data", data, *report, *options]))
        for name, command in commands:
            done = run(*command, "--format", "junit")
            junit = results / f"{name}.xml"
            junit.write_text(done.stdout, encoding="utf-8")
            code = code or done.returncode
            try:
                checks += table_of_checks(junit)
            except ElementTree.ParseError:
                annotate(name, f"exit code {done.returncode} without a report")
    if checks:
        summary += ["| | check | |", "|---|---|---|", *checks, ""]
    append("GITHUB_OUTPUT", f"passed={'false' if code else 'true'}\n")
    text = "\n".join(summary)
    (results / "summary.md").write_text(text, encoding="utf-8")
    append("GITHUB_STEP_SUMMARY", text + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
