#!/usr/bin/env python3
"""Build the wheel, install it into a fresh environment, and test the Python package in it as a user would.

The checks are: two commands from `pip install` to an image of a pruned pipeline; the tests of tests/python, which
compare the package with the command, NumPy and ONNX Runtime; mypy and pyright on the package, on its stubs and on an
example; the build of its documentation. All files are in target/wheel. The exit code is 3 if the packages can't be
installed.

By default the wheel is built with the dev profile, for this machine only. With --manylinux it is built with the release
profile and ziglang for manylinux2014 (glibc 2.17), and auditwheel checks its tag.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "target/wheel"
TOOLS = ["maturin>=1.10,<2", "ziglang", "auditwheel"]
UNAVAILABLE = 3


def stage(name: str) -> None:
    """Print the next stage, and the CPU time of the previous ones."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"--- {name} ({used.ru_utime + used.ru_stime:.0f} s of CPU time so far)", flush=True)


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> None:
    """Run a command. A failure ends the check."""
    told = [str(word) for word in command]
    # Only the ONNX Runtime of the fresh environment may be found by its name.
    kept = {name: value for name, value in os.environ.items() if name not in ("ORT_DYLIB_PATH", "VIRTUAL_ENV")}
    done = subprocess.run(told, cwd=cwd, env=kept | environment, check=False)
    if done.returncode:
        sys.exit(f"check_wheel.py: {' '.join(told)} ended with exit code {done.returncode}")


def environment(name: str, packages: list[str]) -> Path:
    """Create a fresh environment with these packages. Return the folder of its programs."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    install(programs, *packages)
    return programs


def install(programs: Path, *packages: str) -> None:
    """Install packages. If they can't be downloaded, the check is skipped."""
    command = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    if subprocess.run(command, check=False).returncode:
        print(f"check_wheel.py: {', '.join(packages)} could not be installed", file=sys.stderr)
        sys.exit(UNAVAILABLE)


def build(tools: Path, is_portable: bool) -> Path:
    """Build the wheel and return its path."""
    out = FOLDER / "dist"
    shutil.rmtree(out, ignore_errors=True)
    if is_portable:
        kind = ["--release", "--zig", "--compatibility", "manylinux2014"]
    else:
        kind = ["--profile", "dev", "--compatibility", "linux"]
    # maturin searches for ziglang in the Python on the PATH.
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    run(tools / "maturin", "build", *kind, "--out", out, PATH=path)
    (wheel,) = out.glob("*.whl")
    if is_portable:
        run(tools / "auditwheel", "show", wheel)
        if "manylinux_2_17" not in wheel.name:
            sys.exit(f"check_wheel.py: {wheel.name} requires a newer system than manylinux2014")
    return wheel


def session(programs: Path) -> None:
    """Run the session of the README: from the installed wheel to an image with two commands."""
    folder = FOLDER / "session"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "fixtures").symlink_to(ROOT / "fixtures")
    install_section = (ROOT / "README.md").read_text().split("## Installation")[1].split("```")[1]
    commands = [line.split() for line in install_section.splitlines() if line.startswith("onnx-diffprune")]
    if len(commands) != 2:
        sys.exit("check_wheel.py: expected two commands of the tool in the README's section Installation")
    for program, *words in commands:
        run(programs / program, *words, cwd=folder)
    picture = (folder / "slim.png").read_bytes()
    if not picture.startswith(b"\x89PNG") or len(picture) < 1000:
        sys.exit("check_wheel.py: slim.png is not a PNG image")


def without_runtime(wheel: Path) -> None:
    """Without ONNX Runtime, the command names the package to install, and runs what needs no runtime."""
    programs = environment("bare", [str(wheel)])
    command = [str(programs / "onnx-diffprune"), str(ROOT / "fixtures/dit_tiny.onnx"), "out.onnx", "--ratio", "0.5"]
    with tempfile.TemporaryDirectory() as folder:
        # On this machine, only files in the system's folders may be found.
        bare = {"HOME": folder, "PATH": str(programs)}
        done = subprocess.run(command, cwd=folder, env=bare, check=False, capture_output=True, text=True)
        if done.returncode == 0:
            print("skipped: the system has an ONNX Runtime")
            return
        if done.returncode != 2 or 'pip install "onnx-diffprune[cpu]"' not in done.stderr:
            sys.exit(f"check_wheel.py: no ONNX Runtime, exit code {done.returncode}: {done.stderr}")
        needs_none = ["--criterion", "magnitude", "--no-verify"]
        subprocess.run([*command, *needs_none], cwd=folder, env=bare, check=True, stdout=subprocess.DEVNULL)


def types(programs: Path) -> None:
    """Check the package, its stubs and an example with mypy and pyright."""
    tests, python = ROOT / "tests/python", programs / "python"
    cache = FOLDER / "mypy"
    run(python, "-m", "mypy", "--strict", "--cache-dir", cache, "-p", "onnx_diffprune", cwd=FOLDER)
    run(python, "-m", "mypy", "--strict", "--cache-dir", cache, tests / "typed_example.py", cwd=FOLDER)
    run(python, "-m", "mypy.stubtest", "onnx_diffprune._native", cwd=FOLDER)
    pyright = [programs / "pyright", "--pythonpath", python]
    if subprocess.run([programs / "pyright", "--version"], check=False, capture_output=True).returncode:
        print("pyright was skipped: its program could not be downloaded")
        return
    (package,) = programs.parent.glob("[Ll]ib/python*/site-packages/onnx_diffprune")
    run(*pyright, package, cwd=FOLDER)
    run(*pyright, tests / "typed_example.py", cwd=FOLDER)


def main() -> None:
    """Run all checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manylinux", action="store_true", help="build the wheel for publication")
    parser.add_argument("--wheel", type=Path, help="check this wheel instead of building one")
    arguments = parser.parse_args()
    began = time.monotonic()
    if arguments.wheel is None:
        stage("tools")
        tools = environment("tools", TOOLS if arguments.manylinux else TOOLS[:1])
        stage("build")
        wheel = build(tools, arguments.manylinux)
    else:
        wheel = arguments.wheel.resolve()
    stage("install")
    programs = environment("venv", [f"{wheel}[cpu]"])
    stage("session")
    session(programs)
    stage("without ONNX Runtime")
    without_runtime(wheel)
    stage("tests")
    install(programs, "-r", str(ROOT / "tests/python/requirements.txt"))
    run(programs / "python", ROOT / "scripts/python_options.py", "--check")
    run(programs / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/python", PYTHONDONTWRITEBYTECODE="1")
    stage("types")
    types(programs)
    stage(f"done in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
