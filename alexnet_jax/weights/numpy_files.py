"""Reads NumPy's `.npy` and `.npz` without running code from them.

Old TensorFlow projects ship AlexNet as a `.npy` of objects, written by caffe-tensorflow: a pickled dictionary
of arrays. Of such pickles only dictionaries, lists, strings, numbers and arrays of numbers are read.
"""

import io
import math
import pathlib
import zipfile
from typing import IO, Any

import numpy as np

from alexnet_jax.common.errors import damage_reported
from alexnet_jax.weights.pickles import Unpickler

_ADVICE = "save only its arrays with NumPy: numpy.savez('weights.npz', **arrays)"
_MOST_DEPTH = 4  # of dictionaries and lists in each other


class _DType:
    """What a pickled dtype says: its kind and size, such as `f4`, and then its order of bytes."""

    def __init__(self, text: str, *_: Any) -> None:
        self.text, self.order = text, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">", "|": "|", "=": "<"}[state[1]]


class _Array:
    """What a pickled array says: shape, dtype, order of axes and contents."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def read(self) -> Any:
        """The array of numbers; for an array of objects, the list of them, or the only one."""
        _, shape, dtype, fortran, data = self.state
        if dtype.text in ("O", "O8", "O4"):
            return data[0] if shape == () else list(data)
        numbers = np.dtype(dtype.text).newbyteorder(dtype.order)
        if numbers.kind not in "fiub":
            raise ValueError(f"an array of {numbers}")
        if isinstance(data, str):  # a byte string of Python 2
            data = data.encode("latin-1")
        if math.prod(shape) * numbers.itemsize != len(data):
            raise ValueError(f"{len(data)} bytes for an array {list(shape)} of {numbers}")
        array = np.frombuffer(data, numbers).reshape(shape, order="F" if fortran else "C")
        return array.astype(numbers.newbyteorder("="))


def _names() -> dict[str, Any]:
    """The names with which NumPy 1 and 2 pickle arrays, in Python 2 and 3."""
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    return {
        **{f"{module}._reconstruct": lambda *_: _Array() for module in modules},
        **{f"{module}.scalar": lambda *_: None for module in modules},
        "numpy.ndarray": type("ndarray", (), {}),
        "collections.OrderedDict": dict,
        "numpy.dtype": lambda *arguments: _DType(*arguments),
        "_codecs.encode": lambda text, *_: text.encode("latin-1"),  # Python 3's bytes, in protocol 2
        "__builtin__.bytes": lambda *_: b"",  # the same for none
    }


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads the arrays of a `.npy` or `.npz`, by name; nested ones as `conv1/weights` or `conv1/0`.

    Raises:
      UserError: the file is damaged, or contains other objects than arrays.
    """
    arrays: dict[str, Any] = {}
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            with damage_reported(".npy, or one of other objects than arrays"):
                _flatten(_read_array(file), "", arrays)
            return arrays
    with damage_reported(".npz, or one of other objects than arrays"), zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                _flatten(_read_array(io.BytesIO(member.read())), name.removesuffix(".npy"), arrays)
    return arrays


def _read_array(file: IO[bytes]) -> Any:
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version in read_header and read_header[version](file)[2].hasobject:
        return Unpickler(file, _names(), _ADVICE).load()
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _flatten(value: Any, name: str, arrays: dict[str, Any], depth: int = 0) -> None:
    """Adds the arrays in nested dictionaries and lists to `arrays`, under names joined by slashes."""
    if isinstance(value, _Array):
        value = value.read()
    if isinstance(value, np.ndarray):
        arrays[name] = value
    elif isinstance(value, dict | list | tuple) and depth < _MOST_DEPTH:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            _flatten(item, f"{name}/{key}".removeprefix("/").removeprefix("arr_0/"), arrays, depth + 1)
    elif not isinstance(value, str | bytes | float | int | type(None)):
        raise ValueError(f"a {type(value).__name__} at {name or 'the top'}")
