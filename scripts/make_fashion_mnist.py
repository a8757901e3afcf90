"""Makes the embedded data set from Fashion-MNIST's four original idx files.

    python -m scripts.make_fashion_mnist --idx_dir=DIR [--out=DIR]

Takes the first 1,200 training and the first 200 test images of each class, in the files' own order, and
writes them as optimised PNGs to a TFDS directory. The same input gives the same bytes.
"""

import argparse
import gzip
import io
import pathlib

import numpy as np
from PIL import Image

from alexnet_jax.common.errors import UserError
from alexnet_jax.data import record_files, tfds_metadata
from alexnet_jax.data.statistics import ColourSums

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SPLITS = {"train": ("train", 1200), "test": ("t10k", 200)}  # prefix of the files, images of each class


def read_idx(path: pathlib.Path) -> np.ndarray:
    """Reads an idx file of unsigned bytes, `path` or `path.gz`, into an array of the shape in the header."""
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and not packed.exists():
        raise UserError(f"--idx_dir: no {path.name} or {packed.name} in {path.parent}")
    data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    ndim = data[3]
    shape = np.frombuffer(data, ">u4", count=ndim, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def balanced(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Indices of the first `per_class` examples of each class, in the order of `labels`."""
    first = [np.flatnonzero(labels == label)[:per_class] for label in range(len(CLASS_NAMES))]
    return np.sort(np.concatenate(first))


def png(image: np.ndarray) -> bytes:
    """A grey image `[H, W]` as the smallest PNG that Pillow writes."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", optimize=True)
    return out.getvalue()


def make(source: pathlib.Path, out: pathlib.Path) -> None:
    """Makes the data set in `out` from the idx files in `source`."""
    out.mkdir(parents=True, exist_ok=True)
    lengths: dict[str, list[int]] = {}
    for split, (prefix, per_class) in SPLITS.items():
        images = read_idx(source / f"{prefix}-images-idx3-ubyte")
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte")
        chosen = balanced(labels, per_class)
        examples = (
            record_files.encode_example(
                {
                    "image": png(images[i]),
                    "label": int(labels[i]),
                    "file_name": f"{prefix}-images-idx3-ubyte[{i}]".encode(),
                }
            )
            for i in chosen
        )
        # The 14,000 small records take 9.5 MB in groups of one, 7.2 MB in groups of eight.
        record_files.write_shard(
            tfds_metadata.shard_path(out, "fashion_mnist", split, 0, 1), examples, group_size=8
        )
        lengths[split] = [len(chosen)]
        if split == "train":
            rgb = np.repeat(images[chosen][..., None], 3, axis=-1)
            ColourSums.of(rgb).statistics().save(out)
    tfds_metadata.write_metadata(
        out,
        name="fashion_mnist",
        shard_lengths=lengths,
        class_ids=CLASS_NAMES,
        class_names=CLASS_NAMES,
        image_shape=(28, 28, 1),
        encoding="png",
        description="A balanced part of Fashion-MNIST (Zalando SE, MIT licence): 12,000 + 2,000 images.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--idx_dir", required=True, type=pathlib.Path, help="where the four idx files are")
    parser.add_argument(
        "--out",
        default=pathlib.Path(__file__).parents[1] / "alexnet_jax/data/fashion_mnist",
        type=pathlib.Path,
    )
    given = parser.parse_args()
    make(given.idx_dir, given.out)


if __name__ == "__main__":
    main()
