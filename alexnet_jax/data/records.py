"""TFDS directories of labelled images: the form in which images are prepared and shipped.

A directory holds `<name>-<split>.array_record-00000-of-0000N` shards of `tf.train.Example` records, and
TFDS's own `dataset_info.json` and `features.json`, so that `tfds.builder_from_directory` and
`tfds.data_source` read it as they read ImageNet. Any record is found by its number alone, which is what
makes an exact order cheap.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import logging
import os
import pathlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from alexnet_jax.common import files, host
from alexnet_jax.common.errors import Fault, UserError, vanished
from alexnet_jax.data.classes import readable_names
from alexnet_jax.data.statistics import Statistics

CLASS_NAMES_FILE = "class_names.txt"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class Shard(Protocol):
    """Serialized examples of one file by number; any thread may read."""

    def read(self, positions: Sequence[int], /) -> Sequence[bytes]:
        """Raises where a record cannot be read."""
        ...


def encode_example(values: Mapping[str, bytes | int]) -> bytes:
    """Gives one serialized `tf.train.Example` with a bytes or an int64 feature for each of `values`."""
    example = _example_type()()
    for key, value in values.items():
        feature = example.features.feature[key]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.int64_list.value.append(value)
    # Protocol buffers leave the order of a map open; the same records must give the same files.
    return example.SerializeToString(deterministic=True)


def write_shard(path: pathlib.Path, records: Iterable[bytes], group_size: int = 1) -> None:
    """Writes an array_record file, which is whole or is not there.

    A random read decompresses a whole group, so groups of one suit photographs; small records take less
    room in larger groups.
    """
    with files.replacing(path) as temporary:
        writer = _array_record().ArrayRecordWriter(str(temporary), f"group_size:{group_size}")
        for record in records:
            writer.write(record)
        writer.close()


def count(path: pathlib.Path) -> int:
    """The number of records in an array_record file."""
    reader = _array_record().ArrayRecordReader(str(path))
    try:
        return reader.num_records()
    finally:
        reader.close()


def shard_path(directory: pathlib.Path, name: str, split: str, shard: int, shards: int) -> pathlib.Path:
    """The file name that TFDS expects of one shard."""
    return directory / f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"


def write_info(
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
    """Writes the metadata that makes a directory of shards a TFDS data set; the last step of making one.

    Args:
      directory: where the shards are.
      name: the data set's name, the first part of every shard's file name.
      shard_lengths: for each split, the number of records in each of its shards.
      class_ids: one id a label, such as WordNet ids; stored as the names of TFDS's `ClassLabel`.
      class_names: one readable name a label; stored beside where they differ from the ids.
      image_shape: height, width (None where they vary) and channels of the stored images.
      encoding: "png" or "jpeg".
      description: a sentence on what this is and where it came from.
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
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        check_data=False,
        supervised_keys=("image", "label"),
        description=description,
    )


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a TFDS directory says of itself.

    Attributes:
      image_shape: height, width and channels; None where images differ.
      splits: the path of each shard of a split and the number of its examples.
    """

    name: str
    directory: pathlib.Path
    image_key: str
    image_shape: tuple[int | None, ...]
    image_encoding: str | None
    label_key: str
    class_ids: tuple[str, ...]
    splits: Mapping[str, Sequence[tuple[str, int]]]


def contents_of(builder: Any, key: str) -> Contents:
    """The contents of a builder's directory; `key` names the config's key and value in errors.

    Raises:
      UserError: the data set has no image or no class label.
    """
    info, tfds = builder.info, import_tfds()
    features = dict(info.features) if hasattr(info.features, "items") else {}
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    of_kind = {
        kind: [name for name, feature in features.items() if isinstance(feature, its)]
        for kind, its in kinds.items()
    }
    image_key, label_key = _keys(list(features), of_kind, info.supervised_keys, key)
    return Contents(
        info.name,
        pathlib.Path(builder.data_dir),
        image_key,
        info.features[image_key].shape,
        info.features[image_key].encoding_format,
        label_key,
        tuple(info.features[label_key].names),
        {
            name: [(str(i.filename), i.examples_in_shard) for i in split.file_instructions]
            for name, split in info.splits.items()
        },
    )


def read_contents(directory: pathlib.Path, key: str) -> Contents:
    """The same from the directory's own files: TFDS itself cannot be imported where TensorFlow is missing.

    Raises:
      UserError: the directory is not whole, or has no image or no class label.
    """
    try:
        info, features = (
            json.loads((directory / name).read_text(encoding="utf-8"))
            for name in ("dataset_info.json", "features.json")
        )
        features = features["featuresDict"]["features"]
        of_kind = {
            kind: [name for name, its in features.items() if field in its]
            for kind, field in (("image", "image"), ("label", "classLabel"))
        }
        supervised = info.get("supervisedKeys", {}).get("tuple", {}).get("items", [])
        image_key, label_key = _keys(list(features), of_kind, [k.get("featureKey") for k in supervised], key)
        image, count = features[image_key]["image"], int(features[label_key]["classLabel"]["numClasses"])
        shape = [int(n) for n in image["shape"]["dimensions"]]
        names = directory / f"{label_key}.labels.txt"
        class_ids = _lines(names) if names.exists() else map(str, range(count))
        return Contents(
            info["name"],
            directory,
            image_key,
            tuple(n if n > 0 else None for n in shape),
            image.get("encodingFormat"),
            label_key,
            tuple(class_ids),
            {split["name"]: _shards(directory, info, split) for split in info["splits"]},
        )
    except UserError:  # is a ValueError, too, and says more
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{key}: {directory} is no TFDS directory of images ({type(error).__name__}: {error}); make or "
            "fetch it again"
        ) from error


def _shards(directory: pathlib.Path, info: Any, split: Any) -> list[tuple[str, int]]:
    counts = [int(count) for count in split["shardLengths"]]
    template = split.get("filepathTemplate", _TEMPLATE)
    words = {"{DATASET}": info["name"], "{SPLIT}": split["name"], "{FILEFORMAT}": info["fileFormat"]}
    for word, value in words.items():
        template = template.replace(word, value)
    paths = [
        str(directory / template.replace("{SHARD_X_OF_Y}", f"{i:05d}-of-{len(counts):05d}"))
        for i in range(len(counts))
    ]
    return [(path, count) for path, count in zip(paths, counts, strict=True) if count]


class RecordSource:
    """One split of a TFDS data set: encoded images and labels by number. See `sources.Source`."""

    def __init__(self, contents: Contents, split: str, key: str) -> None:
        """Opens `split`, one of `contents`; `key` names the config's key and value in errors.

        Raises:
          UserError: the split has no examples, labels that were kept secret, or a form without random access.
        """
        self._image_key, self._label_key = contents.image_key, contents.label_key
        self.class_ids: tuple[str, ...] = contents.class_ids
        self.class_names: tuple[str, ...] = _class_names(contents.directory, self.class_ids)
        self.num_classes: int = len(self.class_ids)
        self.statistics: Statistics | None = Statistics.load(contents.directory)
        # The side of the images where all are JPEGs in colour of one square size, as prepared records are.
        height, width, channels = contents.image_shape
        square = contents.image_encoding == "jpeg" and (width, channels) == (height, 3)
        self.jpeg_size: int | None = height if square else None
        self._split = split
        shards = contents.splits[split]
        self._shards = [_open_shard(path, key) for path, _ in shards]
        self._first = np.cumsum([0] + [count for _, count in shards])
        self.description = f"{contents.name}: {len(self):,} {split} images in {self.num_classes:,} classes"
        if not len(self):
            raise UserError(f"{key}: the {split} split has no images")
        if self.read(np.array([0]))[1][0] < 0:  # what TFDS stores where labels were kept secret
            raise UserError(f"{key}: the labels of the {split} split were never published")

    def __len__(self) -> int:
        return int(self._first[-1])

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """Gives the encoded images and int32 labels `[n]` of `indices` `[n]`; a broken record is `b""`."""
        images, labels = [b""] * len(indices), np.zeros(len(indices), np.int32)
        for place, example in enumerate(self._examples(indices)):
            if example is not None:
                images[place] = example[self._image_key].bytes_list.value[0]
                labels[place] = example[self._label_key].int64_list.value[0]
        return images, labels

    def name(self, index: int) -> str:
        """The original file's name where it is recorded, otherwise `<split>[<index>]`."""
        (example,) = self._examples(np.array([index]))
        if example is not None and "file_name" in example and example["file_name"].bytes_list.value:
            return example["file_name"].bytes_list.value[0].decode("utf-8", "backslashreplace")
        return f"{self._split}[{index}]"

    def _examples(self, indices: np.ndarray) -> list[Any]:
        """The features of the examples `indices`, None where a record is broken; each shard is read once."""
        shards = np.searchsorted(self._first, indices, side="right") - 1
        examples: list[Any] = [None] * len(indices)
        for shard in np.unique(shards):
            (places,) = np.nonzero(shards == shard)
            positions = (indices[places] - self._first[shard]).tolist()
            for place, record in zip(places, _read_each(self._shards[shard], positions), strict=True):
                examples[place] = _parse(record)
        return examples


def _read_each(shard: Shard, positions: list[int]) -> Sequence[bytes]:
    """Reads records of a shard, together or, where that fails, one by one, with `b""` for the broken ones."""
    try:
        return shard.read(positions)
    except Fault:
        raise
    except Exception:  # array_record has exceptions of its own
        if len(positions) == 1:
            return [b""]
        return [_read_each(shard, [position])[0] for position in positions]


class ArrayRecordShard:
    """One array_record file, opened when first read; its own data source starts threads on each read."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._reader: Any = None
        self._lock = threading.Lock()

    def read(self, positions: Sequence[int], /) -> Sequence[bytes]:
        with self._lock:
            if self._reader is None:
                if not os.path.exists(self._path):
                    raise vanished(self._path)
                # No read-ahead: the next record wanted is somewhere else.
                self._reader = _array_record().ArrayRecordReader(
                    self._path, "readahead_buffer_size:0", file_reader_buffer_size=32768
                )
        return self._reader.read(list(positions))


class TfRecordShard:
    """One TFRecord file, read at random all the same.

    A record is its length (8 bytes), a checksum (4), its bytes and a checksum (4). The lengths lead from
    one record to the next, so the first read walks through them: one small read for each record of this
    file, once.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = -1
        self._starts: list[int] = []
        self._lock = threading.Lock()

    def read(self, positions: Sequence[int], /) -> Sequence[bytes]:
        with self._lock:
            if self._file < 0:
                try:
                    self._file = os.open(self._path, os.O_RDONLY)
                except FileNotFoundError as error:
                    raise vanished(self._path) from error
                self._starts = self._walk()
        return [
            os.pread(self._file, self._length(start), start + 12)
            for start in map(self._starts.__getitem__, positions)
        ]

    def _walk(self) -> list[int]:
        starts, start, end = [], 0, os.fstat(self._file).st_size
        while start < end:
            starts.append(start)
            start += 16 + self._length(start)
        return starts

    def _length(self, start: int) -> int:
        return int.from_bytes(os.pread(self._file, 8, start), "little")


def _open_shard(path: str, key: str) -> Shard:
    name = os.path.basename(path)
    if not os.path.exists(path):
        raise UserError(f"{key}: {path} is missing; the data set is not whole, so make or fetch it again")
    if ".array_record" in name:
        return ArrayRecordShard(path)
    if ".tfrecord" in name:
        return TfRecordShard(path)
    raise UserError(f"{key}: {path} is stored without random access; prepare the set again as array_record")


def import_tfds() -> Any:
    """Imports TFDS, which takes a second and needs TensorFlow; its own data sets and `prepare` need it.

    Raises:
      UserError: there is no TensorFlow.
    """
    if not host.has_tensorflow():
        raise UserError(
            "TFDS needs TensorFlow, which is not installed: pip install tensorflow-cpu; folders and prepared "
            "records (data.source=folder:PATH, prepared:PATH) need neither"
        )
    return importlib.import_module("tensorflow_datasets")


def _parse(record: bytes) -> Any:
    """The features of a serialized example, or None where it is none."""
    try:
        features = _example_type().FromString(record).features.feature
    except Exception:  # protobuf's DecodeError lies elsewhere in each of its versions
        return None
    return features or None


@functools.cache
def _example_type() -> Any:
    # TFDS carries the definition itself, so that records are read where there is no TensorFlow, of which the
    # rest of TFDS complains in dozens of lines as it is imported.
    if host.has_tensorflow():
        return importlib.import_module("tensorflow_datasets.proto").tf_example_pb2.Example
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return importlib.import_module("tensorflow_datasets.proto").tf_example_pb2.Example
    finally:
        logging.disable(before)


def _array_record() -> Any:
    return importlib.import_module("array_record.python.array_record_module")


def _keys(
    features: Sequence[str], of_kind: Mapping[str, Sequence[str]], supervised: Any, key: str
) -> tuple[str, str]:
    """The features that are the image and its label."""
    images, labels = of_kind["image"], of_kind["label"]
    if supervised and len(supervised) == 2 and supervised[0] in images and supervised[1] in labels:
        return supervised[0], supervised[1]
    if not images or len(labels) != 1:
        raise UserError(
            f"{key}: not a set of images with one class label each (its features: {', '.join(features)})"
        )
    return ("image" if "image" in images else images[0]), labels[0]


def _lines(path: pathlib.Path) -> list[str]:
    # splitlines() would split at a dozen other characters too, which names may have.
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _class_names(directory: pathlib.Path, class_ids: tuple[str, ...]) -> tuple[str, ...]:
    path = directory / CLASS_NAMES_FILE
    if not path.exists():
        return readable_names(class_ids)
    names = tuple(_lines(path))
    if len(names) != len(class_ids):
        raise UserError(f"{path}: {len(names)} names for {len(class_ids)} classes; mend it or delete it")
    return names
