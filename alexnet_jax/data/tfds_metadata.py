"""The metadata of a TFDS directory: its shards, features and classes.

A directory contains `<name>-<split>.array_record-00000-of-0000N` shards and TFDS's `dataset_info.json` and
`features.json`, so `tfds.builder_from_directory` can read it like any TFDS data set.
"""

import dataclasses
import importlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alexnet_jax.common import host
from alexnet_jax.common.errors import UserError
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
      directory: contains the shards.
      name: the data set's name, which begins every shard's file name.
      shard_lengths: the number of records in each shard, by split.
      class_ids: one id per label, such as WordNet ids; stored as the names of TFDS's `ClassLabel`.
      class_names: one readable name per label; stored in a separate file if they differ from the ids.
      image_shape: height, width (None if they vary) and channels of the stored images.
      encoding: "png" or "jpeg".
      description: a sentence on the contents and their origin.
    """
    tfds = import_tfds()
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
        paths = [shard_path(directory, name, split, i, len(lengths)) for i in range(len(lengths))]
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


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The contents of a TFDS directory.

    Attributes:
      image_key: name of the image feature.
      image_shape: height, width and channels; None where images differ.
      label_key: name of the label feature.
      splits: path and number of examples of each shard, by split.
    """

    name: str
    directory: pathlib.Path
    image_key: str
    image_shape: tuple[int | None, ...]
    image_encoding: str | None
    label_key: str
    class_ids: tuple[str, ...]
    splits: Mapping[str, Sequence[tuple[str, int]]]


def read_metadata(directory: pathlib.Path, key: str) -> Metadata:
    """Reads a directory's metadata from its JSON files, because TFDS cannot be imported without TensorFlow.

    Args:
      key: the config's key and value, for errors.

    Raises:
      UserError: the directory is incomplete, or the examples lack an image or a class label.
    """
    try:
        info = json.loads((directory / "dataset_info.json").read_text(encoding="utf-8"))
        features = json.loads((directory / "features.json").read_text(encoding="utf-8"))
        features = features["featuresDict"]["features"]
        supervised = info.get("supervisedKeys", {}).get("tuple", {}).get("items", [])
        image_key, label_key = _find_keys(features, [item.get("featureKey") for item in supervised], key)
        image = features[image_key]["image"]
        shape = [int(n) for n in image["shape"]["dimensions"]]
        names = directory / f"{label_key}.labels.txt"
        num_classes = int(features[label_key]["classLabel"]["numClasses"])
        return Metadata(
            name=info["name"],
            directory=directory,
            image_key=image_key,
            image_shape=tuple(n if n > 0 else None for n in shape),
            image_encoding=image.get("encodingFormat"),
            label_key=label_key,
            class_ids=tuple(_lines(names) if names.exists() else map(str, range(num_classes))),
            splits={split["name"]: _shards(directory, info, split) for split in info["splits"]},
        )
    except UserError:  # is a ValueError, too, but has a better message
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{key}: {directory} is no TFDS directory of images ({type(error).__name__}: {error}); make or "
            "fetch it again"
        ) from error


def read_class_names(directory: pathlib.Path, class_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Readable names by label: from the directory, else WordNet's, else the ids.

    Raises:
      UserError: the number of stored names differs from that of the ids.
    """
    path = directory / CLASS_NAMES_FILE
    if not path.exists():
        return readable_names(class_ids)
    names = tuple(_lines(path))
    if len(names) != len(class_ids):
        raise UserError(f"{path}: {len(names)} names for {len(class_ids)} classes; correct or delete it")
    return names


def import_tfds() -> Any:
    """Imports TFDS, which takes a second and needs TensorFlow; only `prepare` and `tfds:` sources use it.

    Raises:
      UserError: TensorFlow is missing.
    """
    if not host.has_tensorflow():
        raise UserError(
            "TFDS needs TensorFlow, which is not installed: pip install tensorflow-cpu; folders and prepared "
            "records (data.source=folder:PATH, prepared:PATH) need neither"
        )
    return importlib.import_module("tensorflow_datasets")


def _find_keys(features: Mapping[str, Any], supervised: Sequence[str], key: str) -> tuple[str, str]:
    """The names of the image feature and the label feature."""
    images, labels = ([k for k, v in features.items() if kind in v] for kind in ("image", "classLabel"))
    if len(supervised) == 2 and supervised[0] in images and supervised[1] in labels:
        return supervised[0], supervised[1]
    if not images or len(labels) != 1:
        raise UserError(
            f"{key}: not a set of images with one class label each (its features: {', '.join(features)})"
        )
    return ("image" if "image" in images else images[0]), labels[0]


def _shards(directory: pathlib.Path, info: Any, split: Any) -> list[tuple[str, int]]:
    """Path and number of examples of each non-empty shard of a split."""
    counts = [int(count) for count in split["shardLengths"]]
    template = split.get("filepathTemplate", _TEMPLATE)
    file_format = info.get("fileFormat", "tfrecord")  # the only format of older TFDS versions
    for word, value in (("DATASET", info["name"]), ("SPLIT", split["name"]), ("FILEFORMAT", file_format)):
        template = template.replace(f"{{{word}}}", value)
    paths = [
        directory / template.replace("{SHARD_X_OF_Y}", f"{i:05d}-of-{len(counts):05d}")
        for i in range(len(counts))
    ]
    return [(str(path), count) for path, count in zip(paths, counts, strict=True) if count]


def _lines(path: pathlib.Path) -> list[str]:
    # splitlines() also splits at a dozen other characters, which may occur in names.
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
