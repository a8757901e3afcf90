"""Folders of images: which files are images and which folders are classes, by one rule for all commands.

An image is a visible file with a known ending, or one that begins like an image. A class is a visible folder;
images in its sub-folders belong to it. Whatever is left out is counted in a line.
"""

import abc
import dataclasses
import errno
import itertools
import os
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from unicodedata import normalize

import numpy as np

from alexnet_jax.common import progress
from alexnet_jax.common.errors import UserError, vanished
from alexnet_jax.data.classes import are_numbers, readable_names

_SPLIT_NAMES = {"train": ("train", "training"), "test": ("val", "valid", "validation", "test")}
_ANNOTATIONS = "val_annotations.txt"  # in Tiny ImageNet's val: a line `<image> <class> <box>` per image
# With the formats of photographs that Pillow cannot decode, such as HEIC: those are bad images, which are
# named and counted, and not left out.
IMAGE_ENDINGS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jp2", ".j2k", ".jpf", ".jpx", ".mpo", ".png", ".apng"),
    *(".gif", ".webp", ".avif", ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    *(".tga", ".dds", ".sgi", ".rgb", ".bw", ".ras", ".pcx", ".psd", ".qoi", ".ico", ".icns", ".im"),
    *(".heic", ".heif", ".jxl"),
}
# JPEG, PNG, GIF, WebP, BMP, TIFF, netpbm, JPEG 2000, AVIF, Photoshop, QOI, DDS
IMAGE_START = re.compile(
    rb"\xff\xd8|\x89PNG|GIF8|RIFF.{4}WEBP|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|P[1-6fF]\s|\xff\x4f\xff\x51"
    rb"|\0{3}\x0cjP  |.{4}ftypavi[fs]|8BPS|qoif|DDS ",
    re.DOTALL,
)
# Left by operating systems and tools, in lower case; some hold thumbnails.
_SYSTEM = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("@eadir", "lost+found", "__pycache__"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListedSource(abc.ABC):
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

    @abc.abstractmethod
    def read_image(self, index: int) -> bytes:
        """The encoded image at `index`; `b""` if it cannot be read."""


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
    folders = _folders(root)
    found = {name.lower(): root / name for name in folders}
    train, directory = (
        next((found[name] for name in _SPLIT_NAMES[part] if name in found), None) for part in ("train", split)
    )
    if directory is None:
        have, wanted = ", ".join(folders[:5]) or "no folders", " or ".join(_SPLIT_NAMES[split])
        remedy = "python -m alexnet_jax split makes both from a folder of class folders"
        if len(folders) == 1 and any(name.lower() in _SPLIT_NAMES[split] for name in _folders(root / have)):
            remedy = f"did you mean {root / have}?"  # unpacked into a folder of the archive's name
        raise UserError(f"{root} needs a folder {wanted} with one folder per class; it has {have}; {remedy}")
    # Labels come from the training classes: a class without test images must not shift the others.
    train = train or directory
    classes = _folders(train)
    if are_numbers(classes):
        classes.sort(key=int)
    # The same name may have an accent as a character of its own (NFD), as macOS writes it.
    own = set(_folders(directory))
    other_forms = {normalize("NFC", name): name for name in own.difference(classes)}
    own_names = [name if name in own else other_forms.get(normalize("NFC", name), name) for name in classes]
    if unknown := sorted(own.difference(own_names)):
        if unknown == ["images"] and (directory / _ANNOTATIONS).is_file():
            sort = f'while read -r f c _; do mkdir -p "$c"; mv "images/$f" "$c"; done < {_ANNOTATIONS}'
            command = f"cd {shlex.quote(str(directory))} && {sort} && rmdir images"
            raise UserError(f"{directory} has no class folders; make them by: {command}")
        raise UserError(f"{directory} has {unknown[0]}, which is missing from {train}; both need all classes")
    if len(classes) < 2:
        have = f"only {classes[0]}" if classes else "none"
        raise UserError(f"{train} needs a folder for each of two or more classes; it has {have}")
    paths, labels = files_by_class(directory, own_names)
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


def _folders(directory: pathlib.Path) -> list[str]:
    return [name for name, kind in scan(directory).items() if kind == "folder"]


def files_by_class(directory: pathlib.Path, classes: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The images of each class, sorted: paths below `directory`, int32 labels `[n]`.

    A note says what is left out, and whether classes have sub-folders.

    Raises:
      UserError: a folder cannot be read, or there are no images.
    """
    with ThreadPoolExecutor(8) as pool:  # listing is bound by the disk or the network, not the CPU
        listings = list(pool.map(lambda name: list_images(directory / name, f"{name}/"), classes))
    paths = [path for listing in listings for path in listing.images]
    if not paths:
        raise UserError(f"no images in the class folders of {directory}")
    beside = {name: kind for name, kind in scan(directory).items() if name not in classes}
    hidden = [name for name, kind in beside.items() if kind == "hidden"]
    choices = {
        NO_IMAGES: [path for listing in listings for path in listing.others],
        HIDDEN: hidden + [path for listing in listings for path in listing.hidden],
        "left out beside the classes": [name for name, kind in beside.items() if kind != "hidden"],
        "in sub-folders, part of their class": [path for path in paths if path.count("/") > 1],
    }
    note_choices(directory, choices)
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(listing.images) for listing in listings])
    return paths, labels


# --- What is an image -------------------------------------------------------------------------------------

NO_IMAGES, HIDDEN = "left out as no images", "left out as hidden or system files"
NO_CLASS = ""  # the class of an image beside class folders


@dataclasses.dataclass(frozen=True)
class Listing:
    """What is in a folder and its sub-folders, as paths, sorted folder by folder."""

    images: list[str] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)  # files that are no images, broken links
    hidden: list[str] = dataclasses.field(default_factory=list)  # also what operating systems leave


def list_images(folder: str | os.PathLike[str], start: str = "") -> Listing:
    """Lists a folder; each path is relative to it, after `start`. Nothing if there is no such folder.

    Raises:
      UserError: a folder cannot be read.
    """
    found = Listing()
    _add(found, os.fspath(folder), start, ())
    return found


def _add(found: Listing, folder: str, start: str, above: tuple[str, ...]) -> None:
    """Adds what is in `folder` to `found`; `above` has the real paths of the folders above it."""
    lists = {"image": found.images, "other": found.others, "hidden": found.hidden}
    for name, kind in scan(folder).items():
        if kind != "folder":
            lists[kind].append(start + name)
            continue
        path, here = os.path.join(folder, name), (*above, os.path.realpath(folder) + os.sep)
        if any(folder.startswith(os.path.realpath(path) + os.sep) for folder in here):  # a link upwards
            found.others.append(start + name)
        else:
            _add(found, path, f"{start}{name}/", here)


def scan(folder: str | os.PathLike[str]) -> dict[str, str]:
    """What is in a folder by name, sorted: a `folder`, an `image`, `hidden` or `other`; {} if it is missing.

    Raises:
      UserError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return {entry.name: _kind(entry) for entry in sorted(entries, key=lambda entry: entry.name)}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read ({error.strerror}); allow it or remove the folder"
        ) from error


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
        return "hidden"
    try:
        if entry.is_dir():
            return "folder"
        return "image" if entry.is_file() and _is_image(entry) else "other"
    except OSError as error:
        if error.errno != errno.ELOOP:  # a symbolic link to itself
            raise
        return "other"


def _is_image(entry: os.DirEntry[str]) -> bool:
    if os.path.splitext(entry.name)[1].lower() in IMAGE_ENDINGS:
        return True
    try:
        with open(entry.path, "rb", buffering=0) as file:
            return IMAGE_START.match(file.read(16)) is not None
    except OSError:
        return False


def note_choices(folder: str | os.PathLike[str], choices: Mapping[str, Sequence[str]]) -> None:
    """Prints in a line how many files each choice concerns, with the first three; nothing if none does."""
    counts = []
    for choice, paths in choices.items():
        if paths:
            some = ", ".join(map(_printable, paths[:3])) + (", ..." if len(paths) > 3 else "")
            counts.append(f"{choice}: {len(paths):,} ({some})")
    if counts:
        progress.note(f"{folder}: {'; '.join(counts)}")


def classes_of(folder: pathlib.Path, images: Sequence[str]) -> list[str]:
    """The class of each image of `list_images(folder)`: as in training, the folder right below `folder`.

    If that has only a `train` and a `val`, the folder right below those. Images beside two class folders or
    more are of `NO_CLASS`; with fewer, the folder itself is the class.
    """
    above = [image.split("/")[:-1] for image in images]
    splits = set(itertools.chain(*_SPLIT_NAMES.values()))
    if all(names and names[0].lower() in splits for names in above):
        above = [names[1:] for names in above]
    if not all(above) and len({names[0] for names in above if names}) < 2:
        return [folder.resolve().name] * len(images)
    return [names[0] if names else NO_CLASS for names in above]


def _printable(name: str) -> str:
    """A file name, perhaps not UTF-8 or with line breaks, as one line of text."""
    return os.fsencode(name).decode("utf-8", "backslashreplace").replace("\n", "\\n")
