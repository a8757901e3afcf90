"""Caffe without Caffe: writes `.caffemodel` files with Google's protobuf, and runs AlexNet in NumPy.

Shares nothing with the package, so the two can be compared.
"""

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# FieldDescriptorProto.Type
_INT32, _INT64, _FLOAT, _STRING, _MESSAGE, _UINT32, _BYTES = 5, 3, 2, 9, 11, 13, 12
_ONE, _MANY = 1, 3  # FieldDescriptorProto.Label
# The few fields of caffe.proto that AlexNet needs: name, number, type, label.
_MESSAGES = {
    "BlobShape": [("dim", 1, _INT64, _MANY)],
    "BlobProto": [
        ("num", 1, _INT32, _ONE),
        ("channels", 2, _INT32, _ONE),
        ("height", 3, _INT32, _ONE),
        ("width", 4, _INT32, _ONE),
        ("data", 5, _BYTES, _ONE),  # repeated float, packed: the same encoding, and fast to fill
        ("shape", 7, "BlobShape", _ONE),
    ],
    "LRNParameter": [
        ("local_size", 1, _UINT32, _ONE),
        ("alpha", 2, _FLOAT, _ONE),
        ("beta", 3, _FLOAT, _ONE),
        ("k", 5, _FLOAT, _ONE),
    ],
    "TransformationParameter": [("crop_size", 3, _UINT32, _ONE)],
    "V1LayerParameter": [
        ("bottom", 2, _STRING, _MANY),
        ("top", 3, _STRING, _MANY),
        ("name", 4, _STRING, _ONE),
        ("type", 5, _INT32, _ONE),
        ("blobs", 6, "BlobProto", _MANY),
        ("lrn_param", 18, "LRNParameter", _ONE),
        ("transform_param", 36, "TransformationParameter", _ONE),
    ],
    "LayerParameter": [
        ("name", 1, _STRING, _ONE),
        ("type", 2, _STRING, _ONE),
        ("bottom", 3, _STRING, _MANY),
        ("top", 4, _STRING, _MANY),
        ("blobs", 7, "BlobProto", _MANY),
        ("transform_param", 100, "TransformationParameter", _ONE),
        ("lrn_param", 118, "LRNParameter", _ONE),
    ],
    "NetParameter": [
        ("name", 1, _STRING, _ONE),
        ("layers", 2, "V1LayerParameter", _MANY),
        ("layer", 100, "LayerParameter", _MANY),
    ],
}
_TYPES_V1 = {
    "Data": 5,
    "Convolution": 4,
    "InnerProduct": 14,
    "LRN": 15,
    "Pooling": 17,
    "ReLU": 18,
    "Dropout": 6,
}
ALEXNET = "Data conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 conv3 relu3 conv4 relu4 conv5 relu5 pool5"
CAFFENET = ALEXNET.replace("norm1 pool1", "pool1 norm1").replace("norm2 pool2", "pool2 norm2")
HEAD = " fc6 relu6 drop6 fc7 relu7 drop7 fc8"
_KINDS = {"conv": "Convolution", "relu": "ReLU", "norm": "LRN", "pool": "Pooling", "drop": "Dropout"}


def _messages():
    file = descriptor_pb2.FileDescriptorProto(name="caffe_subset.proto", package="caffe", syntax="proto2")
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for name, number, kind, label in fields:
            field = message.field.add(name=name, number=number, label=label)
            field.type = _MESSAGE if isinstance(kind, str) else kind
            if isinstance(kind, str):
                field.type_name = f".caffe.{kind}"
            if name == "dim":
                field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))
        for name in _MESSAGES
    }


def caffemodel(layers, order=ALEXNET + HEAD, *, v1=False, crop_size=227, alpha=1e-4, names=None) -> bytes:
    """The bytes of a net with `layers` (weight and bias by name, in Caffe's layout) in `order`."""
    net = _messages()["NetParameter"](name="AlexNet")
    for name in order.split():
        kind = "InnerProduct" if name.startswith("fc") else _KINDS.get(name[:4], name)
        layer = (net.layers if v1 else net.layer).add(name=(names or {}).get(name, name))
        layer.type = _TYPES_V1[kind] if v1 else kind
        if kind == "Data":
            layer.transform_param.crop_size = crop_size
        if kind == "LRN":
            layer.lrn_param.local_size, layer.lrn_param.alpha, layer.lrn_param.beta = 5, alpha, 0.75
        for array in layers.get(name, ()):
            blob = layer.blobs.add()
            blob.data = array.astype("<f4").tobytes()
            if v1:  # four dimensions, left-padded with ones
                sides = (1,) * (4 - array.ndim) + array.shape
                blob.num, blob.channels, blob.height, blob.width = sides
            else:
                blob.shape.dim.extend(array.shape)
    return net.SerializeToString()


def mean_binaryproto(mean: np.ndarray) -> bytes:
    """`[3, H, W]` BGR as a `.binaryproto`, as computed by Caffe."""
    blob = _messages()["BlobProto"](num=1, channels=3, height=mean.shape[1], width=mean.shape[2])
    blob.data = mean.astype("<f4").tobytes()
    return blob.SerializeToString()


def forward(layers, images: np.ndarray, order=ALEXNET + HEAD) -> dict[str, np.ndarray]:
    """Every layer of the net in float64, one step after another, as Caffe defines them.

    Args:
      images: `[B, 3, H, W]` BGR.
    """
    x, seen = images.astype(np.float64), {}
    for name in order.split()[1:]:
        weight, bias = (a.astype(np.float64) for a in layers.get(name, (np.zeros(0), np.zeros(0))))
        kind = name[:-1]
        if kind == "conv":
            stride, padding = {"1": (4, 0), "2": (1, 2)}.get(name[-1], (1, 1))
            x = _convolve(x, weight, bias, stride, padding)
        elif kind == "relu":
            x = np.maximum(x, 0)
        elif kind == "norm":
            x = _normalise(x)
        elif kind == "pool":
            x = _pool(x)
        elif kind == "fc":
            x = x.reshape(len(x), -1) @ weight.T + bias
        seen[name] = x
    return seen


def _convolve(x, weight, bias, stride, padding):
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    outputs, inputs, window, _ = weight.shape
    groups = x.shape[1] // inputs
    patches = np.lib.stride_tricks.sliding_window_view(x, (window, window), axis=(2, 3))
    patches = patches[:, :, ::stride, ::stride]  # [B, C, H', W', h, w]
    results = []
    for group in range(groups):
        own = patches[:, group * inputs : (group + 1) * inputs]
        share = weight[group * outputs // groups : (group + 1) * outputs // groups]
        results.append(np.tensordot(own, share, axes=((1, 4, 5), (1, 2, 3))))
    return np.concatenate(results, axis=-1).transpose(0, 3, 1, 2) + bias[:, None, None]


def _normalise(x, size=5, alpha=1e-4, beta=0.75):
    total = np.zeros_like(x)
    for channel in range(x.shape[1]):
        near = x[:, max(0, channel - size // 2) : channel + size // 2 + 1]
        total[:, channel] = (near**2).sum(axis=1)
    return x / (1 + alpha / size * total) ** beta


def _pool(x, window=3, stride=2):
    sizes = [-(-(n - window) // stride) + 1 for n in x.shape[2:]]
    result = np.empty((*x.shape[:2], *sizes))
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            part = x[:, :, i * stride : i * stride + window, j * stride : j * stride + window]
            result[:, :, i, j] = part.max(axis=(2, 3))
    return result
