"""Reads Caffe's `.caffemodel` and `.binaryproto` files without Caffe.

Both are protocol buffers defined in `caffe.proto`; `_MESSAGES` has the few fields that AlexNet needs.
"""

import dataclasses
import functools
import io
import math
import pathlib
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from alexnet_jax.common.errors import UserError, damage_reported

# Fields of the messages of caffe.proto as "name number type[=default]"; `*` marks a repeated field. A layer
# was a `V1LayerParameter` until 2014, with a number as its type, with a `V0LayerParameter` in it until 2013.
_LAYER = "transform_param {} TransformationParameter, lrn_param {} LRNParameter"
_MESSAGES = {
    "BlobShape": "dim* 1 int64",
    # Packed numbers are read as bytes, in one copy: before protobuf 7, each would become a Python object,
    # which takes 6 to 10 s for an AlexNet.
    "BlobProto": "num 1 int32, channels 2 int32, height 3 int32, width 4 int32, shape 7 BlobShape, "
    "data* 5 bytes, double_data* 8 bytes",
    "LRNParameter": "local_size 1 uint32=5, alpha 2 float=1, beta 3 float=0.75, k 5 float=1",
    "TransformationParameter": "crop_size 3 uint32",
    "V1LayerParameter": "v0 1 bytes, name 4 string, type 5 int32, blobs* 6 BlobProto, "
    + _LAYER.format(36, 18),
    "LayerParameter": "name 1 string, type 2 string, blobs* 7 BlobProto, " + _LAYER.format(100, 118),
    "NetParameter": "layers* 2 V1LayerParameter, layer* 100 LayerParameter",
}
_TYPES_V1 = {4: "Convolution", 14: "InnerProduct", 15: "LRN", 17: "Pooling", 18: "ReLU", 6: "Dropout"}


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


def read_net(path: pathlib.Path) -> list[Layer]:
    """Reads the layers of a `.caffemodel`, in order.

    Raises:
      UserError: the file is damaged or not a Caffe net.
    """
    with damage_reported(".caffemodel"):
        net = _message_types()["NetParameter"].FromString(path.read_bytes())
        layers = [_layer(layer) for layer in (*net.layer, *net.layers)]
        old = any(layer.HasField("v0") for layer in net.layers)
    if old:
        raise UserError(
            "a .caffemodel of 2013, which is not supported; convert it with Caffe's upgrade_net_proto_binary"
        )
    if not layers:
        raise UserError("not a .caffemodel: it has no layers")
    return layers


def read_mean(path: pathlib.Path) -> np.ndarray:
    """Reads a mean image as RGB float32 `[H, W, 3]` in grey levels.

    Args:
      path: a `.binaryproto`, or a `.npy` of `[3, H, W]` in BGR, such as Caffe's `ilsvrc_2012_mean.npy`, or of
        `[H, W, 3]` in RGB.

    Raises:
      UserError: the file is missing, damaged or not a colour image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from error
    with damage_reported("mean image, or not a .binaryproto or a .npy of numbers"):
        if data.startswith(b"\x93NUMPY"):
            mean = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            mean = _blob(_message_types()["BlobProto"].FromString(data))
    if mean.ndim not in (3, 4) or mean.size != 3 * math.prod(mean.shape[-2:]):
        if mean.ndim != 3 or mean.shape[2] != 3:
            raise UserError(f"not a colour image, but of shape {list(mean.shape)}")
        return mean.astype(np.float32)
    bgr = mean.reshape(3, *mean.shape[-2:]).astype(np.float32)
    return np.ascontiguousarray(bgr[::-1].transpose(1, 2, 0))


@functools.cache
def _message_types() -> dict[str, Any]:
    """The classes of protobuf's messages by name."""
    file = descriptor_pb2.FileDescriptorProto(name="alexnet_jax_caffe.proto", package="caffe")
    for message, fields in _MESSAGES.items():
        added = file.message_type.add(name=message)
        for field in fields.split(", "):
            name, number, kind = field.split()
            kind, _, default = kind.partition("=")
            new = added.field.add(name=name.removesuffix("*"), number=int(number))
            new.label = new.LABEL_REPEATED if name.endswith("*") else new.LABEL_OPTIONAL
            if kind in _MESSAGES:
                new.type, new.type_name = new.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                new.type, new.default_value = new.Type.Value(f"TYPE_{kind.upper()}"), default
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))
        for name in _MESSAGES
    }


def _layer(layer: Any) -> Layer:
    lrn = layer.lrn_param
    return Layer(
        name=layer.name,
        type=_TYPES_V1.get(layer.type, str(layer.type)),
        blobs=[_blob(blob) for blob in layer.blobs],
        crop_size=layer.transform_param.crop_size,
        lrn={
            "lrn_size": lrn.local_size,
            "lrn_alpha": lrn.alpha / lrn.local_size,  # Caffe divides by the window, AlexNet does not
            "lrn_beta": lrn.beta,
            "lrn_k": lrn.k,
        },
    )


def _blob(blob: Any) -> np.ndarray:
    chunks, dtype = (blob.data, "<f4") if blob.data else (blob.double_data, "<f8")
    data = np.frombuffer(b"".join(chunks), dtype).astype(np.float32, copy=False)
    old_shape = [blob.num, blob.channels, blob.height, blob.width]  # before 2014, left-padded with ones
    shape = list(blob.shape.dim) if blob.HasField("shape") else old_shape
    if np.prod(shape, dtype=np.int64) != data.size:
        raise ValueError(f"{data.size} numbers for a blob of {shape}")
    return data.reshape(shape)
