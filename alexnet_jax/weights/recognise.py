"""Finds AlexNet's layers among named arrays by their shapes: names differ in each project, shapes do not."""

import dataclasses
import functools
import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from alexnet_jax.common.errors import UserError
from alexnet_jax.variants import create_model
from alexnet_jax.weights.layouts import CONVOLUTIONS, DENSE, Layers, layer_shapes, swap_colours

# Last parts of names: PyTorch's, caffe-tensorflow's, tensorpack's, Flax's, and pycaffe's numbers of blobs.
_BIASES = {"weight": "bias", "weights": "biases", "W": "b", "w": "b", "kernel": "bias", "0": "1"}
_SEPARATORS = re.compile(r"[./]")
# Parts of the names of moments and gradients, in PyTorch, optax and TensorFlow; `mu` alone may be a layer.
_OPTIMIZER = re.compile(
    r"(^|[./])(optim(izers?)?|opt(imizer)?_states?|exp_avg\w*|momentum(_buffers?)?|adam(_1)?"
    r"|grad(s|ients?)?(_avg|_sum)?|(mu|nu)(?=[./][^./]+[./]))([./]|$)",
    re.IGNORECASE,
)
_COPY = re.compile(r"(^|[./_])(ema|swa|averaged|teacher|target|momentum|encoder_k)([./_]|$)", re.IGNORECASE)
_MODEL = re.compile(r"(^|[./])(state_dict|model|params|module)[./]")
_CHANNELS_LAST = (3, 2, 0, 1)  # axes of [h, w, I, O] in the order [O, I, h, w]


@dataclasses.dataclass(frozen=True)
class Stored:
    """The contents of a weight file.

    Attributes:
      layers: in torchvision's and Caffe's layout, RGB.
      names: the file's names for each layer's weight and bias, for messages.
      description: the net's description as JSON if this package wrote the file, else empty.
      variant: the net's variant if the file determines it, else None.
      crop_size: the net's input side in pixels if the file has it, else None.
      ignored: the file's names for what is not in `layers`.
    """

    layers: Layers
    names: dict[str, tuple[str, str]]
    description: str = ""
    variant: str | None = None
    crop_size: int | None = None
    ignored: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A weight and its bias, by name."""

    path: tuple[str, ...]  # what their names have in common, split at dots and slashes
    weight: str
    bias: str  # empty if there is none
    shape: tuple[int, ...]  # of the weight

    def shared(self, other: "_Layer") -> int:
        """How many first parts of the paths are the same."""
        pairs = zip(self.path, other.path, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def in_natural_order(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Sorts by name, with numbers by value: `features.3` before `features.10`."""

    def parts(name: str) -> list[str]:
        return [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    return {name: arrays[name] for name in sorted(arrays, key=parts)}


def is_of_optimizer(name: str) -> bool:
    """Whether a name is that of a moment or gradient, which has the shape of its weight."""
    return _OPTIMIZER.search(name) is not None


def find_layers(arrays: Mapping[str, Any], **known: Any) -> Stored:
    """Finds the five convolutions and, if they are AlexNet's, the fully connected layers.

    Names matter only where the file has several layers of the same shape. The optimizer's are passed over.
    Of several nets, one that is no moving average or teacher is taken, then one under `state_dict`, `model`,
    `params` or `module`, then the first.
    Where channels come last, or layers have numbers for weight and bias, the net is Caffe's and reads BGR.

    Args:
      known: `variant` and `crop_size`, if the file determines them.

    Raises:
      UserError: there are no five convolutions, or there are other layers among them.
    """
    everything = arrays
    arrays = {key: array for key, array in everything.items() if not is_of_optimizer(key)}
    layers = list(_layers(arrays))
    found, channels_last = _convolutions(layers, arrays)
    for layer in found.values():
        if not layer.bias:
            raise UserError(f"has {layer.weight} but no bias for it")
    _refuse_other_layers(found, layers, arrays)
    found |= _dense(found, layers, arrays, channels_last)
    names = {name: (layer.weight, layer.bias) for name, layer in found.items()}
    weights: Layers = {name: (arrays[weight], arrays[bias]) for name, (weight, bias) in names.items()}
    if channels_last:
        weights = {name: (_to_channels_first(name, w, weights), bias) for name, (w, bias) in weights.items()}
    if channels_last or names["conv1"][0].endswith("/0"):
        weights = swap_colours(weights)
    elif weights["conv1"][1].shape == (64,):
        known["variant"] = "torchvision"
    used = set().union(*names.values())
    ignored = [key for key in everything if key not in used]
    # First what could have been conv1, so that a message with the first few names each net.
    ignored.sort(key=lambda key: (tuple(everything[key].shape) != found["conv1"].shape, key not in arrays))
    return Stored(weights, names, ignored=tuple(ignored), **known)


def _layers(arrays: Mapping[str, Any]) -> Iterator[_Layer]:
    """All pairs of a weight and its bias, which may be missing, in the order of `arrays`."""
    for key, array in arrays.items():
        last = _SEPARATORS.split(key.removesuffix(":0"))[-1]
        if last in _BIASES:
            bias = re.sub(rf"{last}(:0)?$", rf"{_BIASES[last]}\1", key)
            has_bias = bias in arrays and len(arrays[bias].shape) == 1
            yield _Layer(_path(key), key, bias if has_bias else "", tuple(array.shape))


@functools.cache
def _convolution_shapes() -> tuple[tuple[dict[str, tuple[int, ...]], bool], ...]:
    """The shapes of the convolutions of each family of nets, and whether channels come last in the file."""
    one_column, grouped = (
        {name: layer_shapes(create_model(variant), 224)[name][0] for name in CONVOLUTIONS}
        for variant in ("torchvision", "caffe")
    )
    last = {name: tuple(shape[_CHANNELS_LAST.index(i)] for i in range(4)) for name, shape in grouped.items()}
    return (one_column, False), (grouped, False), (last, True)


def _convolutions(layers: list[_Layer], arrays: Mapping[str, Any]) -> tuple[dict[str, _Layer], bool]:
    """The convolutions by name, and whether channels come last; five of other shapes are taken in order."""
    for shapes, channels_last in _convolution_shapes():
        fitting = {name: [layer for layer in layers if layer.shape == shapes[name]] for name in CONVOLUTIONS}
        if all(fitting.values()):
            first = min(fitting["conv1"], key=lambda layer: _rank(layer.weight))
            nearest = {name: _nearest(first, some)[0] for name, some in fitting.items()}
            return nearest, channels_last
    convolutions = [layer for layer in layers if len(layer.shape) == 4]
    dense = [layer for layer in layers if len(layer.shape) == 2]
    known = {shape for shapes, _ in _convolution_shapes() for shape in shapes.values()}
    if len(convolutions) != len(CONVOLUTIONS) or known.isdisjoint(layer.shape for layer in convolutions):
        some = ", ".join(f"{key} {list(array.shape)}" for key, array in arrays.items()) or "no arrays"
        raise UserError(
            f"not an AlexNet: {len(convolutions)} convolutions and {len(dense)} fully connected layers with "
            f"weights, where an AlexNet has 5 and 3 of its own shapes; it has {textwrap.shorten(some, 100)}"
        )
    return dict(zip(CONVOLUTIONS, convolutions, strict=True)), False


def _rank(name: str) -> tuple[bool, bool]:
    """Orders the nets of a file by the name of a weight; the smallest is taken."""
    return _COPY.search(name) is not None, _MODEL.search(name) is None


def _refuse_other_layers(
    found: Mapping[str, _Layer], layers: list[_Layer], arrays: Mapping[str, Any]
) -> None:
    """Raises a `UserError` if the net has parameters beside its convolutions that change what they compute.

    These are other convolutions, and whatever has a number for each filter, such as batch normalisation.
    """
    widths = {len(arrays[layer.bias]) for layer in found.values()}
    used = {key for layer in found.values() for key in (layer.weight, layer.bias)}
    heads = {layer.path for layer in layers if len(layer.shape) == 2}
    folders = {layer.path[:-1] for layer in found.values()}
    norms = [layer for layer in layers if len(layer.shape) == 1]
    other = [layer.weight for layer in norms] if widths <= {layer.shape[0] for layer in norms} else []
    for key in (key for key in arrays if key not in used):
        path = _path(key)
        if path not in heads and any(_is_in(path, folder) for folder in folders):
            other += [key] if _acts_on(arrays[key], widths) else []
    if other:
        raise UserError(f"not an AlexNet: it also has {', '.join(other[:3])}")


def _acts_on(array: Any, widths: set[int]) -> bool:
    """Whether an array may act on one of `widths` channels: a kernel, or a number for each channel."""
    if len(array.shape) < 2:
        return array.shape != () and len(array) in {1, *widths}
    return len(array.shape) > 2 and np.prod(array.shape) > 3  # three numbers normalise colours


def _dense(
    found: Mapping[str, _Layer], layers: list[_Layer], arrays: Mapping[str, Any], channels_last: bool
) -> dict[str, _Layer]:
    """fc6, fc7 and fc8 as far as the net has them; none if there are norms among them."""
    units, channels = create_model().fc_widths[0], len(arrays[found["conv5"].bias])
    sizes = {x: x.shape if channels_last else x.shape[::-1] for x in layers if len(x.shape) == 2 and x.bias}
    squares = {channels * side**2 for side in range(1, 64)}
    rivals = [x for x in layers if x.shape == found["conv5"].shape]  # of other nets in the file
    first = [x for x, size in sizes.items() if size[0] in squares and size[1] == units]
    chain = _nearest(found["conv5"], [x for x in first if found["conv5"] in _nearest(x, rivals)])[:1]
    if not chain or _has_norms(chain[0], sizes, arrays):
        return {}
    square = [x for x, size in sizes.items() if size == (units, units) and x not in chain]
    chain += _nearest(chain[0], square)[:1]
    if len(chain) == 2:  # what follows is as near as fc6 and fc7 are to each other
        level = chain[0].shared(chain[1])
        near = [x for x in sizes if x not in chain and x.shared(chain[1]) >= level]
        last = _nearest(chain[1], [x for x in near if sizes[x][0] == units])
        # Several are several heads, and if another layer reads it, that is the last.
        if len(last) == 1 and sizes[last[0]][1] not in [sizes[x][0] for x in near if x != last[0]]:
            chain += last
    return dict(zip(DENSE, chain, strict=False))


def _nearest(layer: _Layer, others: list[_Layer]) -> list[_Layer]:
    """Those whose path shares the most with that of `layer`."""
    most = max(map(layer.shared, others), default=0)
    return [x for x in others if x.shared(layer) == most]


def _has_norms(fc6: _Layer, dense: Iterable[_Layer], arrays: Mapping[str, Any]) -> bool:
    """Whether something beside fc6 has a number for each of its inputs or outputs."""
    paths, folder = {layer.path for layer in dense}, fc6.path[:-1]
    return any(
        path not in paths and _is_in(path, folder) and len(array.shape) == 1 and len(array) in {1, *fc6.shape}
        for path, array in ((_path(key), array) for key, array in arrays.items())
    )


def _path(name: str) -> tuple[str, ...]:
    return tuple(_SEPARATORS.split(name))[:-1]


def _is_in(path: tuple[str, ...], folder: tuple[str, ...]) -> bool:
    """Whether a layer is somewhere in a folder, or at the top if that is the folder."""
    return path[: len(folder)] == folder if folder else len(path) < 2


def _to_channels_first(name: str, weight: Any, layers: Layers) -> np.ndarray:
    """TensorFlow's `[h, w, I, O]` to `[O, I, h, w]`, `[I, O]` to `[O, I]` with fc6's inputs channel-major."""
    weight = np.asarray(weight)
    if name == "fc6":
        channels = len(layers["conv5"][1])
        side = int((len(weight) // channels) ** 0.5)
        weight = weight.reshape(side, side, channels, -1)
        return weight.transpose(_CHANNELS_LAST).reshape(weight.shape[-1], -1)
    return weight.transpose(_CHANNELS_LAST if weight.ndim == 4 else (1, 0))
