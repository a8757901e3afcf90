"""The metadata of a TFDS directory as TFDS itself reads it."""

import pathlib

import pytest

from alexnet_jax.data.tfds_metadata import Metadata


def by_tfds(directory: pathlib.Path) -> Metadata:
    tfds = pytest.importorskip("tensorflow_datasets")
    info = tfds.builder_from_directory(directory).info
    image_key, label_key = info.supervised_keys
    image = info.features[image_key]
    assert isinstance(image, tfds.features.Image)
    return Metadata(
        name=info.name,
        directory=directory,
        image_key=image_key,
        image_shape=image.shape,
        image_encoding=image.encoding_format,
        label_key=label_key,
        class_ids=tuple(info.features[label_key].names),
        splits={
            name: [(str(i.filename), i.examples_in_shard) for i in split.file_instructions]
            for name, split in info.splits.items()
        },
    )
