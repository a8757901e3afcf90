"""Reads PyTorch's `.pth` files without PyTorch and without running code from them.

A `.pth` file is a pickle, which names functions to call. This reader accepts only the few names that
construct tensors, replaces each with its own function, and refuses all others.
"""

import collections
import io
import pathlib
import struct
import zipfile
from typing import IO, Any

import ml_dtypes
import numpy as np

from alexnet_jax.common.errors import UserError, damage_reported
from alexnet_jax.weights.pickles import Unpickler

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
    "ComplexFloatStorage": np.dtype(np.complex64),
    "ComplexDoubleStorage": np.dtype(np.complex128),
    "QInt8Storage": np.dtype(np.int8),
    "QUInt8Storage": np.dtype(np.uint8),
    "QInt32Storage": np.dtype(np.int32),
    "QUInt4x2Storage": np.dtype(np.uint8),
    "QUInt2x4Storage": np.dtype(np.uint8),
    "UntypedStorage": np.dtype(np.uint8),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_ADVICE = 'save only its state dict with PyTorch: torch.save(model.state_dict(), "weights.pth")'
_BIG_ENDIAN = "big-endian numbers; save it again on a little-endian machine"


class _Unpickler(Unpickler):
    """Loads tensors too.

    The pickle refers to its tensors' `storages` by key. These flat arrays are to be filled afterwards; the
    tensors are views of them.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, _names(), _ADVICE)
        self.storages: dict[str, np.ndarray] = {}

    def persistent_load(self, saved: Any) -> Any:
        kind, storage_type, key, _, count, *view = saved
        if kind != "storage" or storage_type not in _DTYPES or not isinstance(key, str):
            raise ValueError(f"no storage: {saved!r}")
        if view and view[0] is not None:
            raise ValueError("storages that are views of others are not supported")
        if key not in self.storages:
            self.storages[key] = np.empty(_natural(count), _DTYPES[storage_type])
        return self.storages[key]


# Of `torch.`: dtypes and schemes of quantisation, which stand for themselves.
_WORDS = """
float64 float32 float16 bfloat16 complex128 complex64 complex32 bool uint8 uint16 uint32 uint64 int8 int16
int32 int64 uint1 uint2 uint3 uint4 uint5 uint6 uint7 int1 int2 int3 int4 int5 int6 int7 quint8 qint8 qint32
quint4x2 quint2x4 bits16 bits8 bits1x8 bits2x4 bits4x2 float8_e5m2 float8_e4m3fn float8_e5m2fnuz
float8_e4m3fnuz float8_e8m0fnu float4_e2m1fn_x2 per_tensor_affine per_tensor_symmetric per_channel_affine
per_channel_symmetric per_channel_affine_float_qparams Tensor storage.TypedStorage
"""
# Of `torch._utils._rebuild_`: tensors that no AlexNet has.
_OTHER_TENSORS = """
qtensor tensor_v3 sparse_tensor nested_tensor meta_tensor_no_storage wrapper_subclass
device_tensor_from_numpy device_tensor_from_cpu_tensor
"""


def _names() -> dict[str, Any]:
    """The names that `torch.load(weights_only=True)` of PyTorch 2.13 accepts, and no others.

    Source: torch/_weights_only_unpickler.py. Tensors that no AlexNet has become None.
    """
    kinds = [name.removesuffix("Storage") for name in _DTYPES if not name.startswith(("Q", "U", "Complex"))]
    places = ("torch", "torch.cuda", "torch.sparse", "torch.cuda.sparse")
    builtins = {"set": set, "complex": complex, "bytearray": lambda data=b"", *_: data}
    return {
        "collections.Counter": collections.Counter,
        "collections.OrderedDict": collections.OrderedDict,
        # Python 3 writes the names of Python 2 for these, in protocol 2.
        **{f"{place}.{name}": builtins[name] for name in builtins for place in ("builtins", "__builtin__")},
        "_codecs.encode": lambda text, *_: text.encode("latin-1"),  # bytes, in protocol 2
        "torch.device": lambda *names: ":".join(map(str, names)),
        "torch.serialization._get_layout": str,
        "torch.Size": lambda dimensions: tuple(dimensions),
        "torch.nn.parameter.Parameter": lambda tensor, *_: tensor,
        "torch._tensor._rebuild_from_type_v2": lambda rebuild, _, arguments, *__: rebuild(*arguments),
        "torch._utils._rebuild_tensor": lambda *arguments: _tensor(*arguments[:4]),
        "torch._utils._rebuild_tensor_v2": lambda *arguments: _tensor(*arguments[:4]),
        "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
        **{f"torch._utils._rebuild_{name}": lambda *_: None for name in _OTHER_TENSORS.split()},
        **{f"torch.{name}": name for name in _WORDS.split()},
        **{f"{place}.{kind}Tensor": f"{kind}Tensor" for kind in kinds for place in places},
        **{f"{place}.{name}": name for name in _DTYPES for place in places[:2]},
        "torch.storage.UntypedStorage": "UntypedStorage",
    }


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> np.ndarray:
    shape, strides = tuple(map(_natural, size)), tuple(map(_natural, stride))
    if not isinstance(storage, np.ndarray) or not storage.flags.owndata:  # not a tensor, which is a view
        raise ValueError("a tensor without a storage")
    reach = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
    if 0 not in shape and _natural(offset) + reach > storage.size:
        raise ValueError(f"a tensor {list(shape)} that reaches beyond its storage")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def _natural(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} where a size should be")
    return value


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads a dictionary written by `torch.save`, in the zip format or the one before PyTorch 1.6.

    Returns:
      The dictionary, with an array in place of each tensor.

    Raises:
      UserError: the file is damaged or not a dictionary, or the pickle contains more than tensors.
    """
    with damage_reported("PyTorch file"):
        saved = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    if not isinstance(saved, dict):
        raise UserError(f"contains a {type(saved).__name__}, not a state dict; save model.state_dict()")
    # `dict.items`, not `saved.items`: a pickle can set any attribute of an OrderedDict.
    return dict(dict.items(saved))


def _read_zip(path: pathlib.Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in names:
            if name.startswith(("/", "\\")) or ".." in pathlib.PurePosixPath(name).parts or ":" in name:
                raise UserError(f"refused, since it names a path outside itself: {name!r}")
        pickles = [name for name in names if pathlib.PurePosixPath(name).name == "data.pkl"]
        if len(pickles) != 1:
            raise UserError("a zip file, but not one of PyTorch's (no data.pkl in it)")
        top = pickles[0].removesuffix("data.pkl")
        if f"{top}byteorder" in names and archive.read(f"{top}byteorder").strip() != b"little":
            raise UserError(_BIG_ENDIAN)
        unpickler = _Unpickler(io.BytesIO(archive.read(pickles[0])))
        saved = unpickler.load()
        for key, storage in unpickler.storages.items():
            with archive.open(f"{top}data/{key}") as file:
                _fill(storage, file)
                if file.read(1):
                    raise ValueError(f"storage {key} has more than {storage.size} numbers")
    return saved


def _read_legacy(path: pathlib.Path) -> Any:
    """The format before PyTorch 1.6: consecutive pickles, then the storages."""
    with open(path, "rb") as file:
        if file.read(2) == b"PK":
            raise ValueError("a zip file without its end")
        file.seek(0)
        if _Unpickler(file).load() != _LEGACY_MAGIC:
            raise ValueError("no PyTorch file")
        if _Unpickler(file).load() != _LEGACY_PROTOCOL:
            raise ValueError("an unknown version of the format")
        if not _Unpickler(file).load().get("little_endian", True):
            raise UserError(_BIG_ENDIAN)
        unpickler = _Unpickler(file)
        saved = unpickler.load()
        keys = _Unpickler(file).load()
        if set(keys) != set(unpickler.storages):
            raise ValueError("some storages are missing")
        for key in keys:
            storage = unpickler.storages[key]
            (count,) = struct.unpack("<q", file.read(8))
            if count != storage.size:
                raise ValueError(f"storage {key} has {count} numbers instead of {storage.size}")
            _fill(storage, file)
    return saved


def _fill(storage: np.ndarray, file: IO[bytes]) -> None:
    if file.readinto(storage.view(np.uint8)) != storage.nbytes:  # pyright: ignore
        raise ValueError("it ends within a storage")
