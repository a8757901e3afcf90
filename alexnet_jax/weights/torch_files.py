"""PyTorch's `.pth` files, read and written without PyTorch and without running anything they hold.

A `.pth` file is a pickle that names functions to call. This reader admits the few names that put a tensor
together, each replaced by a function of its own, and refuses every other name.
"""

import collections
import dataclasses
import functools
import io
import math
import os
import pathlib
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

from alexnet_jax.common.errors import UserError
from alexnet_jax.common.files import replacing

_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
METADATA_KEY = "alexnet_jax"  # of the state dict's `_metadata`, which PyTorch carries along unread


@dataclasses.dataclass
class Storage:
    """A flat run of numbers in the file; `read` gives its bytes when they are wanted."""

    dtype: np.dtype
    count: int
    read: Callable[[], bytes] | None = None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor still in its file; `numpy.asarray` reads it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        assert self.storage.read is not None
        flat = np.frombuffer(self.storage.read(), self.dtype, self.storage.count)[self.offset :]
        steps = [stride * self.dtype.itemsize for stride in self.strides]
        return np.array(np.lib.stride_tricks.as_strided(flat, self.shape, steps), dtype)


class _Refused(Exception):
    """A name in the pickle that is none of a tensor's."""


class _Unpickler(pickle.Unpickler):
    """Knows tensors, dictionaries, lists, strings and numbers; `storages` gathers what tensors refer to."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}
        self._names = _names()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._names[f"{module}.{name}"]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, saved: Any) -> Any:
        kind, storage_type, key, _, count, *view = saved
        if kind != "storage" or storage_type not in _DTYPES or not isinstance(key, str):
            raise ValueError(f"no storage: {saved!r}")
        if view and view[0] is not None:
            raise ValueError("storages that are views of others are not supported")
        return self.storages.setdefault(key, Storage(_DTYPES[storage_type], _natural(count)))


def _names() -> dict[str, Any]:
    """What a pickle may name. Made anew for each file, as a pickle can set attributes of what it names."""

    def tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        return _tensor(storage, offset, size, stride)

    def parameter(data: Any, *_: Any) -> Any:
        return data

    def size(dimensions: Any) -> tuple[int, ...]:
        return tuple(dimensions)

    return {
        "collections.OrderedDict": collections.OrderedDict,
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_parameter": parameter,
        "torch.Size": size,
        **{f"torch.{name}": name for name in _DTYPES},
        **{f"torch.{name.replace('Storage', 'Tensor')}": name for name in _DTYPES},
    }


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    shape, strides = tuple(map(_natural, size)), tuple(map(_natural, stride))
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise ValueError("a tensor without its storage")
    reach = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
    if 0 not in shape and _natural(offset) + reach > storage.count:
        raise ValueError(f"a tensor {list(shape)} that reaches beyond its storage")
    return Tensor(storage, offset, shape, strides)


def _natural(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} where a size should be")
    return value


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str | None]:
    """Reads what `torch.save` wrote, in its zip format or one of the two before.

    Returns:
      What was saved, a dictionary with `Tensor` for tensors, and the text that `write` put beside a state
      dict, or None.

    Raises:
      UserError: the file is damaged, is no dictionary, or its pickle names anything but tensors.
    """
    path = pathlib.Path(path)
    try:
        if zipfile.is_zipfile(path):
            saved = _read_zip(path)
        elif tarfile.is_tarfile(path):
            saved = _read_tar(path)
        else:
            saved = _read_legacy(path)
    except _Refused as refused:
        raise UserError(
            f"{path}: refused, since its pickle names {refused}, which is no part of a tensor and could run "
            f"code; where you trust the file, save its state dict alone with PyTorch: "
            f'torch.save(model.state_dict(), "weights.pth")'
        ) from None
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way; none of it is ours to mend
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path}: a damaged or truncated PyTorch file ({reason}); fetch or save it again"
        ) from error
    if not isinstance(saved, dict):
        raise UserError(f"{path}: holds a {type(saved).__name__}, not a state dict; save model.state_dict()")
    # `dict.items` and not `saved.items`: a pickle can give an OrderedDict attributes of any name.
    return dict(dict.items(saved)), _own_metadata(saved)


def _own_metadata(saved: Any) -> str | None:
    try:
        text = vars(saved)["_metadata"][""][METADATA_KEY]
    except (KeyError, TypeError):
        return None
    return text if isinstance(text, str) else None


def _read_zip(path: pathlib.Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in names:
            if name.startswith(("/", "\\")) or ".." in pathlib.PurePosixPath(name).parts or ":" in name:
                raise UserError(f"{path}: refused, since it names a path outside itself: {name!r}")
        pickles = [name for name in names if pathlib.PurePosixPath(name).name == "data.pkl"]
        if len(pickles) != 1:
            raise UserError(f"{path}: a zip file, but not one of PyTorch's (no data.pkl in it)")
        top = pickles[0].removesuffix("data.pkl")
        if f"{top}byteorder" in names and archive.read(f"{top}byteorder").strip() != b"little":
            raise UserError(f"{path}: its numbers are big-endian; save it again on a little-endian machine")
        unpickler = _Unpickler(io.BytesIO(archive.read(pickles[0])))
        saved = unpickler.load()
        for key, storage in unpickler.storages.items():
            name, expected = f"{top}data/{key}", storage.count * storage.dtype.itemsize
            found = archive.getinfo(name).file_size
            if found != expected:
                raise ValueError(f"{name} has {found} bytes instead of {expected}")
            storage.read = functools.partial(_read_member, path, name)
    return saved


def _read_member(path: pathlib.Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def _read_legacy(path: pathlib.Path) -> Any:
    """The format before PyTorch 1.6: pickles one after another, then the storages."""
    with open(path, "rb") as file:
        if file.read(2) == b"PK":
            raise ValueError("a zip file without its end")
        file.seek(0)
        if _Unpickler(file).load() != _LEGACY_MAGIC:
            raise ValueError("no PyTorch file")
        if _Unpickler(file).load() != _LEGACY_PROTOCOL:
            raise ValueError("an unknown version of the format")
        if not _Unpickler(file).load().get("little_endian", True):
            raise UserError(f"{path}: its numbers are big-endian; save it again on a little-endian machine")
        unpickler = _Unpickler(file)
        saved = unpickler.load()
        for key in _Unpickler(file).load():
            storage = unpickler.storages[key]
            (count,) = struct.unpack("<q", file.read(8))
            if count != storage.count:
                raise ValueError(f"storage {key} has {count} numbers instead of {storage.count}")
            start, length = file.tell(), count * storage.dtype.itemsize
            if start + length > path.stat().st_size:
                raise ValueError("it ends in the middle of its numbers")
            storage.read = functools.partial(_read_part, path, start, length)
            file.seek(length, os.SEEK_CUR)
        if any(storage.read is None for storage in unpickler.storages.values()):
            raise ValueError("it lacks some of its numbers")
    return saved


class _TarUnpickler(_Unpickler):
    """Of the pickle in a tar, which names tensors by their numbers in the member `tensors`."""

    def __init__(self, file: IO[bytes], tensors: dict[str, Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, saved: Any) -> Tensor:
        return self._tensors[str(saved)]


def _read_tar(path: pathlib.Path) -> Any:
    """The format before PyTorch 0.1.10: a tar of `storages`, `tensors`, `pickle`; nothing is unpacked."""

    def member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
        file = archive.extractfile(name)
        if file is None:
            raise ValueError(f"{name} is no file")
        return file

    with tarfile.open(path, "r:") as archive:
        storages: dict[str, Storage] = {}
        file = member(archive, "storages")
        for _ in range(_natural(_Unpickler(file).load())):
            key, _, storage_type = _Unpickler(file).load()
            (count,) = struct.unpack("<q", file.read(8))
            storage = Storage(_DTYPES[storage_type], _natural(count))
            length = count * storage.dtype.itemsize
            start = archive.getmember("storages").offset_data + file.tell()
            if start + length > path.stat().st_size:
                raise ValueError("it ends in the middle of its numbers")
            storage.read = functools.partial(_read_part, path, start, length)
            file.seek(length, os.SEEK_CUR)
            storages[str(key)] = storage
        if _Unpickler(file).load():
            raise ValueError("storages that are views of others are not supported")
        tensors: dict[str, Tensor] = {}
        file = member(archive, "tensors")
        for _ in range(_natural(_Unpickler(file).load())):
            key, storage_key, _ = _Unpickler(file).load()
            (dimensions,) = struct.unpack("<i4x", file.read(8))
            numbers = struct.unpack(f"<{2 * dimensions + 1}q", file.read(8 * (2 * dimensions + 1)))
            shape, strides, offset = numbers[:dimensions], numbers[dimensions:-1], numbers[-1]
            tensors[str(key)] = _tensor(storages[str(storage_key)], offset, shape, strides)
        return _TarUnpickler(member(archive, "pickle"), tensors).load()


def _read_part(path: pathlib.Path, start: int, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(length)


def write(path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: str = "") -> None:
    """Writes float32 arrays as a state dict that `torch.load(path, weights_only=True)` reads.

    Args:
      metadata: text kept with the state dict, which PyTorch ignores.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _state_dict_pickle(tensors, metadata))
        archive.writestr("archive/byteorder", sys.byteorder)
        for number, array in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{number}", np.ascontiguousarray(array, "<f4").tobytes())
        archive.writestr("archive/version", "3\n")


def _state_dict_pickle(tensors: Mapping[str, np.ndarray], metadata: str) -> bytes:
    """The pickle of a state dict, opcode by opcode, as the names in it may not be importable here."""

    def name(module: str, attribute: str) -> bytes:
        return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()

    def text(value: str) -> bytes:
        data = value.encode()
        return pickle.BINUNICODE + struct.pack("<I", len(data)) + data

    def integer(value: int) -> bytes:
        return pickle.BININT + struct.pack("<i", value)

    def many(*parts: bytes) -> bytes:
        return pickle.MARK + b"".join(parts) + pickle.TUPLE

    empty = name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE

    def tensor(number: int, array: np.ndarray) -> bytes:
        storage_type = name("torch", "FloatStorage")
        storage = many(text("storage"), storage_type, text(str(number)), text("cpu"), integer(array.size))
        strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        arguments = many(
            storage + pickle.BINPERSID,
            integer(0),
            many(*map(integer, array.shape)),
            many(*map(integer, strides)),
            pickle.NEWFALSE,
            empty,
        )
        return name("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE

    def entries(*pairs: tuple[str, bytes]) -> bytes:
        return pickle.MARK + b"".join(text(key) + value for key, value in pairs) + pickle.SETITEMS

    own = pickle.EMPTY_DICT + entries((METADATA_KEY, text(metadata)))
    attributes = pickle.EMPTY_DICT + entries(("_metadata", empty + entries(("", own))))
    weights = entries(*((key, tensor(i, array)) for i, (key, array) in enumerate(tensors.items())))
    return pickle.PROTO + b"\x02" + empty + weights + attributes + pickle.BUILD + pickle.STOP
