"""The scripts that made the data shipped with the package."""

import gzip
import hashlib
import pathlib

import numpy as np
import pytest

from alexnet_jax.common.errors import UserError
from alexnet_jax.data import sources
from scripts import make_fashion_mnist, make_imagenet2012_names


def write_idx(path: pathlib.Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.tobytes()))


def test_fashion_mnist_is_balanced_and_reproducible(tmp_path, monkeypatch):
    monkeypatch.setattr(make_fashion_mnist, "SPLITS", {"train": ("train", 3), "test": ("t10k", 1)})
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (100, 28, 28), np.uint8), (np.arange(100) % 10).astype(np.uint8)
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", labels)
    made = []
    for out in (tmp_path / "one", tmp_path / "two"):
        make_fashion_mnist.make(tmp_path, out)
        made.append({path.name: hashlib.sha256(path.read_bytes()).digest() for path in out.iterdir()})
    assert made[0] == made[1]
    source = sources.open_source(f"prepared:{tmp_path / 'one'}", "train")
    encoded, found = source.read(np.arange(len(source)))
    assert found.tolist() == labels[:30].tolist()
    assert encoded == [make_fashion_mnist.png(image) for image in images[:30]]
    assert source.statistics is not None and source.statistics.mean_image is not None
    np.testing.assert_allclose(source.statistics.mean_image[..., 1], images[:30].mean(axis=0), rtol=1e-6)


def test_fashion_mnist_without_idx_files(tmp_path):
    with pytest.raises(UserError, match=r"--idx_dir: no train-images-idx3-ubyte or .*\.gz in"):
        make_fashion_mnist.make(tmp_path, tmp_path / "out")


def test_names_are_wordnets_synonyms(tmp_path):
    line = "01440764 05 n 02 tench 0 Tinca_tinca 0 002 @ 01439121 n 0000 #m 01440655 n 0000 | a fish"
    (tmp_path / "data.noun").write_text(f"  1 A licence.  \n{line}\n")
    (tmp_path / "ids").write_text("n01440764\n")
    make_imagenet2012_names.make(tmp_path / "ids", tmp_path / "data.noun", tmp_path / "out")
    assert (tmp_path / "out" / "class_names.txt").read_text() == "n01440764 tench, Tinca tinca\n"
    assert "A licence." in (tmp_path / "out" / "LICENSE").read_text()
