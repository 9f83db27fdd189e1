"""Writes fixtures/evaluate/metrics.npz: the metrics of `src/evaluate` as other implementations compute them.

SSIM and PSNR come from scikit-image, the Fréchet distance from pytorch-fid's formula with SciPy's matrix square root,
the kernel distance from its definition with scikit-learn's polynomial kernel, and resized images from Pillow.

    pip install numpy scipy scikit-image scikit-learn pillow
    python scripts/make_metrics_fixture.py fixtures/evaluate/metrics.npz
"""

import sys

import numpy as np
from PIL import Image
from scipy import linalg
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics.pairwise import polynomial_kernel

RANDOM = np.random.default_rng(7)


def images(arrays):
    """Adds pairs of images [channels, height, width] with their value range, SSIM and PSNR."""
    smooth = np.cos(np.linspace(0, 5, 24))[:, None] * np.sin(np.linspace(0, 4, 17))[None, :]
    colour = np.stack([smooth, smooth ** 2, np.roll(smooth, 3, axis=1)])
    grey = RANDOM.uniform(-1, 1, (1, 16, 16))
    pairs = [
        (colour, colour + 0.1 * RANDOM.standard_normal(colour.shape), 2.0),
        (grey, RANDOM.uniform(-1, 1, grey.shape), 2.0),
        (grey, 0.5 * grey + 0.2, 2.0),
        (RANDOM.uniform(0, 255, (1, 7, 7)).round(), RANDOM.uniform(0, 255, (1, 7, 7)).round(), 255.0),
        (np.full((3, 8, 11), 0.25), np.full((3, 8, 11), 0.5), 1.0),
    ]
    for at, (a, b, data_range) in enumerate(pairs):
        arrays[f"image_a_{at}"], arrays[f"image_b_{at}"] = a, b
        ssim = structural_similarity(a, b, data_range=data_range, channel_axis=0)
        psnr = peak_signal_noise_ratio(a, b, data_range=data_range)
        arrays[f"image_{at}"] = np.array([data_range, ssim, psnr])


def frechet(a, b):
    """Computes pytorch-fid's `calculate_frechet_distance` on the mean and covariance of features."""
    sigma_a, sigma_b = (np.atleast_2d(np.cov(of, rowvar=False)) for of in (a, b))
    root = np.real(linalg.sqrtm(sigma_a @ sigma_b))
    if not np.isfinite(root).all():
        offset = 1e-6 * np.eye(len(sigma_a))
        root = np.real(linalg.sqrtm((sigma_a + offset) @ (sigma_b + offset)))
    difference = a.mean(axis=0) - b.mean(axis=0)
    return difference @ difference + np.trace(sigma_a) + np.trace(sigma_b) - 2 * np.trace(root)


def distances(arrays):
    """Adds pairs of feature sets with their Fréchet distance."""
    mixing = RANDOM.standard_normal((24, 24))
    many = RANDOM.standard_normal((200, 24)) @ mixing
    other = RANDOM.standard_normal((150, 24)) @ RANDOM.standard_normal((24, 24)) + 0.5
    few, fewer = RANDOM.standard_normal((30, 64)), RANDOM.standard_normal((20, 64)) * 2 + 1
    constant = many.copy()
    constant[:, ::3] = 4.0
    pairs = [
        (many, other),
        (many, many[:100] * 1.1),
        (many[:, :1], other[:, :1]),
        # Singular covariances: fewer samples than features, and constant features.
        (few, fewer),
        (few, RANDOM.standard_normal((90, 64)) @ RANDOM.standard_normal((64, 64))),
        (constant, other),
    ]
    for at, (a, b) in enumerate(pairs):
        arrays[f"features_a_{at}"], arrays[f"features_b_{at}"] = a, b
        arrays[f"frechet_{at}"] = np.array(frechet(a, b))


def kernel(arrays):
    """Adds the kernel distance over subsets, and over all samples."""
    a, b = RANDOM.standard_normal((120, 32)), RANDOM.standard_normal((90, 32)) * 1.2 + 0.3

    def distance(x, y):
        options = {"degree": 3, "gamma": None, "coef0": 1}
        xx, yy, xy = (polynomial_kernel(left, right, **options) for left, right in ((x, x), (y, y), (x, y)))
        within = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy))
        return within - 2 * xy.mean()

    subsets = [(RANDOM.choice(120, 40, replace=False), RANDOM.choice(90, 40, replace=False)) for _ in range(10)]
    found = np.array([distance(a[of_a], b[of_b]) for of_a, of_b in subsets])
    arrays["kernel_a"], arrays["kernel_b"] = a, b
    arrays["kernel_subsets"] = np.array(subsets, dtype=np.int64)
    arrays["kernel"] = np.array([found.mean(), found.std(), distance(a[:90], b)])


def resized(arrays):
    """Adds an image in other sizes."""
    image = RANDOM.uniform(0, 255, (9, 14)).astype(np.float32)
    arrays["resize"] = image
    for at, (height, width) in enumerate([(18, 28), (13, 20), (4, 5), (9, 30), (2, 14)]):
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        arrays[f"resize_{at}"] = np.asarray(resized)


def main():
    arrays = {}
    for part in (images, distances, kernel, resized):
        part(arrays)
    np.savez_compressed(sys.argv[1], **arrays)


if __name__ == "__main__":
    main()
