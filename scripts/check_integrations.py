#!/usr/bin/env python3
"""Run the integrations of integrations/ against the released Olive and optimum-onnx, with an installed wheel.

- Olive runs `integrations/olive/recipe.json`. Its output passes onnx.checker, has fewer parameters than the original,
  runs in ONNX Runtime, agrees approximately with the cut in float32, and passes `onnx-diffprune verify`. External data
  stays external. A cut that fails verification raises an exception and leaves no file.
- optimum: `prune_pipeline` accepts a folder and a loaded pipeline. The returned pipeline generates the same image
  twice, which differs from that of the original.

Both use the environment of check_clients.py for optimum, `.clients/optimum`, so that PyTorch is installed once: 4.4 GB
in total. The exit code is 3 if the packages can't be installed, 1 if a check failed, otherwise 0.

    check_integrations.py [--wheel FILE.whl]
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

from check_clients import BASE, FIXTURES, OPTIMUM, OPTIMUM_ALONE, PROJECT, ROOM, SKIPPED, drawn, install, of_onnxruntime, python_of

INTEGRATIONS = PROJECT / "integrations"
MODULES = ("olive", "optimum")
# Olive's requirements besides PyTorch and transformers. They are listed, and Olive is installed without dependencies,
# because pip would otherwise resolve PyTorch's requirements and install all of CUDA.
OLIVE = (
    "hf-xet==1.8.0", "lightning-utilities==0.15.3", "onnx-ir==1.1.0", "onnxscript==0.7.2", "opentelemetry-sdk==1.45.2",
    "optuna==5.0.0", "pandas==3.1.1", "pydantic==2.14.4", "pyyaml==6.0.3", "questionary==2.1.1",
    # Builds the integrations.
    "setuptools==80.9.0",
)  # fmt: skip
OLIVE_ALONE = ("olive-ai==0.13.0", "torchmetrics==1.9.0")
# The largest allowed error of float16 against the same network in float32, relative to the largest element.
HALF = 2e-2
STEPS = 3


def pip(*arguments: str) -> None:
    """Run pip install in the environment."""
    command = [str(python_of("optimum")), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*command, *arguments], check=True)


def install_released() -> None:
    """Install optimum and Olive into one environment."""
    ROOM.mkdir(exist_ok=True)
    install("optimum", (*BASE, *OPTIMUM), OPTIMUM_ALONE)
    # Recreating the environment also removes the stamp of this installation.
    stamp = ROOM / "optimum" / ".integrations"
    listed = "\n".join([*OLIVE, *OLIVE_ALONE])
    if not stamp.exists() or stamp.read_text() != listed:
        pip(*OLIVE)
        pip("--no-deps", *OLIVE_ALONE)
        stamp.write_text(listed)


def install_own(wheel: Path) -> None:
    """Install the wheel and the integrations, built with the installed setuptools."""
    with tempfile.TemporaryDirectory() as room:
        # setuptools writes into the folder from which it builds.
        copies = [str(shutil.copytree(INTEGRATIONS / name, Path(room) / name)) for name in MODULES]
        pip("--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall", str(wheel), *copies)


class Check:
    """Failures and figures of a check."""

    def __init__(self, name: str) -> None:
        self.report: dict = {"integration": name, "failed": []}

    def expect(self, is_right: bool, text: str) -> None:
        if not is_right:
            self.report["failed"].append(text)


def parameters(path: Path) -> int:
    """Return the number of elements of the float32 and float16 initializers."""
    import numpy
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return sum(int(numpy.prod(tensor.dims)) for tensor in graph.initializer if tensor.data_type in kinds)


def verified(original: Path, pruned: Path) -> bool:
    """Return whether the command verifies a cut."""
    command = [str(python_of("optimum")), "-m", "onnx_diffprune", "verify", str(original), str(pruned)]
    return subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0


def run_olive(recipe: dict, passes: Path, folder: Path) -> Path:
    """Run Olive's command. Return the network that it writes."""
    path = folder / f"{recipe['output_dir']}.json"
    # The recipe's paths are relative to the project's folder. The output goes to another folder.
    for name in ("cache_dir", "output_dir"):
        recipe[name] = str(folder / recipe[name])
    path.write_text(json.dumps(recipe))
    command = [str(python_of("optimum")), "-m", "olive", "run", "--config", str(path), "--package-config", str(passes)]
    done = subprocess.run(command, cwd=PROJECT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"olive run ended with exit code {done.returncode}: {done.stderr[-2000:]}")
    return Path(recipe["output_dir"]) / "model.onnx"


def check_recipe(check: Check, folder: Path) -> None:
    """Check the recipe, and its cut alone, which is then in Olive's cache."""
    import numpy
    import onnx

    passes = folder / "passes.json"
    written = subprocess.run([python_of("optimum"), "-m", "onnx_diffprune_olive"], check=True, capture_output=True)
    passes.write_bytes(written.stdout)
    recipe = json.loads((INTEGRATIONS / "olive/recipe.json").read_text())
    original = PROJECT / recipe["input_model"]["model_path"]
    half = run_olive(dict(recipe), passes, folder)
    only = {"prune": recipe["passes"]["prune"]}
    cut = run_olive({**recipe, "passes": only, "output_dir": "cut"}, passes, folder)

    # Not the network in float16: Olive's converter orders the nodes of any network in a way that the checker refuses.
    onnx.checker.check_model(str(cut), full_check=True)
    counts = check.report["parameters"] = [parameters(path) for path in (original, cut, half)]
    check.expect(counts[1] < counts[0] and counts[2] < counts[0], f"parameters of original, cut and half: {counts}")
    kinds = {tensor.data_type for tensor in onnx.load(half).graph.initializer}
    check.expect(onnx.TensorProto.FLOAT16 in kinds, "the output of the recipe has no float16 weights")
    inputs = drawn(original)
    wanted, found = (of_onnxruntime(path, inputs) for path in (cut, half))
    errors = [float(numpy.abs(wanted[name] - found[name]).max() / numpy.abs(wanted[name]).max()) for name in wanted]
    check.report["half"] = max(errors)
    check.expect(wanted.keys() == found.keys() and max(errors) <= HALF, f"float16 differs from the cut by {max(errors):.2g}")
    check.expect(verified(original, cut), "onnx-diffprune verify fails on Olive's output")
    carried = json.loads((half.parent / "model_config.json").read_text())["config"]["model_attributes"]["additional_files"]
    plan = half.with_suffix(".plan.json")
    check.expect(carried == [str(plan)] and plan.exists(), f"the plan is not among the additional files: {carried}")


def check_pass(check: Check, folder: Path) -> None:
    """Check the pass alone: external data, and refused cuts and options."""
    import numpy
    import onnx
    import onnx_diffprune
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from onnx_diffprune_olive import OnnxDiffPrune

    original = folder / "dit" / "model.onnx"
    original.parent.mkdir()
    network = onnx.load(PROJECT / "fixtures/dit_tiny.onnx")
    onnx.save(network, original, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    model = ONNXModelHandler(model_path=str(original.parent), onnx_file_name=original.name)

    def run(name: str, **config: object) -> ONNXModelHandler:
        given = {"ratio": 0.5, "criterion": "magnitude", **config}
        return create_pass_from_dict(OnnxDiffPrune, given, disable_search=True).run(model, str(folder / name))

    pruned = run("pruned", keep=["^nothing$"], size={})
    path = Path(pruned.model_path)
    onnx.checker.check_model(str(path), full_check=True)
    sizes = [file.stat().st_size for file in (original.with_suffix(".onnx.data"), path.with_suffix(".onnx.data"))]
    check.report["data files"] = sizes
    check.expect(0 < sizes[1] < 0.8 * sizes[0], f"the data file has {sizes[1]} of {sizes[0]} bytes")
    resource = Path(pruned.get_resource("model_path"))
    check.expect(resource == path.parent, f"expected the folder {path.parent} for a model with a data file, found {resource}")
    check.expect(verified(original, path), "onnx-diffprune verify fails on the output of the pass")
    session = pruned.prepare_session()
    found = pruned.run_session(session, drawn(path))
    check.expect(len(found) == len(network.graph.output), f"Olive's session returns {len(found)} outputs")

    samples = folder / "samples.npy"
    numpy.save(samples, numpy.random.default_rng(0).normal(size=(8, 4, 16, 16)).astype(numpy.float32))
    fit = {"timesteps": 4, "refit_samples": 16, "refit_timesteps": 2}
    fitted = run("fitted", data=str(samples), refit=True, options=fit)
    check.expect(verified(original, Path(fitted.model_path)), "onnx-diffprune verify fails on a refitted network")
    weights = [Path(each.model_path).with_suffix(".onnx.data").read_bytes() for each in (pruned, fitted)]
    check.expect(weights[0] != weights[1], "the refit changed no weight")

    for name, error, config in (
        ("unproved", onnx_diffprune.VerificationFailedError, {"options": {"rtol": 1e-15, "atol": 0.0}}),
        ("unverified", ValueError, {"options": {"no_verify": True}}),
        ("twice", ValueError, {"options": {"ratio": 0.2}}),
        ("unknown", TypeError, {"options": {"ratoi": 0.2}}),
    ):
        try:
            run(name, **config)
            check.expect(False, f"{config} raised no exception")
        except error:
            pass
        left = list((folder / name).glob("*"))
        check.expect(not left, f"{config} left {left}")


def check_optimum(check: Check, folder: Path) -> None:
    """Check the helper on a folder and on a loaded pipeline."""
    import numpy
    import torch
    from onnx_diffprune_optimum import prune_pipeline
    from optimum.onnxruntime import ORTDiffusionPipeline

    def image(pipeline: ORTDiffusionPipeline) -> numpy.ndarray:
        pipeline.set_progress_bar_config(disable=True)
        options = {"height": 32, "width": 32, "num_inference_steps": STEPS, "output_type": "np"}
        return pipeline("a photo of a cat", generator=torch.Generator().manual_seed(1), **options).images

    source = FIXTURES / "sd_tiny"
    options = {"ratio": 0.3, "criterion": "magnitude", "components": ["unet", "vae_decoder"], "no_latency": True}
    pruned = prune_pipeline(source, folder / "slim", **options)
    original = ORTDiffusionPipeline.from_pretrained(source, export=False)
    again = prune_pipeline(original, folder / "again", load={"provider": "CPUExecutionProvider"}, **options)
    images = [image(pipeline) for pipeline in (pruned, pruned, again, original)]
    check.report["class"], check.report["images"] = type(pruned).__name__, images[0].shape
    check.expect(type(pruned) is type(again) is type(original), f"{type(again).__name__} of {type(original).__name__}")
    check.expect(bool(numpy.isfinite(images[0]).all()), "the image is not finite")
    check.expect(numpy.array_equal(images[0], images[1]), "the same pipeline generated two different images")
    check.expect(numpy.array_equal(images[0], images[2]), "the folder and the loaded pipeline lead to different images")
    check.expect(not numpy.array_equal(images[0], images[3]), "the pruned pipeline generated the original's image")
    for part in ("unet", "vae_decoder"):
        counts = [parameters(place / part / "model.onnx") for place in (source, folder / "slim")]
        check.report[part] = counts
        check.expect(counts[1] < counts[0], f"{part} has {counts[1]} of {counts[0]} parameters")
    check.expect(verified(source, folder / "slim"), "onnx-diffprune verify fails on the pruned pipeline")
    try:
        prune_pipeline(source, folder / "dry", dry_run=True, **options)
        check.expect(False, "dry_run raised no exception")
    except ValueError:
        pass


def newest_wheel() -> Path | None:
    """Return the wheel that `make check-wheel` built."""
    found = (PROJECT / "target/wheel/dist").glob("*.whl")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, help="the package [default: the one that `make check-wheel` built]")
    wheel = parser.parse_args().wheel or newest_wheel()
    if wheel is None or not wheel.is_file():
        parser.error(f"expected a wheel, found {wheel or 'none in target/wheel/dist'}: build one with `make check-wheel`")
    if Path(sys.prefix).resolve() != ROOM / "optimum":
        began = time.monotonic()
        try:
            install_released()
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"skipped: Olive and optimum could not be installed: {error}")
            return SKIPPED
        install_own(wheel.resolve())
        print(f"packages: installed in {time.monotonic() - began:.0f} s", flush=True)
        os.environ |= {"OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
        os.execv(python_of("optimum"), [str(python_of("optimum")), *sys.argv])
    checks = []
    for name, run in (("olive recipe", check_recipe), ("olive pass", check_pass), ("optimum", check_optimum)):
        began, check = time.monotonic(), Check(name)
        with tempfile.TemporaryDirectory() as folder:
            run(check, Path(folder))
        check.report["seconds"] = round(time.monotonic() - began)
        print(json.dumps(check.report), flush=True)
        checks.append(check)
    passed = sum(not check.report["failed"] for check in checks)
    print(f"{passed} of {len(checks)} integrations work")
    return 0 if passed == len(checks) else 1


if __name__ == "__main__":
    sys.exit(main())
