"""A narrow net and a few real images, for tests that train."""

import pathlib

import numpy as np

from alexnet_jax.data import sources

CLASSES = 10

# Config values by key; the images are nearly the smallest the net accepts.
NET = {
    "data.batch_size": 8,
    "data.resize_size": 60,
    "data.image_size": 55,
    "model.widths": (8, 16, 16, 16, 16, 16),
    "model.fc_widths": (32, 32),
    "augment.mean": "colour",
}


def make_images(root: pathlib.Path, *, train: int, test: int) -> pathlib.Path:
    """Writes a few embedded images per class as a folder of PNG files, which is faster to read than all."""
    for split, per_class in (("train", train), ("test", test)):
        encoded, labels = sources.open_source("embedded", split).read(np.arange(2000))
        for label in range(CLASSES):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in np.flatnonzero(labels == label)[:per_class]:
                (folder / f"{i:05d}.png").write_bytes(encoded[i])
    return root
