"""Folders of images, one per class; `FileSource`, for any images stored as separate files."""

import dataclasses
import errno
import itertools
import os
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from alexnet_jax.common.errors import UserError, vanished
from alexnet_jax.data.classes import readable_names
from alexnet_jax.data.statistics import Statistics

_SPLIT_NAMES = {"train": ("train", "training"), "test": ("val", "valid", "validation", "test")}


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Images stored as the files `root/path`. See `sources.Source`."""

    root: str
    paths: Sequence[str]
    labels: np.ndarray
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    description: str
    statistics: Statistics | None = None
    absent: frozenset[int] = frozenset()  # indices of files missing from the start: bad images

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


def open_folder(root: pathlib.Path, split: str) -> FileSource:
    """Opens `root/train/<class>/<image>` or the test folder beside it.

    Raises:
      UserError: a folder is missing, the splits have different classes, or there are no images.
    """
    found = {split: _find_directory(root, names) for split, names in _SPLIT_NAMES.items()}
    directory = found[split]
    if directory is None:
        have = ", ".join(_visible(root, os.DirEntry.is_dir)[:5]) or "no folders"
        raise UserError(
            f"{root} needs a folder {' or '.join(_SPLIT_NAMES[split])} with one folder a class; it has {have}"
        )
    # Labels come from the training classes: a class without test images must not shift the others.
    train = found["train"] or directory
    classes = _visible(train, os.DirEntry.is_dir)
    unknown = sorted(set(_visible(directory, os.DirEntry.is_dir)) - set(classes))
    if unknown:
        raise UserError(
            f"{directory} has {unknown[0]}, which is missing from {train}; both need the same classes"
        )
    if len(classes) < 2:
        have = f"only {classes[0]}" if classes else "none"
        raise UserError(f"{train} needs a folder for each of two or more classes; it has {have}")
    paths, labels, num_empty = files_by_class(directory, classes)
    if not paths:
        raise UserError(f"no images in the class folders of {directory}")
    note = f" ({num_empty} of them empty)" if num_empty else ""
    class_ids = tuple(map(_printable, classes))
    return FileSource(
        root=str(directory),
        paths=paths,
        labels=labels,
        class_ids=class_ids,
        class_names=readable_names(class_ids),
        description=f"{root.name}: {len(paths):,} {directory.name} images in {len(classes):,} classes{note}",
    )


def files_by_class(directory: pathlib.Path, classes: Sequence[str]) -> tuple[list[str], np.ndarray, int]:
    """Lists the visible files of each class folder, sorted by name.

    Returns:
      Paths below `directory`, int32 labels `[n]`, and the number of classes without a file.
    """

    def files(name: str) -> list[str]:
        folder = directory / name
        return [f"{name}/{file}" for file in _visible(folder, os.DirEntry.is_file)] if folder.exists() else []

    with ThreadPoolExecutor(8) as pool:  # listing is bound by the disk or the network, not the CPU
        listings = list(pool.map(files, classes))
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), list(map(len, listings)))
    return list(itertools.chain(*listings)), labels, listings.count([])


def _printable(name: str) -> str:
    """A file name, perhaps not UTF-8 or with line breaks, as one line of text."""
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace("\n", "\\n")


def _find_directory(root: pathlib.Path, names: Sequence[str]) -> pathlib.Path | None:
    """The first of `names` that is a directory in `root`, ignoring case."""
    have = {name.lower(): name for name in _visible(root, os.DirEntry.is_dir)}
    return next((root / have[name] for name in names if name in have), None)


def _visible(directory: pathlib.Path, is_kind: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    """Sorted names of the visible files (`os.DirEntry.is_file`) or folders (`os.DirEntry.is_dir`)."""

    def matches(entry: os.DirEntry[str]) -> bool:
        try:
            return not entry.name.startswith(".") and is_kind(entry)
        except OSError as error:
            if error.errno != errno.ELOOP:  # a symbolic link to itself is neither
                raise
            return False

    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries if matches(entry))
