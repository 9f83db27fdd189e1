"""Measures one gradient step in PyTorch: forward and backward of the denoising loss, gradients summed in `.grad`.

    python scripts/gpu_check_torch.py [--device cuda] [--batch 32] [--steps 20]

The network has the architecture of fixtures/ddpm_fashion16.onnx (diffusers' UNet2DModel, 1.62 M parameters) with random
weights, which do not affect the time. Prints lines of a name and a value, which gpu_check.sh reads. The exit code is 3
if PyTorch or diffusers is not installed or the device is missing.
"""

import argparse
import statistics
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    try:
        import torch
        from diffusers import UNet2DModel
    except ImportError as error:
        print(f"reason {error}")
        return 3
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("reason PyTorch finds no CUDA device")
        return 3
    # As in the tool: float32 without rounding of factors to TensorFloat-32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    ).to(options.device)
    sample = torch.randn(options.batch, 1, 16, 16, device=options.device)
    noise = torch.randn(options.batch, 1, 16, 16, device=options.device)

    def finish() -> None:
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()

    times = []
    for step in range(options.steps + 3):
        started = time.perf_counter()
        timestep = torch.full((options.batch,), step, device=options.device)
        loss = torch.nn.functional.mse_loss(network(sample, timestep).sample, noise)
        loss.backward()
        loss.item()
        finish()
        times.append((time.perf_counter() - started) * 1e3)
    print(f"torch {torch.__version__}")
    print(f"parameters {sum(parameter.numel() for parameter in network.parameters())}")
    print(f"median_ms {statistics.median(times[3:]):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
