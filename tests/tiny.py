"""A narrow net and a few real images, for tests that train."""

import pathlib

import numpy as np

from alexnet_jax.data import sources

CLASSES = 10

# Values of a config, by key; the images are the smallest that the net takes, nearly.
NET = {
    "data.batch_size": 8,
    "data.resize_size": 60,
    "data.image_size": 55,
    "model.widths": (8, 16, 16, 16, 16, 16),
    "model.fc_widths": (32, 32),
    "augment.mean": "colour",
}


def make_images(root: pathlib.Path, *, train: int, test: int) -> pathlib.Path:
    """A folder of embedded images as PNG files, so many of each class, read sooner than all of them."""
    for split, per_class in (("train", train), ("test", test)):
        encoded, labels = sources.open_source("embedded", split).read(np.arange(2000))
        for label in range(CLASSES):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in np.flatnonzero(labels == label)[:per_class]:
                (folder / f"{i:05d}.png").write_bytes(encoded[i])
    return root
