"""Reads Caffe's `.caffemodel` and `.binaryproto` files without Caffe.

Both are protocol buffers defined in `caffe.proto`; this reader knows the few fields that AlexNet needs. The
numbers below are field numbers of `caffe.proto`.
"""

import contextlib
import dataclasses
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from alexnet_jax.common.errors import UserError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers

_NET_LAYERS_V1, _NET_LAYERS = 2, 100  # NetParameter: before and since 2014
# LayerParameter and its predecessor V1LayerParameter, where a layer's type is a number.
_LAYER = {"name": 1, "type": 2, "blobs": 7, "transform": 100, "lrn": 118}
_LAYER_V1 = {"name": 4, "type": 5, "blobs": 6, "transform": 36, "lrn": 18}
_TYPES_V1 = {4: "Convolution", 14: "InnerProduct", 15: "LRN", 17: "Pooling", 18: "ReLU", 6: "Dropout"}
_BLOB_SHAPE, _BLOB_DATA, _BLOB_DOUBLES, _BLOB_DIMENSIONS = 7, 5, 8, (1, 2, 3, 4)  # BlobProto
_SHAPE_DIM = 1  # BlobShape
_CROP_SIZE = 3  # TransformationParameter
_LRN = {
    "lrn_size": (1, 5),
    "lrn_alpha": (2, 1.0),
    "lrn_beta": (3, 0.75),
    "lrn_k": (5, 1.0),
}  # number, default

Fields = dict[int, list[Any]]  # values in order, by field number: int or memoryview


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of the net.

    Attributes:
      name: as in the prototxt, such as `conv1`.
      type: such as `Convolution`, `InnerProduct`, `LRN`, `Pooling`; other V1 types are left as numbers.
      blobs: float32 weights and biases in Caffe's layout.
      crop_size: the net's input side in pixels if this is a data layer that has it, else 0.
      lrn: `AlexNet`'s `lrn_size`, `lrn_alpha` (per term of the sum), `lrn_beta` and `lrn_k`.
    """

    name: str
    type: str
    blobs: list[np.ndarray]
    crop_size: int
    lrn: dict[str, float]


def read_net(path: str | os.PathLike[str]) -> list[Layer]:
    """Reads the layers of a `.caffemodel`, in order.

    Raises:
      UserError: the file is damaged or not a Caffe net.
    """
    with _damage_reported(path, ".caffemodel"):
        net = _fields(memoryview(pathlib.Path(path).read_bytes()))
        layers = [_layer(_fields(message), _LAYER) for message in net.get(_NET_LAYERS, [])]
        layers += [_layer(_fields(message), _LAYER_V1) for message in net.get(_NET_LAYERS_V1, [])]
    if not layers:
        raise UserError(f"{path}: not a .caffemodel: it has no layers")
    return layers


def read_mean(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads the mean image of a `.binaryproto` as RGB float32 `[H, W, 3]` in grey levels.

    Raises:
      UserError: the file is damaged or not a colour image.
    """
    with _damage_reported(path, ".binaryproto"):
        blob = _blob(_fields(memoryview(pathlib.Path(path).read_bytes())))
    if blob.ndim not in (3, 4) or blob.size != 3 * np.prod(blob.shape[-2:]):
        raise UserError(f"{path}: not a colour image, but of shape {list(blob.shape)}")
    mean = blob.reshape(3, *blob.shape[-2:])
    return np.ascontiguousarray(mean[::-1].transpose(1, 2, 0))


@contextlib.contextmanager
def _damage_reported(path: str | os.PathLike[str], suffix: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, IndexError, struct.error, TypeError) as error:
        raise UserError(f"{path}: a damaged or truncated {suffix} ({error}); fetch it again") from error


def _layer(fields: Fields, numbers: dict[str, int]) -> Layer:
    def first(name: str, default: Any = b"") -> Any:
        return fields.get(numbers[name], [default])[0]

    kind = first("type")
    return Layer(
        name=str(first("name"), "utf-8"),
        type=_TYPES_V1.get(kind, str(kind)) if isinstance(kind, int) else str(kind, "utf-8"),
        blobs=[_blob(_fields(blob)) for blob in fields.get(numbers["blobs"], [])],
        crop_size=int(_fields(first("transform")).get(_CROP_SIZE, [0])[0]),
        lrn=_lrn(_fields(first("lrn"))),
    )


def _lrn(fields: Fields) -> dict[str, float]:
    values = {}
    for name, (number, default) in _LRN.items():
        found = fields.get(number, [default])[0]
        values[name] = struct.unpack("<f", found)[0] if isinstance(found, memoryview) else found
    values["lrn_alpha"] /= values["lrn_size"]  # Caffe divides by the window, AlexNet does not
    return values


def _blob(fields: Fields) -> np.ndarray:
    if _BLOB_DATA in fields:
        data = np.frombuffer(b"".join(fields[_BLOB_DATA]), "<f4")  # packed, or one number per element
    else:
        data = np.frombuffer(b"".join(fields.get(_BLOB_DOUBLES, [])), "<f8").astype(np.float32)
    if _BLOB_SHAPE in fields:
        dimensions = _fields(fields[_BLOB_SHAPE][0]).get(_SHAPE_DIM, [])
        shape = [n for part in dimensions for n in ([part] if isinstance(part, int) else _varints(part))]
    else:  # before 2014: always four dimensions, left-padded with ones
        shape = [int(fields.get(number, [0])[0]) for number in _BLOB_DIMENSIONS]
    if np.prod(shape, dtype=np.int64) != data.size:
        raise ValueError(f"{data.size} numbers for a blob of {shape}")
    return data.reshape(shape)


def _fields(data: memoryview | bytes) -> Fields:
    """Splits a message into fields by number: integers, and everything else as bytes, in order."""
    fields: Fields = {}
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _varint(data, position)
        else:
            if wire_type == _BYTES:
                length, position = _varint(data, position)
            elif wire_type in (_FIXED32, _FIXED64):
                length = 4 if wire_type == _FIXED32 else 8
            else:
                raise ValueError("not a protocol buffer")
            if position + length > len(data):
                raise ValueError("it ends within a field")
            value = data[position : position + length]
            position += length
        fields.setdefault(number, []).append(value)
    return fields


def _varint(data: memoryview | bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("not a protocol buffer")


def _varints(data: memoryview) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value
