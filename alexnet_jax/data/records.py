"""TFDS directories as sources: the embedded set, prepared records, and any TFDS data set by name."""

import pathlib
from typing import Any

import numpy as np

from alexnet_jax.common import host
from alexnet_jax.common.errors import UserError, did_you_mean
from alexnet_jax.data.record_files import Shard, parse_example
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.data.tfds_metadata import Metadata, import_tfds, read_class_names, read_metadata

# The splits to use as "test", in order of preference: a labelled test set first (the labels of some test
# sets were never published).
_TEST_SPLITS = ("test", "validation", "val", "valid", "dev")
TEST_LABELS_UNPUBLISHED = ("imagenet2012", "imagenet2012_subset", "imagenet_resized", "imagenet2012_real")

# Checked here because TFDS only warns when it drops a split whose tar is missing or truncated.
TFDS_SIZES = {"imagenet2012": {"train": 1_281_167, "validation": 50_000}}


class RecordSource:
    """One split of a TFDS directory: encoded images and labels by index. See `sources.Source`."""

    def __init__(self, metadata: Metadata, split: str, key: str) -> None:
        """Opens `split`, one of the directory's splits; errors begin with `key`, the config's key and value.

        Raises:
          UserError: the split has no examples, unpublished labels or a format without random access.
        """
        self._metadata, self._split = metadata, split
        self.class_ids: tuple[str, ...] = metadata.class_ids
        self.class_names: tuple[str, ...] = read_class_names(metadata.directory, self.class_ids)
        self.num_classes: int = len(self.class_ids)
        self.statistics: Statistics | None = Statistics.load(metadata.directory)
        # The side of the images if all are square RGB JPEGs of one size, like prepared records.
        height, width, channels = metadata.image_shape
        square = metadata.image_encoding == "jpeg" and (width, channels) == (height, 3)
        self.jpeg_size: int | None = height if square else None
        shards = metadata.splits[split]
        self._shards = [Shard(path, key) for path, _ in shards]
        self._first = np.cumsum([0] + [count for _, count in shards])
        self.description = f"{metadata.name}: {len(self):,} {split} images in {self.num_classes:,} classes"
        if not len(self):
            raise UserError(f"{key}: the {split} split has no images")
        if self.read(np.array([0]))[1][0] < 0:  # TFDS stores -1 for unpublished labels
            raise UserError(f"{key}: the labels of the {split} split were never published")

    def __len__(self) -> int:
        return int(self._first[-1])

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """Returns the encoded images and int32 labels `[n]` at `indices` `[n]`; a broken record is `b""`."""
        images, labels = [b""] * len(indices), np.zeros(len(indices), np.int32)
        for i, example in enumerate(self._examples(indices)):
            if example is not None:
                images[i] = example[self._metadata.image_key].bytes_list.value[0]
                labels[i] = example[self._metadata.label_key].int64_list.value[0]
        return images, labels

    def name(self, index: int) -> str:
        """The original file name if stored, otherwise `<split>[<index>]`."""
        (example,) = self._examples(np.array([index]))
        if example is not None and "file_name" in example and example["file_name"].bytes_list.value:
            return example["file_name"].bytes_list.value[0].decode("utf-8", "backslashreplace")
        return f"{self._split}[{index}]"

    def _examples(self, indices: np.ndarray) -> list[Any]:
        """The features of the examples at `indices`, None for a broken record; reads each shard once."""
        shards = np.searchsorted(self._first, indices, side="right") - 1
        examples: list[Any] = [None] * len(indices)
        for shard in np.unique(shards):
            (selected,) = np.nonzero(shards == shard)
            positions = (indices[selected] - self._first[shard]).tolist()
            for i, record in zip(selected, self._shards[shard].read(positions), strict=True):
                examples[i] = parse_example(record)
        return examples


def open_prepared(path: pathlib.Path, split: str, key: str) -> RecordSource:
    """Opens a TFDS directory without importing TFDS; errors begin with `key`.

    Raises:
      UserError: `path` is not a TFDS directory or has no such split.
    """
    if not (path / "dataset_info.json").exists():
        raise UserError(f"{key}: {path} has no dataset_info.json; it is no prepared set, or was not finished")
    metadata = read_metadata(path, key)
    return RecordSource(metadata, _choose_split(metadata, split, key), key)


def open_tfds(name: str, split: str, key: str, data_dir: str | None) -> RecordSource:
    """Opens a TFDS data set by name, downloading and preparing it if needed; errors begin with `key`.

    Raises:
      UserError: there is no such data set, TFDS cannot prepare it, or it has no such split.
    """
    tfds = import_tfds()
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        short = name.split(":")[0].split("/")[0]
        known = tfds.list_builders(with_community_datasets=False)  # the community list needs a download
        raise UserError(f"{key}: TFDS has no such data set; {did_you_mean(short, known, most=8)}") from error
    except (ValueError, AssertionError) as error:
        raise UserError(f"{key}: {_first_line(error)}") from error
    if not builder.info.splits:
        host.tensorflow()  # TFDS needs TensorFlow to prepare a data set
        try:
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
        except Exception as error:  # network, disk, missing tar: TFDS raises many types
            raise UserError(f"{key}: TFDS could not prepare it ({_first_line(error)})") from error
    return open_prepared(pathlib.Path(builder.data_dir), split, key)


def _choose_split(metadata: Metadata, split: str, key: str) -> str:
    """The data set's name for `split`; checks the split's size if known."""
    wanted = ("train",) if split == "train" else _TEST_SPLITS
    if split == "test" and metadata.name in TEST_LABELS_UNPUBLISHED:
        wanted = tuple(name for name in wanted if name != "test")
    chosen = next((name for name in wanted if name in metadata.splits), None)
    expected = TFDS_SIZES.get(metadata.name, {})
    if chosen is None:
        have = ", ".join(metadata.splits) or "none"
        hint = " (TFDS drops a split whose tar is missing)" if expected else ""
        raise UserError(f"{key}: no split to {split} on; it has {have}{hint}")
    number = sum(count for _, count in metadata.splits[chosen])
    if number != expected.get(chosen, number):
        raise UserError(
            f"{key}: {chosen} has {number:,} examples, not {expected[chosen]:,}; its tar was cut short or "
            f"missing, so delete {metadata.directory} and prepare it again"
        )
    return chosen


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
