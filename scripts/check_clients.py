#!/usr/bin/env python3
"""Prune tiny pipelines as folders, and run the results in the programs that load such folders.

- OpenVINO and ONNX Runtime Web (WebAssembly, in a headless Chromium) run the U-Net and the decoder. Their outputs agree
  with ONNX Runtime to 1e-4 of the largest element.
- ORTDiffusionPipeline of optimum-onnx loads the folder and generates images: the same ones twice, which differ from
  those of the original. The outputs of its U-Net agree with ONNX Runtime on the same inputs.

The U-Net of one pipeline has external data. --setup installs the requirements into .clients in the project's folder,
and the browser with apt if permitted. A client that can't be installed is named and skipped. The exit code is 3 if no
client could be installed, 1 if a check failed, otherwise 0.

    check_clients.py --setup [--clients openvino,web,optimum]
    check_clients.py --tool target/debug/onnx-diffprune [--clients openvino,web,optimum]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
ROOM = PROJECT / ".clients"
FIXTURES = PROJECT / "fixtures" / "pipelines"
CLIENTS = ("openvino", "web", "optimum")
BASE = ("numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.31.1")
OPENVINO = ("openvino==2026.4.1",)
WEB = "onnxruntime-web@1.30.0"
# The latest versions that optimum-onnx 0.1.0 supports; without them pip would try dozens. PyTorch's wheel for Linux
# requires all of CUDA and loads part of it even without a GPU: the packages left out take 1.3 GB of disk space, the
# installed ones 4.2 GB.
OPTIMUM = (
    "transformers==4.57.6", "diffusers==0.35.2", "filelock", "typing-extensions", "sympy", "networkx", "jinja2", "fsspec",
    *(f"{package}; platform_system == 'Linux'" for package in (
        "cuda-toolkit[cublas,cudart,cufft,cufile,cupti,cusparse,nvjitlink,nvrtc]==13.2.2", "nvidia-cudnn-cu13==9.26.0.51",
        "nvidia-cusparselt-cu13==0.8.1", "nvidia-nccl-cu13==2.30.7", "nvidia-nvshmem-cu13==3.7.2",
    )),
)  # fmt: skip
OPTIMUM_ALONE = ("optimum-onnx==0.1.0", "optimum==2.1.0", "torch==2.15.0")
SKIPPED = 3
TOLERANCE = 1e-4
PIPELINES = ("sd_tiny", "sdxl_tiny")
# The pipeline whose U-Net gets a data file, with optimum's name for it.
WITH_DATA = "sdxl_tiny"
DATA_FILE = "model.onnx_data"


def python_of(name: str) -> Path:
    return ROOM / name / "bin" / "python"


def install(name: str, packages: tuple[str, ...], alone: tuple[str, ...] = ()) -> None:
    """Install packages into an environment of this name; those in `alone` without their dependencies. A failed installation
    leaves no environment."""
    stamp = ROOM / name / ".installed"
    listed = "\n".join([*packages, *alone])
    if stamp.exists() and stamp.read_text() == listed:
        return
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ROOM / name)], check=True)
        pip = [str(python_of(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        subprocess.run([*pip, *packages], check=True)
        if alone:
            subprocess.run([*pip, "--no-deps", *alone], check=True)
    except (OSError, subprocess.CalledProcessError):
        shutil.rmtree(ROOM / name, ignore_errors=True)
        raise
    stamp.write_text(listed)


def install_web() -> None:
    from clients import web

    if not (runtime_of_web() / "ort.wasm.min.mjs").exists():
        npm = ["npm", "install", "--prefix", str(ROOM), "--ignore-scripts", "--no-audit", "--no-fund", "--silent", WEB]
        subprocess.run(npm, check=True)
    if web.browser() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium-headless-shell"]):
            subprocess.run(["apt-get", "-qq", *command], check=True, env=environment, stdout=subprocess.DEVNULL)
    if web.browser() is None:
        raise OSError("Chromium was not found and could not be installed")


def runtime_of_web() -> Path:
    return ROOM / "node_modules" / "onnxruntime-web" / "dist"


def is_here(client: str) -> bool:
    from clients import web

    if client == "web":
        return (runtime_of_web() / "ort.wasm.min.mjs").exists() and web.browser() is not None
    return (ROOM / {"openvino": "python", "optimum": "optimum"}[client] / ".installed").exists()


def set_up(clients: list[str]) -> int:
    ROOM.mkdir(exist_ok=True)
    done = 0
    for client in clients:
        began = time.monotonic()
        try:
            if client == "optimum":
                install("optimum", (*BASE, *OPTIMUM), OPTIMUM_ALONE)
            else:
                install("python", (*BASE, *OPENVINO))
            if client == "web":
                install_web()
            print(f"{client}: installed in {time.monotonic() - began:.0f} s", flush=True)
            done += 1
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{client}: skipped, it could not be installed: {error}", flush=True)
    return 0 if done else SKIPPED


def prepare(name: str, folder: Path) -> None:
    """Copy the fixture into a folder."""
    import onnx

    shutil.copytree(FIXTURES / name, folder)
    if name == WITH_DATA:
        path = folder / "unet" / "model.onnx"
        model = onnx.load(path)
        onnx.save(model, path, save_as_external_data=True, location=DATA_FILE, size_threshold=0)


def drawn(path: Path) -> dict:
    """Return random inputs of a network of the fixtures, with sizes that were not exported: two samples of 12x20."""
    import numpy
    import onnx

    sizes = {"batch_size": 2, "height": 12, "width": 20, "sequence_length": 77, "latent_height": 12, "latent_width": 20}
    random = numpy.random.default_rng(0)
    inputs = {}
    for value in onnx.load(path, load_external_data=False).graph.input:
        tensor = value.type.tensor_type
        shape = [dimension.dim_value or sizes[dimension.dim_param] for dimension in tensor.shape.dim]
        array = random.normal(size=shape) if shape else numpy.array(521.0)
        inputs[value.name] = array.astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return inputs


def of_onnxruntime(path: Path, inputs: dict) -> dict:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def of_openvino(path: Path, inputs: dict) -> dict:
    import openvino

    network = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = network(inputs)
    return {output.get_any_name(): found[output] for output in network.outputs}


def of_web(path: Path, inputs: dict) -> dict:
    from clients import web

    external = [file.name for file in path.parent.glob("*data")]
    return web.run(path, external, inputs, runtime_of_web())


def distance(wanted: dict, found: dict) -> float:
    """Return the largest error of an output, relative to its largest element."""
    import numpy

    if wanted.keys() != found.keys():
        return float("inf")
    return max(float(numpy.abs(wanted[name] - found[name]).max() / numpy.abs(wanted[name]).max()) for name in wanted)


def check(tool: Path, name: str, clients: list[str]) -> dict:
    """Prune a pipeline and run the result. Return figures, and the failures under `failed`."""
    report: dict = {"pipeline": name, "failed": []}

    def expect(is_right: bool, text: str) -> None:
        if not is_right:
            report["failed"].append(text)

    with tempfile.TemporaryDirectory() as room:
        original, pruned = Path(room) / name, Path(room) / "pruned"
        prepare(name, original)
        command = [str(tool), str(original), str(pruned), "--components", "unet,vae_decoder", "--ratio", "0.3"]
        subprocess.run([*command, "--criterion", "magnitude", "--no-latency", "--quiet"], check=True)
        if name == WITH_DATA:
            sizes = [(folder / "unet" / DATA_FILE).stat().st_size for folder in (original, pruned)]
            report["data files"] = sizes
            expect(sizes[1] < 0.8 * sizes[0], f"the data file has {sizes[1]} of {sizes[0]} bytes")
        for part in ("unet", "vae_decoder"):
            path = pruned / part / "model.onnx"
            inputs = drawn(path)
            wanted = of_onnxruntime(path, inputs)
            for client, run in (("openvino", of_openvino), ("web", of_web)):
                if client in clients:
                    error = distance(wanted, run(path, inputs))
                    report[f"{client}, {part}"] = error
                    expect(error <= TOLERANCE, f"{part} in {client}: relative error {error:.2g}")
        if "optimum" in clients:
            script = Path(__file__).with_name("clients") / "optimum_pipeline.py"
            command = [str(python_of("optimum")), str(script), str(original), str(pruned)]
            environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
            ran = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
            told = json.loads(ran.stdout.splitlines()[-1]) if ran.returncode == 0 else {"failed": [ran.stderr[-2000:]]}
            report["failed"] += told.pop("failed")
            report["optimum"] = told
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setup", action="store_true", help="install the clients into .clients and do nothing else")
    parser.add_argument("--tool", type=Path, help="the onnx-diffprune executable")
    parser.add_argument("--clients", default=",".join(CLIENTS), help="clients to run, separated by commas")
    args = parser.parse_args()
    asked = args.clients.split(",")
    if unknown := [client for client in asked if client not in CLIENTS]:
        parser.error(f"--clients: expected some of {', '.join(CLIENTS)}, found {', '.join(unknown)}")
    if args.setup:
        return set_up(asked)
    if args.tool is None:
        parser.error("expected --tool")
    clients = [client for client in asked if is_here(client)]
    if not clients:
        print(f"skipped: none of {', '.join(asked)} is installed in .clients")
        return SKIPPED
    # Pruning and the comparison need NumPy, ONNX and ONNX Runtime, which both environments have.
    room = ROOM / ("python" if python_of("python").exists() else "optimum")
    if Path(sys.prefix).resolve() != room:
        os.execv(python_of(room.name), [str(python_of(room.name)), *sys.argv])
    for client in asked:
        if client not in clients:
            print(f"{client} was skipped: it is not installed in .clients", flush=True)
    reports = [check(args.tool.resolve(), name, clients) for name in PIPELINES]
    for report in reports:
        print(json.dumps(report))
    passed = sum(not report["failed"] for report in reports)
    print(f"{passed} of {len(reports)} pipelines load and run in {', '.join(clients)}")
    return 0 if passed == len(reports) else 1


if __name__ == "__main__":
    sys.exit(main())
