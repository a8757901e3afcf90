"""Folders of images, one per class; `FileSource`, for any images stored as separate files."""

import dataclasses
import errno
import os
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from alexnet_jax.common.errors import UserError, vanished
from alexnet_jax.data.classes import are_numbers, readable_names

_SPLIT_NAMES = {"train": ("train", "training"), "test": ("val", "valid", "validation", "test")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListedSource:
    """Images that are read one by one, with labels known from the start. See `sources.Source`."""

    labels: np.ndarray  # int32
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    description: str
    statistics: None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_ids)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        return [self.read_image(index) for index in indices.tolist()], self.labels[indices]

    def read_image(self, index: int) -> bytes:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSource(ListedSource):
    """Images stored as the files `root/path`."""

    root: str
    paths: Sequence[str]
    absent: frozenset[int] = frozenset()  # indices of files missing from the start: bad images

    def name(self, index: int) -> str:
        return _printable(self.paths[index])

    def read_image(self, index: int) -> bytes:
        try:
            with open(os.path.join(self.root, self.paths[index]), "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            if isinstance(error, FileNotFoundError) and index not in self.absent:
                raise vanished(f"{self.root}/{self.name(index)}") from error
            return b""


def open_folder(root: pathlib.Path, split: str) -> FileSource:
    """Opens `root/train/<class>/<image>` or the test folder beside it.

    Raises:
      UserError: a folder is missing, the splits have different classes, or there are no images.
    """
    folders = _visible(root, os.DirEntry.is_dir)
    found = {name.lower(): root / name for name in folders}
    train, directory = (
        next((found[name] for name in _SPLIT_NAMES[part] if name in found), None) for part in ("train", split)
    )
    if directory is None:
        have, wanted = ", ".join(folders[:5]) or "no folders", " or ".join(_SPLIT_NAMES[split])
        raise UserError(
            f"{root} needs a folder {wanted} with one folder per class; it has {have}; "
            "python -m alexnet_jax split makes both from a folder of class folders"
        )
    # Labels come from the training classes: a class without test images must not shift the others.
    train = train or directory
    classes = _visible(train, os.DirEntry.is_dir)
    if are_numbers(classes):
        classes.sort(key=int)
    if unknown := sorted(set(_visible(directory, os.DirEntry.is_dir)) - set(classes)):
        raise UserError(f"{directory} has {unknown[0]}, which is missing from {train}; both need all classes")
    if len(classes) < 2:
        have = f"only {classes[0]}" if classes else "none"
        raise UserError(f"{train} needs a folder for each of two or more classes; it has {have}")
    paths, labels = files_by_class(directory, classes)
    if not paths:
        raise UserError(f"no images in the class folders of {directory}")
    num_empty = len(classes) - len(np.unique(labels))
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


def files_by_class(directory: pathlib.Path, classes: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The visible files of each class folder, sorted by name: paths below `directory`, int32 labels `[n]`."""
    with ThreadPoolExecutor(8) as pool:  # listing is bound by the disk or the network, not the CPU
        listings = list(pool.map(lambda name: _visible(directory / name, os.DirEntry.is_file), classes))
    paths = [f"{name}/{file}" for name, files in zip(classes, listings, strict=True) for file in files]
    return paths, np.repeat(np.arange(len(classes), dtype=np.int32), list(map(len, listings)))


def _printable(name: str) -> str:
    """A file name, perhaps not UTF-8 or with line breaks, as one line of text."""
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace("\n", "\\n")


def _visible(directory: pathlib.Path, is_kind: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    """Sorted names of the visible files (`os.DirEntry.is_file`) or folders (`os.DirEntry.is_dir`), if any."""
    if not directory.exists():
        return []

    def matches(entry: os.DirEntry[str]) -> bool:
        try:
            return not entry.name.startswith(".") and is_kind(entry)
        except OSError as error:
            if error.errno != errno.ELOOP:  # a symbolic link to itself is neither
                raise
            return False

    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries if matches(entry))
