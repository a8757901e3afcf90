"""Writes state dicts like `torch.save`, without PyTorch, to test the reader."""

import collections
import dataclasses
import io
import os
import pickle
import zipfile
from typing import Any

import numpy as np


@dataclasses.dataclass
class Name:
    """A function or class that is written by name alone: PyTorch, which has it, need not be installed."""

    module: str
    name: str

    def __call__(self) -> None:
        """Only here because `pickle` refuses to write what cannot be called."""
        raise AssertionError(f"{self.module}.{self.name} is a name to write, not to call")


@dataclasses.dataclass
class Tensor:
    """A view of the float32 storage `key` of `count` numbers."""

    key: str
    count: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __reduce__(self) -> Any:
        storage = Storage(self.key, self.count)
        view = (storage, self.offset, self.shape, self.strides, False, collections.OrderedDict())
        return Name("torch._utils", "_rebuild_tensor_v2"), view


@dataclasses.dataclass
class Storage:
    key: str
    count: int


class _Pickler(pickle._Pickler):
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Name):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Storage):
            return ("storage", Name("torch", "FloatStorage"), obj.key, "cpu", obj.count)
        return None


def dumps(saved: Any) -> bytes:
    """The pickle of a state dict or checkpoint whose tensors are `Tensor`s."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(saved)
    return buffer.getvalue()


def write(path: str | os.PathLike[str], arrays: dict[str, np.ndarray]) -> None:
    """Writes float32 arrays as a state dict in PyTorch's zip format."""
    tensors = collections.OrderedDict()
    for number, (name, array) in enumerate(arrays.items()):
        strides = tuple(stride // 4 for stride in np.ascontiguousarray(array, np.float32).strides)
        tensors[name] = Tensor(str(number), array.size, 0, array.shape, strides)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dumps(tensors))
        archive.writestr("archive/byteorder", "little")
        for number, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{number}", np.ascontiguousarray(array, "<f4").tobytes())
