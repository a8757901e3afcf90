"""The metadata of a TFDS directory: written and read by TFDS, except for readable names of classes.

A directory has the shards `<name>-<split>.array_record-00000-of-0000N` and TFDS's `dataset_info.json` and
`features.json`, so `tfds.builder_from_directory` can read it like any TFDS data set.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alexnet_jax.common.errors import UserError, one_line
from alexnet_jax.data.classes import readable_names

CLASS_NAMES_FILE = "class_names.txt"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def shard_path(directory: pathlib.Path, name: str, split: str, shard: int, shards: int) -> pathlib.Path:
    """The file name that TFDS expects for shard number `shard` of `shards`."""
    return directory / f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"


def write_metadata(
    directory: pathlib.Path,
    *,
    name: str,
    shard_lengths: Mapping[str, Sequence[int]],
    class_ids: Sequence[str],
    class_names: Sequence[str],
    image_shape: tuple[int | None, int | None, int],
    encoding: str,
    description: str,
) -> None:
    """Writes the metadata that makes a directory of shards a TFDS data set; call it last.

    Args:
      name: the data set's name, which begins every shard's file name.
      shard_lengths: the number of records in each shard, by split.
      class_ids: one id per label, such as WordNet ids; stored as the names of TFDS's `ClassLabel`.
      class_names: one readable name per label; stored in a separate file if they differ from the ids.
      image_shape: height, width (None if they vary) and channels of the stored images.
      encoding: "png" or "jpeg".
    """
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=image_shape, dtype=np.uint8, encoding_format=encoding),
            "label": tfds.features.ClassLabel(names=list(class_ids)),
            "file_name": tfds.features.Text(),
        }
    )
    if tuple(class_names) != tuple(class_ids):
        (directory / CLASS_NAMES_FILE).write_text("".join(f"{n}\n" for n in class_names), encoding="utf-8")
    splits = []
    for split, lengths in shard_lengths.items():
        paths = (shard_path(directory, name, split, i, len(lengths)) for i in range(len(lengths)))
        size = sum(path.stat().st_size for path in paths)
        splits.append(tfds.core.SplitInfo(name=split, shard_lengths=list(lengths), num_bytes=size))
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features,
        split_infos=splits,
        filename_template=_TEMPLATE,
        check_data=False,
        supervised_keys=("image", "label"),
        description=description,
    )


def read_info(directory: pathlib.Path) -> tuple[Any, str, str]:
    """Reads a directory's metadata.

    Returns:
      TFDS's `DatasetInfo`, and the names of the image feature and the label feature.

    Raises:
      UserError: the directory is incomplete, or the examples lack an image or a class label.
    """
    # Before threads start: while TFDS is being imported, relative imports fail in other threads.
    import tensorflow_datasets as tfds

    try:
        info: Any = tfds.builder_from_directory(directory).info
        features = dict(info.features)
    except Exception as error:  # TFDS raises many types
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{directory} is no TFDS directory of images ({reason}); make or fetch it") from error
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    images, labels = ([k for k, v in features.items() if isinstance(v, kind)] for kind in kinds)
    supervised = info.supervised_keys or ()
    if len(supervised) == 2 and supervised[0] in images and supervised[1] in labels:
        return info, *supervised
    if not images or len(labels) != 1:
        raise UserError(f"not images with one class label each (its features: {', '.join(features)})")
    return info, ("image" if "image" in images else images[0]), labels[0]


def read_class_names(directory: pathlib.Path, class_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Readable names by label: from the directory, else WordNet's, else the ids.

    Raises:
      UserError: the number of stored names differs from that of the ids.
    """
    path = directory / CLASS_NAMES_FILE
    if not path.exists():
        return readable_names(class_ids)
    # splitlines() also splits at a dozen other characters, which may occur in names.
    names = tuple(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    if len(names) != len(class_ids):
        raise UserError(f"{path}: {len(names)} names for {len(class_ids)} classes; correct or delete it")
    return names
