"""Cuts a trained fixture with onnxsim and recovers it with onnxsim's own fit, for the comparison in docs/quality.md.

    python scripts/onnxsim_peer.py OUT_FOLDER [--sparsity 0.5,0.9] [--batches 16]

Needs `pip install onnxsim==0.8.1 onnxruntime`, best in a separate environment. Simplifies fixtures/ddpm_fashion16.onnx,
removes that share of the channels with `apply_structured_pruning`, and, if `apply_attention_head_pruning` removes
anything, that share of the heads. Then it fits the kept weights with `apply_pruning_finetune` on noisy training images
in batches of 32, with timesteps spread evenly over the schedule. Writes cut_S.onnx and recovered_S.onnx for every
sparsity S and prints what changed; `onnx-diffprune inspect` counts their MACs and `onnx-diffprune loss` measures their
loss.
"""

import argparse
import json
import pathlib
import time

import numpy as np
import onnx
import onnxsim
from onnx import numpy_helper

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURE = ROOT / "fixtures/ddpm_fashion16"


def noisy_batches(count: int) -> list[dict[str, np.ndarray]]:
    """Returns inputs of the network: images with noise at evenly spaced timesteps, in batches of 32."""
    images = np.load(FIXTURE / "train_images.npy").astype(np.float32) / 127.5 - 1
    schedule = json.loads((FIXTURE / "scheduler_config.json").read_text())
    steps = schedule["num_train_timesteps"]
    kept = np.cumprod(1 - np.linspace(schedule["beta_start"], schedule["beta_end"], steps))
    generator = np.random.default_rng(0)
    times = np.linspace(0, steps - 1, count * 32).astype(np.int64)
    generator.shuffle(times)
    batches = []
    for at in range(0, len(times), 32):
        t = times[at : at + 32]
        clean = images[np.arange(at, at + 32) % len(images)]
        scale = kept[t].reshape(-1, 1, 1, 1)
        noise = generator.standard_normal(clean.shape)
        batches.append({"sample": (np.sqrt(scale) * clean + np.sqrt(1 - scale) * noise).astype(np.float32), "timestep": t})
    return batches


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--sparsity", default="0.5,0.9")
    parser.add_argument("--batches", type=int, default=16, help="number of batches of 32 noisy images for the recovery fit")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    original, same = onnxsim.simplify(onnx.load(f"{FIXTURE}.onnx"))
    print(f"simplified, checked: {same}")
    batches = noisy_batches(options.batches)
    for sparsity in options.sparsity.split(","):
        cut = onnxsim.apply_structured_pruning(original, sparsity=float(sparsity))
        try:
            cut = onnxsim.apply_attention_head_pruning(cut, sparsity=float(sparsity))
        except Exception as error:  # a failure is a result too
            print(f"apply_attention_head_pruning: {type(error).__name__}: {error}")
        onnx.save(cut, options.out / f"cut_{sparsity}.onnx")
        before = time.process_time()
        recovered = onnxsim.apply_pruning_finetune(original, cut, calibration_data=batches)
        seconds = time.process_time() - before
        onnx.save(recovered, options.out / f"recovered_{sparsity}.onnx")
        full, small, fitted = weights(original), weights(cut), weights(recovered)
        sizes = [sum(array.size for array in each.values()) for each in (full, small)]
        narrower = sum(name in small and small[name].shape != array.shape for name, array in full.items())
        changed = sum(not np.array_equal(array, fitted.get(name)) for name, array in small.items())
        print(
            f"sparsity {sparsity}: {sizes[1] / sizes[0]:.1%} of the parameters kept, {narrower} of {len(full)} tensors "
            f"narrower; the recovery fit changed {changed} tensors in {seconds:.1f} s of CPU time",
            flush=True,
        )


if __name__ == "__main__":
    main()
