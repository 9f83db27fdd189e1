"""Loads two pipeline folders with optimum's ORTDiffusionPipeline and generates images with each. Prints figures as JSON.

    optimum_pipeline.py ORIGINAL PRUNED

It runs in a separate environment, with optimum-onnx and PyTorch (`check_clients.py --setup`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy
import onnxruntime
import torch
from optimum.onnxruntime import ORTDiffusionPipeline

STEPS = 3
PROMPT = "a photo of a cat"
# The session of the pipeline and the reference session run the same library on the same CPU.
TOLERANCE = 1e-6


class Drawn:
    """Images and latents of a pipeline, with inputs and outputs of its U-Net at every step."""

    def __init__(self, folder: Path) -> None:
        pipeline = ORTDiffusionPipeline.from_pretrained(folder, provider="CPUExecutionProvider")
        pipeline.set_progress_bar_config(disable=True)
        self.name, self.calls = type(pipeline).__name__, []
        forward = pipeline.unet.forward

        def recorded(sample, timestep, encoder_hidden_states, *args, **kwargs):
            given = {"sample": sample, "timestep": timestep, "encoder_hidden_states": encoder_hidden_states}
            given |= kwargs.get("added_cond_kwargs") or {}
            given = {name: torch.as_tensor(value).numpy().copy() for name, value in given.items()}
            found = forward(sample, timestep, encoder_hidden_states, *args, **kwargs)
            self.calls.append((given, found[0].numpy().copy()))
            return found

        pipeline.unet.forward = recorded

        def draw(kind: str) -> numpy.ndarray:
            options = {"height": 32, "width": 32, "num_inference_steps": STEPS, "output_type": kind}
            images = pipeline(PROMPT, generator=torch.Generator().manual_seed(1), **options).images
            return torch.as_tensor(images).numpy()

        self.latents, self.images, self.again = draw("latent"), draw("np"), draw("np")

    def error_of_network(self, path: Path) -> float:
        """Return the error of the U-Net's outputs against the file in ONNX Runtime, relative to the largest element."""
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        kinds = {value.name: value.type for value in session.get_inputs()}
        worst = 0.0
        for given, found in self.calls:
            types = {"tensor(float)": numpy.float32, "tensor(int64)": numpy.int64}
            inputs = {name: array.astype(types[kinds[name]]) for name, array in given.items()}
            (wanted,) = session.run(None, inputs)
            worst = max(worst, float(numpy.abs(wanted - found).max() / numpy.abs(wanted).max()))
        return worst


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:3]]
    original, pruned = (Drawn(folder) for folder in folders)
    failed = []

    def expect(is_right: bool, text: str) -> None:
        if not is_right:
            failed.append(f"optimum: {text}")

    for drawn, kind in ((original, "original"), (pruned, "pruned")):
        expect(numpy.array_equal(drawn.images, drawn.again), f"two runs of the {kind} pipeline generated different images")
        expect(bool(numpy.isfinite(drawn.latents).all()), f"the {kind} pipeline generated latents that are not finite")
        expect(len(drawn.calls) == 3 * STEPS, f"the U-Net of the {kind} pipeline ran {len(drawn.calls)} times")
    shapes = [original.images.shape, pruned.images.shape]
    expect(shapes[0] == shapes[1], f"images have the shapes {shapes}")
    differs = shapes[0] == shapes[1] and float(numpy.abs(original.images - pruned.images).max())
    expect(differs > 0, "the pruned pipeline generated the original's images")
    error = pruned.error_of_network(folders[1] / "unet" / "model.onnx")
    expect(error <= TOLERANCE, f"the pruned U-Net differs from ONNX Runtime by {error:.2g}")
    told = {"class": pruned.name, "images": shapes[1], "differ_from_original": differs, "unet": error, "failed": failed}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
