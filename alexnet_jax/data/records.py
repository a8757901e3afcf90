"""TFDS directories as sources: the embedded set, prepared records, and any TFDS data set by name."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from alexnet_jax.common import host
from alexnet_jax.common.command_line import interruptible
from alexnet_jax.common.errors import UserError, did_you_mean, one_line
from alexnet_jax.data.record_files import READERS, Shard, parse_example
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.data.tfds_metadata import read_class_names, read_info

# The splits to use as "test", in order of preference: a labelled test set first.
_TEST_SPLITS = ("test", "validation", "val", "valid", "dev")
TEST_LABELS_UNPUBLISHED = ("imagenet2012", "imagenet2012_subset", "imagenet_resized", "imagenet2012_real")

# Checked here because TFDS only warns when it drops a split whose tar is missing or truncated.
TFDS_SIZES = {"imagenet2012": {"train": 1_281_167, "validation": 50_000}}
_IMAGENET_TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


class RecordSource:
    """One split of a TFDS directory: encoded images and labels by index. See `sources.Source`."""

    def __init__(self, path: pathlib.Path, split: str) -> None:
        """Opens the split of the directory `path` to use as `split`, "train" or "test".

        Raises:
          UserError: the directory is incomplete, or the split is missing, empty, without published labels or
            without random access.
        """
        if not (path / "dataset_info.json").exists():
            raise UserError(f"{path} has no dataset_info.json; it is no prepared set, or was not finished")
        info, self._image_key, self._label_key = read_info(path)
        self._split = _choose_split(info, split)
        self.class_ids: tuple[str, ...] = tuple(info.features[self._label_key].names)
        self.class_names: tuple[str, ...] = read_class_names(path, self.class_ids)
        self.num_classes: int = len(self.class_ids)
        self.statistics: Statistics | None = Statistics.load(path)
        instructions = info.splits[self._split].file_instructions
        file_format = info.file_format.value
        if file_format not in READERS:
            raise UserError(f"{path}: {file_format} has no random access; prepare the set as array_record")
        if missing := next((i.filename for i in instructions if not os.path.exists(i.filename)), None):
            raise UserError(f"{missing} is missing from the data set; make or fetch the set again")
        self._shards = [Shard(os.fspath(i.filename), file_format) for i in instructions]
        self._first = np.cumsum([0] + [i.examples_in_shard for i in instructions])
        self.description = f"{info.name}: {len(self):,} {self._split} images in {self.num_classes:,} classes"
        if not len(self):
            raise UserError(f"the {self._split} split has no images")
        if self.read(np.array([0]))[1][0] < 0:  # TFDS stores -1 for unpublished labels
            raise UserError(f"the labels of the {self._split} split were never published")

    def __len__(self) -> int:
        return int(self._first[-1])

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """As `Source.read`; a broken record is an image `b""`."""
        images, labels = [b""] * len(indices), np.zeros(len(indices), np.int32)
        for i, example in enumerate(self._examples(indices)):
            if example is not None:
                images[i] = example[self._image_key].bytes_list.value[0]
                labels[i] = example[self._label_key].int64_list.value[0]
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


def open_tfds(name: str, split: str, data_dir: str | None) -> RecordSource:
    """Opens a TFDS data set by name, downloading and preparing it if needed.

    Raises:
      UserError: there is no such data set, TFDS cannot prepare it, or it has no such split.
    """
    import tensorflow_datasets as tfds

    try:
        builder = _builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        short = name.split(":")[0].split("/")[0]
        known = tfds.list_builders(with_community_datasets=False)  # the community list needs a download
        meant = "imagenet2012" if short == "imagenet" else short  # imagenette is spelled more alike
        raise UserError(f"TFDS has no such data set; {did_you_mean(meant, known, most=8)}") from error
    except (ValueError, AssertionError) as error:
        raise UserError(one_line(error)) from error
    if not builder.info.splits:
        _check_manual_files(builder)
        host.tensorflow()
        with interruptible(), _no_empty_folders(builder):
            try:
                builder = _builder(name, data_dir=data_dir, file_format="array_record")
                builder.download_and_prepare()
            except Exception as error:  # network, disk, damaged archive: TFDS raises many types
                raise UserError(f"TFDS could not prepare it: {one_line(error)}") from error
    return RecordSource(pathlib.Path(builder.data_dir), split)


def _builder(name: str, **options: Any) -> Any:
    """`tfds.builder`, without the temporary folder that it leaves for a set that is not prepared yet."""
    import tensorflow_datasets as tfds

    before = tempfile.tempdir
    try:
        with tempfile.TemporaryDirectory() as tempfile.tempdir:
            return tfds.builder(name, **options)
    finally:
        tempfile.tempdir = before


def _downloads(builder: Any) -> pathlib.Path:
    """The directory of downloads, beside those of the data sets."""
    parts = builder.info.full_name.count("/")  # <name>[/<config>]/<version> below TFDS's directory
    return pathlib.Path(builder.data_dir).parents[parts] / "downloads"


def _check_manual_files(builder: Any) -> None:
    """Raises `UserError` if TFDS needs files that users must fetch themselves, and they are not there."""
    folder, instructions = _downloads(builder) / "manual", builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if builder.info.name == "imagenet2012":
        if missing := [name for name in _IMAGENET_TARS if not (folder / name).exists()]:
            raise UserError(
                f"TFDS looks for {' and '.join(_IMAGENET_TARS)} in {folder}; missing: {', '.join(missing)}. "
                "Put them there (tfds:imagenet2012; data.data_dir changes the directory), or set data.source "
                "to what you have: tars:PATH, the official tars; kaggle:PATH, Kaggle's archive, unpacked; "
                "folder:PATH, with train/<class>/* and val/<class>/*. docs/imagenet.md says where to get them"
            )
    elif instructions and not (folder.is_dir() and any(folder.iterdir())):
        raise UserError(
            f"TFDS cannot download it, and {folder} is missing or empty: {' '.join(instructions.split())}"
        )


@contextlib.contextmanager
def _no_empty_folders(builder: Any) -> Iterator[None]:
    """Removes the folders that a failed download has created, if they are empty."""
    leaves = (pathlib.Path(builder.data_dir), _downloads(builder) / "extracted")
    missing = {path for leaf in leaves for path in (leaf, *leaf.parents) if not path.exists()}
    try:
        yield
    finally:
        for path in sorted(missing, reverse=True):  # inner folders first
            with contextlib.suppress(OSError):  # not empty, or never created
                path.rmdir()


def _choose_split(info: Any, split: str) -> str:
    """The data set's name for `split`; checks the split's size if known."""
    wanted = ("train",) if split == "train" else _TEST_SPLITS
    if split == "test" and info.name in TEST_LABELS_UNPUBLISHED:
        wanted = tuple(name for name in wanted if name != "test")
    chosen = next((name for name in wanted if name in info.splits), None)
    expected = TFDS_SIZES.get(info.name, {})
    if chosen is None:
        hint = " (TFDS drops a split whose tar is missing)" if expected else ""
        raise UserError(f"no split to {split} on; it has {', '.join(info.splits) or 'none'}{hint}")
    number = info.splits[chosen].num_examples
    if number != expected.get(chosen, number):
        raise UserError(
            f"{chosen} has {number:,} examples, not {expected[chosen]:,}; its tar was cut short or "
            f"missing, so delete {info.data_dir} and prepare it again"
        )
    return chosen
