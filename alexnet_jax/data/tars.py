"""The official tars of ILSVRC-2012 and ILSVRC-2010, read in place without unpacking.

One pass over the headers finds the offset of every image; each image is then one read. The training tar
contains one tar per synset. The other tars are flat; the development kit has the classes of their images.
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from alexnet_jax.common import progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.data.classes import readable_names
from alexnet_jax.data.folders import ListedSource

_BLOCK = tarfile.BLOCKSIZE
_PADDING = 2**20  # zeros allowed after the last file; tar writes 10 KB of them by default
# By year: the training tar, and the test tars with the split in their ground truth's file name. The
# labels of the 2010 test images were published (the paper's Table 1 uses them); those of 2012 never were.
_TARS = {
    "2012": ("ILSVRC2012_img_train.tar", {"ILSVRC2012_img_val.tar": "validation"}),
    "2010": (
        "ILSVRC2010_images_train.tar",
        {"ILSVRC2010_images_test.tar": "test", "ILSVRC2010_images_val.tar": "validation"},
    ),
}
Synsets = dict[int, tuple[str, str]]  # WordNet id and words by the kit's number, which is not in id order


@dataclasses.dataclass(frozen=True, kw_only=True)
class TarSource(ListedSource):
    """One split of the official tars."""

    file: int  # descriptor of the tar
    places: np.ndarray  # int64 [n, 2], offset and size of each image in bytes

    def name(self, index: int) -> str:
        # Read from the header just before the image, to avoid keeping a million names in memory.
        header = os.pread(self.file, _BLOCK, int(self.places[index, 0]) - _BLOCK)
        return tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace").name

    def read_image(self, index: int) -> bytes:
        offset, size = self.places[index].tolist()
        try:
            return os.pread(self.file, size, offset)
        except OSError:
            return b""


def open_tars(directory: pathlib.Path, split: str) -> TarSource:
    """Opens one split of the tars in `directory`.

    Labels number the training tar's synsets in the order of their WordNet ids, as usual.

    Raises:
      UserError: a tar or the ground truth is missing or truncated, or they do not match.
    """
    year = next((year for year, (name, _) in _TARS.items() if (directory / name).is_file()), None)
    if year is None:
        raise UserError(f"{directory} has no {' or '.join(name for name, _ in _TARS.values())}")
    train, tests = directory / _TARS[year][0], _TARS[year][1]
    synset_tars = [member for member in _members(train) if member.name.endswith(".tar")]
    ids = tuple(pathlib.PurePath(member.name).stem for member in synset_tars)
    if len(ids) < 2:
        raise UserError(f"{train} should hold a tar for each of two or more synsets; it has {len(ids)}")
    meta = _kit_file(directory, year, "meta.mat")
    synsets = _read_synsets(meta) if meta else {}
    if split == "train":
        tar = train
        places, labels = _index_train(train, synset_tars)
    else:
        tar = next((directory / name for name in tests if (directory / name).is_file()), None)
        if tar is None:
            raise UserError(f"{directory} has no {' or '.join(tests)} to test on")
        places = _places(_members(tar))
        truth = _read_truth(directory, year, tests[tar.name])
        if len(truth) != len(places):
            raise UserError(f"{tar.name} has {len(places):,} images, its ground truth {len(truth):,} lines")
        labels = _labels(truth, ids, synsets)
    names = dict(synsets.values())
    return TarSource(
        file=os.open(tar, os.O_RDONLY),
        places=places,
        labels=labels,
        class_ids=ids,
        class_names=tuple(names.get(i, i) for i in ids) if synsets else readable_names(ids),
        description=f"{tar.name}: {len(places):,} images in {len(ids):,} classes",
    )


def _members(path: pathlib.Path, start: int = 0, end: int | None = None) -> list[tarfile.TarInfo]:
    """The files in the tar stored in the bytes from `start` to `end` of `path`, sorted by name.

    Raises:
      UserError: a header is damaged or the tar is truncated, both of which `tarfile` may pass over.
    """
    found, stopped = [], start
    with open(path, "rb") as file:
        end = end or file.seek(0, os.SEEK_END)
        file.seek(start)
        # After an error, the header where it stopped says why.
        with contextlib.suppress(tarfile.ReadError), tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.offset_data + member.size > end:
                    raise UserError(f"{path}: cut short within {member.name}; fetch it again")
                found.append(member)
                stopped = tar.offset
        header = os.pread(file.fileno(), _BLOCK, stopped)
    if stopped + _BLOCK > end:
        raise UserError(f"{path}: cut short at byte {end:,}, without an end mark; fetch it again")
    if header.strip(b"\0"):
        raise UserError(f"{path}: damaged at byte {stopped:,}; fetch it again")
    if end - stopped > _PADDING:
        raise UserError(f"{path}: empty from byte {stopped:,} on, the download was cut short; fetch it again")
    return sorted((member for member in found if member.isreg()), key=lambda member: member.name)


def _places(members: list[tarfile.TarInfo]) -> np.ndarray:
    """int64 `[n, 2]`: start and size of each member."""
    return np.array([(member.offset_data, member.size) for member in members], np.int64).reshape(-1, 2)


def _index_train(path: pathlib.Path, synset_tars: list[tarfile.TarInfo]) -> tuple[np.ndarray, np.ndarray]:
    """Places `[n, 2]` and int32 labels `[n]` of the images of all synset tars, by name within each tar."""

    def index(tar: tarfile.TarInfo) -> np.ndarray:
        return _places(_members(path, tar.offset_data, tar.offset_data + tar.size))

    with ThreadPoolExecutor(8) as pool:  # indexing mostly waits for the disk
        indexed = pool.map(index, synset_tars)
        what = f"indexing {path.name}"
        tables = list(progress.bar(len(synset_tars), "tar", what, leave=False, iterable=indexed))
    labels = np.repeat(np.arange(len(tables), dtype=np.int32), list(map(len, tables)))
    return np.concatenate(tables), labels


# --- The development kit: its tar.gz, its folder or loose files -----------------------------------


def _read_truth(directory: pathlib.Path, year: str, split: str) -> list[str]:
    """The classes of a flat tar's images, sorted by name: the kit's numbers or WordNet ids."""
    name = f"ILSVRC{year}_{split}_ground_truth.txt"
    data = _kit_file(directory, year, name)
    if data is None:
        raise UserError(f"{directory} has no {name}; put it or ILSVRC{year}_devkit*.tar.gz there")
    return data.decode().split()


def _labels(truth: list[str], ids: Sequence[str], synsets: Synsets) -> np.ndarray:
    """The ground truth as int32 labels: positions in `ids`, the training tar's WordNet ids."""
    label_of = {class_id: label for label, class_id in enumerate(ids)}
    if truth[0].isdigit():
        if synsets:
            label_of = {str(n): label_of[i] for n, (i, _) in synsets.items() if i in label_of}
        elif len(ids) == 1000:
            # The official numbers do not follow the order of the ids; guessing would shuffle all labels.
            raise UserError("the ground truth needs the kit's meta.mat; put the complete kit beside the tars")
        else:  # a user's own tars without a kit: the numbers count the synsets in order
            label_of = {str(label + 1): label for label in range(len(ids))}
    if unknown := [name for name in truth if name not in label_of]:
        raise UserError(f"the ground truth has class {unknown[0]}, which the training tar does not have")
    return np.array([label_of[name] for name in truth], np.int32)


def numbers(kit: pathlib.Path) -> dict[str, int]:
    """Each class's number on the test server, by WordNet id, from a development kit's `meta.mat`.

    Unlike labels, the official numbers, 1 to 1000, do not follow the order of the ids.

    Args:
      kit: the kit's tar.gz or folder, a folder that contains either, or `meta.mat` itself.

    Raises:
      UserError: `meta.mat` is missing or the kit is unreadable.
    """
    packed = [kit] if kit.is_file() else kit.glob("*kit*.t*gz")
    try:
        meta = _first("meta.mat", [kit, *kit.rglob("meta.mat")], packed)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"--devkit={kit}: cannot be read ({error})") from error
    if meta is None:
        raise UserError(f"--devkit={kit}: no meta.mat there; give the development kit, packed or not")
    return {class_id: number for number, (class_id, _) in _read_synsets(meta).items()}


def _kit_file(directory: pathlib.Path, year: str, name: str) -> bytes | None:
    """Reads the first file called `name`: a loose file, in the kit's folder or in its tar.gz."""
    # The 2010 kit unpacks to devkit-1.0, the 2012 kit to ILSVRC2012_devkit_t12.
    folders = ("", f"*{year}*kit*/**/", "devkit-1.0/**/")
    loose = [path for folder in folders for path in directory.glob(folder + name)]
    return _first(name, loose, directory.glob(f"*{year}*kit*.t*gz"))


def _first(name: str, loose: Iterable[pathlib.Path], packed: Iterable[pathlib.Path]) -> bytes | None:
    """Reads the first file called `name`: among the loose files, then in each packed tar."""
    for path in sorted(loose):
        if path.name == name and path.is_file():
            return path.read_bytes()
    for path in sorted(packed):
        with tarfile.open(path) as tar:
            for member in tar:
                if pathlib.PurePath(member.name).name == name and (file := tar.extractfile(member)):
                    return file.read()
    return None


def _read_synsets(meta: bytes) -> Synsets:
    import scipy.io

    table = scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    number = next(name for name in table.dtype.names if name.endswith("_ID"))
    return {int(row[number]): (str(row["WNID"]), str(row["words"])) for row in table}
