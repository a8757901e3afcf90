"""Reads Caffe's `.caffemodel` and `.binaryproto` files without Caffe.

Both are protocol buffers of `caffe.proto`, of which this reader knows the few fields that AlexNet needs. The
numbers below are the field numbers there.
"""

import dataclasses
import os
import pathlib
import struct
from collections.abc import Iterator

import numpy as np

from alexnet_jax.common.errors import UserError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers

_NET_LAYERS_V1, _NET_LAYERS = 2, 100  # NetParameter: until 2014, since 2014
# LayerParameter, and its predecessor V1LayerParameter, whose types are numbers.
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

Fields = dict[int, list[int | memoryview]]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of the net, in the order of the file.

    Attributes:
      name: as in the prototxt, such as `conv1`.
      type: such as `Convolution`, `InnerProduct`, `LRN`, `Pooling`; for other V1 types their number.
      blobs: float32 weights and biases in Caffe's layout.
      crop_size: the net's input side in pixels if this is a data layer that states it, else 0.
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
      UserError: the file is damaged or no Caffe net.
    """
    path = pathlib.Path(path)
    try:
        net = _fields(memoryview(path.read_bytes()))
        layers = [_layer(_fields(_message(m)), _LAYER) for m in net.get(_NET_LAYERS, [])]
        layers += [_layer(_fields(_message(m)), _LAYER_V1) for m in net.get(_NET_LAYERS_V1, [])]
    except (ValueError, IndexError, struct.error, TypeError) as error:
        raise UserError(f"{path}: a damaged or truncated .caffemodel ({error}); fetch it again") from error
    if not layers:
        raise UserError(f"{path}: not a .caffemodel: it has no layers")
    return layers


def read_mean(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads the mean image of a `.binaryproto` as RGB float32 `[H, W, 3]` in grey levels.

    Raises:
      UserError: the file is damaged or contains no colour image.
    """
    path = pathlib.Path(path)
    try:
        blob = _blob(_fields(memoryview(path.read_bytes())))
    except (ValueError, IndexError, struct.error, TypeError) as error:
        raise UserError(f"{path}: a damaged or truncated .binaryproto ({error}); fetch it again") from error
    if blob.ndim not in (3, 4) or blob.size != 3 * np.prod(blob.shape[-2:]):
        raise UserError(f"{path}: not a colour image, but of shape {list(blob.shape)}")
    mean = blob.reshape(3, *blob.shape[-2:])
    return np.ascontiguousarray(mean[::-1].transpose(1, 2, 0))


def _layer(fields: Fields, numbers: dict[str, int]) -> Layer:
    def first(name: str) -> int | memoryview | None:
        return fields.get(numbers[name], [None])[0]

    def message(name: str) -> Fields:
        found = first(name)
        return {} if found is None else _fields(_message(found))

    kind = first("type")
    blobs = [_blob(_fields(_message(blob))) for blob in fields.get(numbers["blobs"], [])]
    crop_size = message("transform").get(_CROP_SIZE, [0])[0]
    return Layer(
        name=_text(first("name")),
        type=_TYPES_V1.get(kind, str(kind)) if isinstance(kind, int) else _text(kind),
        blobs=blobs,
        crop_size=crop_size if isinstance(crop_size, int) else 0,
        lrn=_lrn(message("lrn")),
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
        data = _numbers(fields[_BLOB_DATA], "<f4")
    else:
        data = _numbers(fields.get(_BLOB_DOUBLES, []), "<f8").astype(np.float32)
    if _BLOB_SHAPE in fields:
        dimensions = _fields(_message(fields[_BLOB_SHAPE][0])).get(_SHAPE_DIM, [])
        shape = [n for part in dimensions for n in ([part] if isinstance(part, int) else _varints(part))]
    else:  # before 2014: always four dimensions, padded with ones in front
        shape = [size for number in _BLOB_DIMENSIONS if isinstance(size := fields.get(number, [0])[0], int)]
    if np.prod(shape, dtype=np.int64) != data.size:
        raise ValueError(f"{data.size} numbers for a blob of {shape}")
    return data.reshape(shape)


def _numbers(parts: list[int | memoryview], dtype: str) -> np.ndarray:
    """Numbers of a repeated field: packed, or one per part."""
    return np.frombuffer(b"".join(_message(part) for part in parts), dtype)


def _text(value: int | memoryview | None) -> str:
    return "" if value is None else bytes(_message(value)).decode()


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _fields(data: memoryview) -> Fields:
    """Splits a message into fields by number, each with its values in order; fixed-size values stay bytes."""
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


def _varint(data: memoryview, position: int) -> tuple[int, int]:
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
