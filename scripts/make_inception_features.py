"""Makes the Inception features of FID as a network for `onnx-diffprune evaluate --features`. The weights must be available.

    make_inception_features.py --weights pt_inception-2015-12-05-6726825d.pth --out inception.onnx

Needs torch, torchvision, pytorch-fid and onnx. The weights are those that pytorch-fid downloads on its first use (into
~/.cache/torch/hub/checkpoints); without --weights it downloads them. The network is that of pytorch-fid up to its last
pooling: 2,048 features of images of 299x299 pixels in the range 0 to 1.

`evaluate` resizes linearly, as pytorch-fid does for images below 299x299, and FD by these features is FID. For larger
images the resizing differs (no pixels are skipped), and so does FID slightly.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
import torch
from onnx import helper
from pytorch_fid import inception


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, metavar="FILE.pth")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.onnx")
    options = parser.parse_args()
    if options.weights:
        weights = torch.load(options.weights, map_location="cpu", weights_only=True)
        inception.load_state_dict_from_url = lambda *_, **__: weights

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = inception.InceptionV3([3], resize_input=False)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.network(image)[0].flatten(1)

    names = {"input_names": ["image"], "output_names": ["features"], "dynamic_axes": {"image": {0: "batch"}}}
    example = torch.zeros(1, 3, 299, 299)
    torch.onnx.export(Features().eval(), example, options.out, opset_version=17, dynamo=False, **names)
    model = onnx.load(options.out)
    helper.set_model_props(model, {"Image.NominalPixelRange": "Normalized_0_1", "Image.BitmapPixelFormat": "Rgb8"})
    onnx.checker.check_model(model)
    onnx.save(model, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
