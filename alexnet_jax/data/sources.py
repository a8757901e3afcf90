"""Where examples come from: one shape for every form in which people have their images.

A source gives encoded bytes and labels by index and knows its classes; what is in the bytes is not its
business.
"""

import csv
import dataclasses
import errno
import os
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np

from alexnet_jax.common import host
from alexnet_jax.common.errors import UserError, closest, did_you_mean, vanished
from alexnet_jax.data.classes import readable_names
from alexnet_jax.data.records import Contents, RecordSource, contents_of, import_tfds, read_contents
from alexnet_jax.data.statistics import ILSVRC, Statistics
from alexnet_jax.data.tars import open_tars

if TYPE_CHECKING:  # importing the config takes JAX, which readers of images do without
    from alexnet_jax import config as configs

EMBEDDED = pathlib.Path(__file__).parent / "fashion_mnist"
KINDS = ("embedded", "tfds", "folder", "kaggle", "tars", "prepared")

# What stands for "test" where a set has several other splits, in this order; a labelled test set comes
# first except where its labels were never published.
_TFDS_TEST_SPLITS = ("test", "validation", "val", "valid", "dev")
TEST_LABELS_UNPUBLISHED = ("imagenet2012", "imagenet2012_subset", "imagenet_resized", "imagenet2012_real")
_FOLDER_TRAIN = ("train", "training")
_FOLDER_TEST = ("val", "valid", "validation", "test")

# TFDS drops a split with only a warning when its tar is missing or cut short.
TFDS_SIZES = {"imagenet2012": {"train": 1_281_167, "validation": 50_000}}


class Source(Protocol):
    """One split of a set of labelled images, with random access."""

    @property
    def num_classes(self) -> int:
        """K; labels are 0..K-1."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Readable names, by label."""
        ...

    @property
    def class_ids(self) -> tuple[str, ...]:
        """WordNet ids or folder names, by label; the names again where there are none."""
        ...

    @property
    def statistics(self) -> Statistics | None:
        """Of the training split, where they are known."""
        ...

    @property
    def description(self) -> str:
        """One line for the log."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """Gives the encoded images and int32 labels `[n]` of `indices` `[n]`; any thread may call it.

        What cannot be read is `b""`, a bad image like any other.

        Raises:
          Fault: a file is gone that was there when the source was opened. To go on without it would be
            another run; once it is back, the same one goes on.
        """
        ...

    def name(self, index: int) -> str:
        """A file name or record id for the log."""
        ...


def open_source(spec: str, split: str, *, data_dir: str | None = None) -> Source:
    """Opens the images that a config's `data.source` names.

    Args:
      spec: `embedded`, `tfds:<name>[/<config>][:<version>]`, `folder:<path>`, `kaggle:<path>`,
        `tars:<path>` or `prepared:<path>`.
      split: "train" or "test"; "test" is whatever the source has to test on, such as ImageNet's validation
        images.
      data_dir: where TFDS keeps its data sets; None is TFDS's own default.

    Raises:
      UserError: there is no such source, or it is not whole.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", not {split!r}')
    kind, _, where = spec.partition(":")
    key = f"data.source={spec}"
    if kind not in KINDS:
        raise UserError(f"{key}: no such kind of source; {did_you_mean(kind, KINDS)}")
    if kind == "embedded":
        return _record_directory(EMBEDDED, split, key)
    if not where:
        raise UserError(
            f"{key}: say which after the colon, as in {kind}:{'cifar10' if kind == 'tfds' else 'PATH'}"
        )
    if kind == "tfds":
        return _tfds(where, split, key, data_dir)
    path = pathlib.Path(where).expanduser()
    if not path.exists():
        raise UserError(f"{key}: {path} does not exist; {_instead_of_path(path)}")
    if kind == "folder":
        return _folder(path, split, key)
    if kind == "kaggle":
        return _kaggle(path, split, key)
    if kind == "tars":
        return open_tars(path, split, key)
    return _record_directory(path, split, key)


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Images as files of their own, `root/path` each. See `Source`."""

    root: str
    paths: Sequence[str]
    labels: np.ndarray
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    description: str
    statistics: Statistics | None = None
    absent: frozenset[int] = frozenset()  # of the paths, those that were not there to begin with: bad images

    @property
    def num_classes(self) -> int:
        return len(self.class_ids)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        return [self._bytes(i) for i in indices], self.labels[indices]

    def name(self, index: int) -> str:
        return _printable(self.paths[index])

    def _bytes(self, index: int) -> bytes:
        try:
            with open(os.path.join(self.root, self.paths[index]), "rb", buffering=0) as file:
                return file.read()
        except FileNotFoundError as error:
            if index in self.absent:
                return b""
            raise vanished(f"{self.root}/{self.name(index)}") from error
        except OSError:
            return b""


# --- TFDS directories: embedded, prepared, and any data set by name -------------------------------


def _record_directory(path: pathlib.Path, split: str, key: str) -> RecordSource:
    if not (path / "dataset_info.json").exists():
        raise UserError(f"{key}: {path} has no dataset_info.json; it is no prepared set, or was not finished")
    contents = read_contents(path, key)
    return RecordSource(contents, _tfds_split(contents, split, key), key)


def _tfds(name: str, split: str, key: str, data_dir: str | None) -> RecordSource:
    tfds = import_tfds()
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        short = name.split(":")[0].split("/")[0]
        known = tfds.list_builders(with_community_datasets=False)  # a list of those would be fetched
        raise UserError(f"{key}: TFDS has no such data set; {did_you_mean(short, known, most=8)}") from error
    except (ValueError, AssertionError) as error:
        raise UserError(f"{key}: {_first_line(error)}") from error
    if not builder.info.splits:
        builder = _downloaded(tfds, name, key, data_dir)
    contents = contents_of(builder, key)
    return RecordSource(contents, _tfds_split(contents, split, key), key)


def _downloaded(tfds, name: str, key: str, data_dir: str | None):
    """Fetches and prepares a data set, in the format that allows random access."""
    if host.has_tensorflow():
        host.tensorflow()  # TFDS uses it to prepare a set
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    except (
        Exception
    ) as error:  # the network, the disk, a missing tar: TFDS raises as many kinds as there are causes
        raise UserError(f"{key}: TFDS could not make it ready ({_first_line(error)})") from error
    return builder


def _tfds_split(contents: Contents, split: str, key: str) -> str:
    """The data set's own name for `split`, after its size was checked where it is known."""
    splits = contents.splits
    wanted = ("train",) if split == "train" else _TFDS_TEST_SPLITS
    if split == "test" and contents.name in TEST_LABELS_UNPUBLISHED:
        wanted = tuple(name for name in wanted if name != "test")
    found = next((name for name in wanted if name in splits), None)
    expected = TFDS_SIZES.get(contents.name, {})
    if found is None:
        have = ", ".join(splits) or "none"
        hint = " (TFDS drops a split whose tar is missing)" if expected else ""
        raise UserError(f"{key}: no split to {split} on; it has {have}{hint}")
    number = sum(count for _, count in splits[found])
    if number != expected.get(found, number):
        raise UserError(
            f"{key}: {found} has {number:,} examples, not {expected[found]:,}; its tar was cut short or "
            f"missing, so delete {contents.directory} and prepare it again"
        )
    return found


# --- Folders of images ----------------------------------------------------------------------------


def _folder(root: pathlib.Path, split: str, key: str) -> FileSource:
    train, test = (_subdirectory(root, names) for names in (_FOLDER_TRAIN, _FOLDER_TEST))
    directory = train if split == "train" else test
    if directory is None:
        wanted = _FOLDER_TRAIN if split == "train" else _FOLDER_TEST
        have = ", ".join(_visible_directories(root)[:5]) or "no folders"
        raise UserError(
            f"{key}: {root} needs a folder {' or '.join(wanted)} with one folder a class; it has {have}"
        )
    # The labels are those of training, so that a class without test images does not shift the others.
    classes = _visible_directories(train or directory)
    unknown = sorted(set(_visible_directories(directory)) - set(classes))
    if unknown:
        raise UserError(
            f"{key}: {directory} has {unknown[0]}, which {train} has not; the classes must be the same"
        )
    if len(classes) < 2:
        have = f"only {classes[0]}" if classes else "none"
        raise UserError(
            f"{key}: {train or directory} needs a folder for each of two or more classes; it has {have}"
        )
    paths, labels, empty = files_by_class(directory, classes)
    if not paths:
        raise UserError(f"{key}: no images in the class folders of {directory}")
    note = f" ({empty} of them empty)" if empty else ""
    return FileSource(
        root=str(directory),
        paths=paths,
        labels=labels,
        class_ids=tuple(map(_printable, classes)),
        class_names=readable_names([*map(_printable, classes)]),
        description=f"{root.name}: {len(paths):,} {directory.name} images in {len(classes):,} classes{note}",
    )


def files_by_class(directory: pathlib.Path, classes: Sequence[str]) -> tuple[list[str], np.ndarray, int]:
    """Lists the visible files of each class folder, in the order of their names.

    Returns:
      Paths below `directory`, int32 labels `[n]`, and the number of classes without a file.
    """

    def files(name: str) -> list[str]:
        try:
            with os.scandir(directory / name) as entries:
                return sorted(
                    f"{name}/{e.name}" for e in entries if not e.name.startswith(".") and _is(e.is_file)
                )
        except FileNotFoundError:
            return []

    with ThreadPoolExecutor(8) as pool:  # a listing waits for the disk or the network, not for the processor
        listings = list(pool.map(files, classes))
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(listing) for listing in listings])
    return (
        [path for listing in listings for path in listing],
        labels,
        sum(not listing for listing in listings),
    )


def _printable(name: str) -> str:
    """A file name, which need not be UTF-8 nor on one line, as text that is."""
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace("\n", "\\n")


def _subdirectory(root: pathlib.Path, names: Sequence[str]) -> pathlib.Path | None:
    have = {name.lower(): name for name in _visible_directories(root)} if root.is_dir() else {}
    return next((root / have[name] for name in names if name in have), None)


def _visible_directories(path: pathlib.Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and _is(e.is_dir))


def _is(kind: Callable[[], bool]) -> bool:
    """What `DirEntry` says of an entry; a symbolic link to itself is neither file nor folder."""
    try:
        return kind()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


# --- Kaggle's ImageNet ------------------------------------------------------------------------------


def _kaggle(path: pathlib.Path, split: str, key: str) -> FileSource:
    """`ILSVRC/Data/CLS-LOC` with `LOC_synset_mapping.txt` and `LOC_val_solution.csv` beside `ILSVRC`."""
    root = path.parent if path.name == "ILSVRC" else path
    images = root / "ILSVRC" / "Data" / "CLS-LOC" / ("train" if split == "train" else "val")
    mapping = root / "LOC_synset_mapping.txt"
    for needed in (images, mapping):
        if not needed.exists():
            raise UserError(f"{key}: {needed} is missing; give the folder of Kaggle's unpacked archive")
    lines = mapping.read_text(encoding="utf-8").splitlines()
    synsets = [line.split(" ", 1) for line in lines if line.strip()]
    ids = tuple(synset[0] for synset in synsets)
    names = tuple(synset[-1] for synset in synsets)
    if split == "train":
        absent = next((i for i in ids if not (images / i).is_dir()), None)
        if absent:
            raise UserError(f"{key}: {images} has no folder {absent}; unpack the archive again")
        paths, labels, _ = files_by_class(images, ids)
    else:
        paths, labels = _kaggle_solution(root / "LOC_val_solution.csv", ids, key)
    there = {entry.name for entry in os.scandir(images)} if split == "test" else set()
    nameless = sorted(name for name in there.difference(paths) if name.endswith(".JPEG"))
    if nameless:
        raise UserError(
            f"{key}: {root / 'LOC_val_solution.csv'} has no label for {nameless[0]}, one of {len(nameless)}; "
            "it was cut short, so fetch it again"
        )
    return FileSource(
        root=str(images),
        paths=paths,
        labels=labels,
        class_ids=ids,
        class_names=names,
        description=f"{root.name}: {len(paths):,} {images.name} images in {len(ids):,} classes",
        absent=frozenset(i for i, path in enumerate(paths) if split == "test" and path not in there),
    )


def _kaggle_solution(solution: pathlib.Path, ids: tuple[str, ...], key: str) -> tuple[list[str], np.ndarray]:
    """File names and labels of the validation images, from lines such as `<image>,n01440764 3 4 9 9`.

    An image's boxes are all of one class: the first names it.
    """
    if not solution.exists():
        raise UserError(f"{key}: {solution} is missing; it has the labels, so fetch it from Kaggle")
    label_of = {class_id: label for label, class_id in enumerate(ids)}
    try:
        with solution.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            rows = sorted((row["ImageId"], row["PredictionString"].split()[0]) for row in table)
        labels = np.array([label_of[class_id] for _, class_id in rows], np.int32)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise UserError(f"{key}: {solution} is not Kaggle's file ({error}); fetch it again") from error
    if not rows:
        raise UserError(f"{key}: {solution} names no images; it was cut short, so fetch it again")
    return [f"{image}.JPEG" for image, _ in rows], labels


# --- What to say ----------------------------------------------------------------------------------


def _instead_of_path(path: pathlib.Path) -> str:
    parent = next(p for p in path.absolute().parents if p.exists())
    close = closest(path.name, [other.name for other in parent.iterdir()])
    return f"did you mean {parent / close}?" if close else f"the nearest existing folder is {parent}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- From a config --------------------------------------------------------------------------------


def open_configured(data: "configs.Data", split: str) -> Source:
    """The `train` or `test` images of a config.

    Raises:
      UserError: there is no such source, it is not whole, or it has another number of classes.
    """
    source = open_source(data.source, split, data_dir=data.data_dir)
    if data.num_classes not in (None, source.num_classes):
        raise UserError(
            f"data.num_classes={data.num_classes}: data.source={data.source} has {source.num_classes} "
            "classes; correct one of them"
        )
    return source


def statistics_of(source: Source) -> Statistics:
    """The source's own statistics, or the authors' of ILSVRC where it has none."""
    return ILSVRC if source.statistics is None else source.statistics
