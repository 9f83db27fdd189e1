#!/usr/bin/env python3
"""Build the wheel, install it into a fresh environment, and run there all that a user of the Python package does.

Two commands from `pip install` to a drawn picture of a pruned pipeline; the tests of tests/python, which compare the
package with the command, NumPy and ONNX Runtime; mypy and pyright on the package, on its stubs and on an example; the pages
of its documentation. Everything lies in target/wheel. Exit code 3 where the packages can't be had.

By default the wheel is built with the dev profile, for this machine alone. With --manylinux it is built with the release
profile by ziglang for manylinux2014 (glibc 2.17), and its tag is checked by auditwheel.
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
    """Tell what comes, and what the stages before have cost."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"--- {name} ({used.ru_utime + used.ru_stime:.0f} s of CPU time so far)", flush=True)


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> None:
    """Run a command; a failure ends the check."""
    told = [str(word) for word in command]
    # No other ONNX Runtime than that of the fresh environment is to be found by its name.
    kept = {name: value for name, value in os.environ.items() if name not in ("ORT_DYLIB_PATH", "VIRTUAL_ENV")}
    done = subprocess.run(told, cwd=cwd, env=kept | environment, check=False)
    if done.returncode:
        sys.exit(f"check_wheel.py: {' '.join(told)} ended with exit code {done.returncode}")


def environment(name: str, packages: list[str]) -> Path:
    """The folder of the programs of a fresh environment with these packages."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    install(programs, *packages)
    return programs


def install(programs: Path, *packages: str) -> None:
    """Install packages; where they can't be had the check is skipped."""
    command = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    if subprocess.run(command, check=False).returncode:
        print(f"check_wheel.py: {', '.join(packages)} can't be had here", file=sys.stderr)
        sys.exit(UNAVAILABLE)


def build(tools: Path, is_portable: bool) -> Path:
    """The wheel."""
    out = FOLDER / "dist"
    shutil.rmtree(out, ignore_errors=True)
    if is_portable:
        kind = ["--release", "--zig", "--compatibility", "manylinux2014"]
    else:
        kind = ["--profile", "dev", "--compatibility", "linux"]
    # maturin looks for ziglang in the Python on the PATH.
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    run(tools / "maturin", "build", *kind, "--out", out, PATH=path)
    (wheel,) = out.glob("*.whl")
    if is_portable:
        run(tools / "auditwheel", "show", wheel)
        if "manylinux_2_17" not in wheel.name:
            sys.exit(f"check_wheel.py: {wheel.name} is for newer systems than manylinux2014")
    return wheel


def session(programs: Path) -> None:
    """The session of the README: from the installed wheel to a picture by two commands."""
    folder = FOLDER / "session"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "fixtures").symlink_to(ROOT / "fixtures")
    install_section = (ROOT / "README.md").read_text().split("## Installation")[1].split("```")[1]
    commands = [line.split() for line in install_section.splitlines() if line.startswith("onnx-diffprune")]
    if len(commands) != 2:
        sys.exit("check_wheel.py: the README's installation has not two commands of the tool")
    for program, *words in commands:
        run(programs / program, *words, cwd=folder)
    picture = (folder / "slim.png").read_bytes()
    if not picture.startswith(b"\x89PNG") or len(picture) < 1000:
        sys.exit("check_wheel.py: slim.png is no picture")


def without_runtime(wheel: Path) -> None:
    """Without ONNX Runtime the command says which package brings it, and does what needs none."""
    programs = environment("bare", [str(wheel)])
    command = [str(programs / "onnx-diffprune"), str(ROOT / "fixtures/dit_tiny.onnx"), "out.onnx", "--ratio", "0.5"]
    with tempfile.TemporaryDirectory() as folder:
        # Nothing of the machine is to be found but what lies in the system's own folders.
        bare = {"HOME": folder, "PATH": str(programs)}
        done = subprocess.run(command, cwd=folder, env=bare, check=False, capture_output=True, text=True)
        if done.returncode == 0:
            print("left out: the system has an ONNX Runtime of its own")
            return
        if done.returncode != 2 or 'pip install "onnx-diffprune[cpu]"' not in done.stderr:
            sys.exit(f"check_wheel.py: no ONNX Runtime, exit code {done.returncode}: {done.stderr}")
        needs_none = ["--criterion", "magnitude", "--no-verify"]
        subprocess.run([*command, *needs_none], cwd=folder, env=bare, check=True, stdout=subprocess.DEVNULL)


def types(programs: Path) -> None:
    """The package, its stubs and an example as mypy and pyright read them."""
    tests, python = ROOT / "tests/python", programs / "python"
    cache = FOLDER / "mypy"
    run(python, "-m", "mypy", "--strict", "--cache-dir", cache, "-p", "onnx_diffprune", cwd=FOLDER)
    run(python, "-m", "mypy", "--strict", "--cache-dir", cache, tests / "typed_example.py", cwd=FOLDER)
    run(python, "-m", "mypy.stubtest", "onnx_diffprune._native", cwd=FOLDER)
    pyright = [programs / "pyright", "--pythonpath", python]
    if subprocess.run([programs / "pyright", "--version"], check=False, capture_output=True).returncode:
        print("pyright was left out: the program behind its wheel can't be had here")
        return
    (package,) = programs.parent.glob("[Ll]ib/python*/site-packages/onnx_diffprune")
    run(*pyright, package, cwd=FOLDER)
    run(*pyright, tests / "typed_example.py", cwd=FOLDER)


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manylinux", action="store_true", help="build the wheel that is published")
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
