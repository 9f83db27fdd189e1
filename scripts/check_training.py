#!/usr/bin/env python3
"""Check the artifacts of ``onnx-diffprune artifacts`` in a training session of ONNX Runtime.

For every network: the artifacts load; loss and gradients of a training step agree with those of the tool's gradient
graph in an ordinary session; a second step adds to the gradients and a reset replaces them; the eval model returns the
same loss; AdamW steps lower it; the trained weights can be saved, loaded and exported. If PyTorch's gradients are
stored beside a network (NAME.grads.npz), or if ONNX Runtime's own gradient builder accepts it, gradients are compared
with those too.

``--setup`` installs the wheels into the project's ``.venv-training``; without them the script reports that and exits
with 3. Otherwise the exit code is 0 if every check passed, else 1.

    check_training.py --setup
    check_training.py --tool target/debug/onnx-diffprune --gradient-graph target/debug/examples/gradient_graph
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
ENVIRONMENT = PROJECT / ".venv-training"
PACKAGES = ("onnxruntime-training-cpu==1.19.2", "numpy==1.26.4", "onnx==1.16.2")
# The Python versions for which the wheel is built.
PYTHONS = ("3.12", "3.11", "3.10", "3.9")
SKIPPED = 3
TOLERANCE = 1e-3
LOSS_TOLERANCE = 1e-5
STEPS = 20


class Unavailable(Exception):
    """The wheels are not available."""


def environment_python() -> Path:
    return ENVIRONMENT / "bin" / "python"


def set_up() -> None:
    """Create the environment, with a Python version that the wheel supports, and install the wheels into it."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = [sys.executable] if own in PYTHONS else []
    found += [path for path in (shutil.which(f"python{version}") for version in PYTHONS) if path]
    reason: object = f"the wheel needs Python {', '.join(reversed(PYTHONS))}, found {own}"
    for python in found:
        try:
            subprocess.run([python, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
            install = [str(environment_python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*install, *PACKAGES], check=True)
            return
        except (OSError, subprocess.CalledProcessError) as error:
            reason = error
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    raise Unavailable(f"the wheels of ONNX Runtime for training could not be installed: {reason}")


def load_wheels():
    """Import the training API without PyTorch, which the package imports although this part does not use it."""
    import onnxruntime

    package = types.ModuleType("onnxruntime.training")
    package.__path__ = [str(Path(onnxruntime.__file__).parent / "training")]
    sys.modules["onnxruntime.training"] = package
    onnxruntime.set_default_logger_severity(3)
    from onnxruntime.training import api

    return onnxruntime, api


def relative_errors(found: dict, expected: dict) -> dict[str, float]:
    """Return, for every array of both, the largest error relative to its largest element.

    Gradients that are only rounding error (of the bias of a key, or of a bias before a norm) are compared with 1e-4 of
    the largest gradient of all.
    """
    import numpy as np

    largest = max(float(np.abs(array).max()) for array in expected.values())
    errors = {}
    for name in sorted(found.keys() & expected.keys()):
        scale = max(float(np.abs(expected[name]).max()), 1e-4 * largest)
        errors[name] = float(np.abs(found[name] - expected[name]).max()) / scale
    return errors


class Network:
    """A network of the fixtures with the inputs of one step."""

    def __init__(self, path: Path, sizes: dict[str, int], inputs: dict, target) -> None:
        self.path, self.sizes, self.inputs, self.target = path, sizes, inputs, target


def ddpm() -> Network:
    """Return four training images of the reference, with its noise, at timesteps from low to high noise."""
    import numpy as np

    path = PROJECT / "fixtures" / "ddpm_fashion16.onnx"
    with np.load(path.with_suffix("") / "reference.npz") as reference:
        timestep = np.array([10, 100, 400, 900], dtype=np.int64)
        kept = reference["alphas_cumprod"][timestep].reshape(-1, 1, 1, 1)
        clean, noise = reference["x0"][: len(timestep)], reference["noise"][: len(timestep)]
    sample = (np.sqrt(kept) * clean + np.sqrt(1 - kept) * noise).astype(np.float32)
    return Network(path, {"batch": len(timestep)}, {"sample": sample, "timestep": timestep}, noise)


def dit() -> Network:
    """Return the inputs and the target of the PyTorch gradients beside the network."""
    import numpy as np

    path = PROJECT / "fixtures" / "dit_tiny.onnx"
    with np.load(path.with_suffix(".inputs.npz")) as arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    with np.load(path.with_suffix(".grads.npz")) as arrays:
        target = arrays["__target"]
    return Network(path, {}, inputs, target)


def gradient_graph(onnxruntime, network: Network, binary: Path, folder: Path) -> tuple[float, dict]:
    """Return loss and gradients of the tool's gradient graph, summed over the uses of each weight."""
    import numpy as np

    out = folder / "gradients.onnx"
    sizes = [f"{name}={size}" for name, size in network.sizes.items()]
    subprocess.run([str(binary), str(network.path), str(out), *sizes], check=True, stdout=subprocess.DEVNULL)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    feeds = {**network.inputs, "__target": network.target}
    wanted = {value.name for value in session.get_inputs()}
    results = session.run(None, {name: array for name, array in feeds.items() if name in wanted})
    loss, gradients = float("nan"), {}
    for value, array in zip(session.get_outputs(), results):
        if value.name == "__loss":
            loss = float(array)
        else:
            name = value.name.split("/", 2)[2]
            gradients[name] = gradients.get(name, np.float32(0)) + array
    return loss, gradients


def own_gradients(api, network: Network, folder: Path) -> tuple[float, dict] | str:
    """Return loss and gradients of ONNX Runtime's own gradient builder, or the reason why it fails.

    It does not support Einsum, and LayerNormalization only with its optional outputs. If an Einsum merely permutes
    axes, the network is rewritten to an equivalent one that it may accept.
    """
    import onnx
    from onnxruntime.training import artifacts

    model = onnx.load(network.path)
    for index, node in enumerate(model.graph.node):
        if node.op_type == "LayerNormalization":
            names = [f"own_gradients/{index}/mean", f"own_gradients/{index}/deviation"]
            node.output.extend(names[len(node.output) - 1 :])
        if node.op_type == "Einsum":
            before, after = node.attribute[0].s.decode().replace(" ", "").split("->")
            if len(node.input) == 1 and sorted(before) == sorted(after) and len(set(before)) == len(before):
                node.op_type = "Transpose"
                del node.attribute[:]
                node.attribute.append(onnx.helper.make_attribute("perm", [before.index(axis) for axis in after]))
    is_weight = lambda tensor: tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 0  # noqa: E731
    names = [tensor.name for tensor in model.graph.initializer if is_weight(tensor)]
    loss = artifacts.LossType.MSELoss
    try:
        artifacts.generate_artifacts(model, requires_grad=names, loss=loss, artifact_directory=folder)
    except RuntimeError as error:
        return str(error).strip().splitlines()[0].rsplit("false. ", 1)[-1]
    state = api.CheckpointState.load_checkpoint(folder / "checkpoint")
    module = api.Module(folder / "training_model.onnx", state)
    # The loss block of the training API uses this name for the target.
    feeds = {**network.inputs, "target": network.target}
    loss = float(module(*[feeds[name] for name in module.input_names()]))
    return loss, {name: parameter.grad for name, parameter in state.parameters}


def torch_gradients(network: Network) -> dict:
    """Return PyTorch's gradients, if they are stored beside the network.

    Gradients of weights that an exporter shares among layers are left out, because the file contains those of one layer
    only.
    """
    import numpy as np
    import onnx

    path = network.path.with_suffix(".grads.npz")
    if not path.exists():
        return {}
    nodes = onnx.load(network.path).graph.node
    shared = {name for node in nodes if node.op_type == "Identity" for name in node.input}
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files if not name.startswith("__") and name not in shared}


def check(network: Network, tool: Path, binary: Path) -> dict:
    """Run all checks on one network. Return figures, and the failures under ``failed``."""
    import numpy as np

    onnxruntime, api = load_wheels()
    failed: list[str] = []
    report: dict = {"model": network.path.name, "failed": failed}

    def expect(is_right: bool, text: str) -> None:
        if not is_right:
            failed.append(text)

    def compare(kind: str, found: dict, expected: dict) -> None:
        errors = relative_errors(found, expected)
        worst = max(errors, key=errors.get, default="")
        report[kind] = {"weights": len(errors), "worst": errors.get(worst), "at": worst}
        expect(bool(errors) and errors[worst] < TOLERANCE, f"{kind}: relative error {errors.get(worst)} at {worst!r}")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = folder / "artifacts"
        sizes = [f"--size={dim}={size}" for dim, size in network.sizes.items()]
        command = [str(tool), "artifacts", str(network.path), str(made), *sizes, "--format", "json"]
        told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        state = api.CheckpointState.load_checkpoint(made / "checkpoint")
        module = api.Module(made / "training_model.onnx", state, made / "eval_model.onnx")
        optimizer = api.Optimizer(made / "optimizer_model.onnx", module)
        expect(module.input_names() == told["inputs"], f"inputs of a step: {module.input_names()}")
        feeds = {**network.inputs, "__target": network.target}
        step = [feeds[name] for name in told["inputs"]]

        def gradients() -> dict:
            # The arrays are views of the session's buffers, which the next step changes.
            return {name: parameter.grad.copy() for name, parameter in state.parameters}

        loss = float(module(*step))
        found = gradients()
        expect(sorted(found) == sorted(told["trained"]), "the trained weights differ from those that the tool lists")
        ours_loss, ours = gradient_graph(onnxruntime, network, binary, folder)
        report["loss"], report["gradient graph's loss"] = loss, ours_loss
        expect(abs(loss - ours_loss) <= LOSS_TOLERANCE * abs(ours_loss), f"loss {loss} instead of {ours_loss}")
        expect(found.keys() <= ours.keys(), "trained weights are missing from the gradient graph")
        compare("gradient graph", found, ours)
        module(*step)
        compare("gradients of two steps", gradients(), {name: 2 * array for name, array in found.items()})
        module.lazy_reset_grad()
        module(*step)
        compare("gradients after a reset", gradients(), found)
        module.eval()
        evaluated = float(module(*step))
        expect(abs(evaluated - loss) <= LOSS_TOLERANCE * abs(loss), f"eval loss {evaluated} instead of {loss}")
        module.train()
        reference = torch_gradients(network)
        if reference:
            compare("PyTorch", found, reference)
        own = folder / "own"
        own.mkdir()
        builder = own_gradients(api, network, own)
        if isinstance(builder, str):
            report["ONNX Runtime's own gradients"] = builder
        else:
            expect(abs(builder[0] - loss) <= LOSS_TOLERANCE * abs(loss), f"loss of the gradient builder {builder[0]} instead of {loss}")
            compare("ONNX Runtime's own gradients", found, builder[1])
        optimizer.set_learning_rate(1e-3)
        losses = []
        for _ in range(STEPS):
            module.lazy_reset_grad()
            losses.append(float(module(*step)))
            optimizer.step()
        module.eval()
        last = float(module(*step))
        report[f"loss after {STEPS} AdamW steps"] = last
        expect(last < 0.9 * losses[0], f"the loss changed from {losses[0]} to {last} in {STEPS} steps")
        api.CheckpointState.save_checkpoint(state, folder / "trained", include_optimizer_state=True)
        again = api.CheckpointState.load_checkpoint(folder / "trained")
        second = api.Module(made / "training_model.onnx", again, made / "eval_model.onnx")
        second.eval()
        loaded = float(second(*step))
        expect(abs(loaded - last) <= LOSS_TOLERANCE * abs(last), f"loss {loaded} instead of {last} after loading")
        session = onnxruntime.InferenceSession(str(network.path), providers=["CPUExecutionProvider"])
        output = session.get_outputs()[0].name
        second.export_model_for_inferencing(str(folder / "trained.onnx"), [output])
        session = onnxruntime.InferenceSession(str(folder / "trained.onnx"), providers=["CPUExecutionProvider"])
        known = {value.name for value in session.get_inputs()}
        (predicted,) = session.run(None, {name: array for name, array in network.inputs.items() if name in known})
        exported = float(np.mean((predicted - network.target) ** 2))
        expect(abs(exported - last) <= LOSS_TOLERANCE * abs(last), f"loss {exported} instead of {last} after export")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setup", action="store_true", help="create .venv-training and do nothing else")
    parser.add_argument("--tool", type=Path, help="the onnx-diffprune executable")
    parser.add_argument("--gradient-graph", type=Path, help="the executable of examples/gradient_graph.rs")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    args = parser.parse_args()
    try:
        if args.setup:
            set_up()
            return 0
        if args.tool is None or args.gradient_graph is None:
            parser.error("expected --tool and --gradient-graph")
        if not environment_python().exists():
            raise Unavailable("there is no .venv-training; run with --setup")
        if Path(sys.prefix).resolve() != ENVIRONMENT:
            os.execv(environment_python(), [str(environment_python()), *sys.argv])
    except Unavailable as error:
        print(f"skipped: {error}", file=sys.stderr)
        return SKIPPED
    reports = [check(network(), args.tool.resolve(), args.gradient_graph.resolve()) for network in (ddpm, dit)]
    if args.format == "json":
        print(json.dumps(reports, indent=2))
    else:
        for report in reports:
            print(report["model"])
            for key, value in report.items():
                if isinstance(value, dict):
                    value = f"{value['weights']} weights, worst relative error {value['worst']:.2e} at {value['at']}"
                if key not in ("model", "failed"):
                    print(f"  {key}: {value}")
            for failure in report["failed"]:
                print(f"  FAILED {failure}")
    return 1 if any(report["failed"] for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
