"""Computes the importance of every index from reference gradients: sums of |w G| and of w G over all axes but one.

    python scripts/reference_importance.py MODEL.onnx GRADS.npz OUT.npz

The gradients are PyTorch's; numpy multiplies them with the model's weights. OUT.npz contains, for every initializer of
rank one or more, `NAME|AXIS|abs` and `NAME|AXIS|signed` for its first two axes, in float64. The tests compare the tool
with it.
"""

import sys

import numpy
import onnx
from onnx import numpy_helper


def main() -> None:
    model, gradients, output = sys.argv[1:]
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(model).graph.initializer}
    result = {}
    for name, gradient in numpy.load(gradients).items():
        if name not in weights or gradient.ndim == 0:
            continue
        product = weights[name].astype(numpy.float64) * gradient.astype(numpy.float64)
        for axis in range(min(gradient.ndim, 2)):
            others = tuple(other for other in range(gradient.ndim) if other != axis)
            result[f"{name}|{axis}|abs"] = numpy.abs(product).sum(axis=others)
            result[f"{name}|{axis}|signed"] = product.sum(axis=others)
    numpy.savez_compressed(output, **result)


if __name__ == "__main__":
    main()
