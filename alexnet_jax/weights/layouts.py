"""Conversion between this package's parameters and torchvision's and Caffe's layout.

Both have one weight and one bias per layer: `[O, I, h, w]` for convolutions (I inputs per group) and
`[O, I]` for fully connected layers, where fc6's inputs are channel-major. Ours have a leading column axis and
channels last.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from alexnet_jax.common.errors import UserError
from alexnet_jax.model import AlexNet
from alexnet_jax.variants import layer_names, param_shapes

# torchvision's names are positions in two `Sequential`s.
TORCH_NAMES = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "fc8": "classifier.6",
}
COMMON_LAYERS = tuple(TORCH_NAMES)
CONVOLUTIONS, DENSE = COMMON_LAYERS[:5], COMMON_LAYERS[5:]

Layers = dict[str, tuple[Any, Any]]  # weight and bias by layer


def layer_shapes(model: AlexNet, image_size: int) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The shapes of each layer's weight and bias in torchvision's and Caffe's layout.

    Raises:
      UserError: the net cannot be expressed in that layout.
    """
    if "fc8" not in layer_names(model):
        layers = ", ".join(layer_names(model))
        raise UserError(
            f"a net of {layers}: other programs' AlexNets have other layers, so it can be neither imported "
            "nor exported"
        )
    independent = model.columns > 1 and not set(DENSE) <= set(model.cross_column_layers)
    for key, differs, theirs in (
        ("conv6", model.conv6, "no sixth convolution"),
        ("low_resolution", model.low_resolution, "no second input of conv2"),
        ("removed_layers", model.removed_layers, "every layer"),
        ("cross_column_layers", independent, "no independent columns of fully connected layers"),
    ):
        if differs:
            raise UserError(
                f"model.{key}={getattr(model, key)}: other programs' AlexNets have {theirs}, so this net can "
                "be neither imported nor exported"
            )
    shapes = {}
    for name, params in param_shapes(model, image_size).items():
        columns, *window, inputs, outputs = params["kernel"].shape
        outputs = model.num_classes if name == "fc8" else columns * outputs
        shapes[name] = ((outputs, inputs, *window), (outputs,))
    return {name: shapes[name] for name in COMMON_LAYERS}


def to_params(model: AlexNet, layers: Layers, image_size: int) -> dict[str, Any]:
    """Converts layers to the net's float32 parameters; the exact inverse of `to_layers`."""
    shapes = param_shapes(model, image_size)
    params = {}
    for name, (weight, bias) in layers.items():
        columns, *_, outputs = shapes[name]["kernel"].shape
        weight, bias = np.asarray(weight, np.float32), np.asarray(bias, np.float32)
        padding = columns * outputs - len(bias)  # fc8's last column, if the number of classes is odd
        weight = np.pad(weight, [(0, padding), *[(0, 0)] * (weight.ndim - 1)])
        bias = np.pad(bias, (0, padding))
        weight = weight.reshape(columns, outputs, *weight.shape[1:])
        if name == "fc6":
            weight = _reorder_inputs(weight, model.widths[4], to_channels_last=True)
        axes = (0, 3, 4, 2, 1) if weight.ndim == 5 else (0, 2, 1)  # window, inputs, outputs
        kernel = np.ascontiguousarray(weight.transpose(axes))
        params[name] = {"kernel": kernel, "bias": bias.reshape(columns, outputs)}
    return jax.device_put(params)  # jnp.asarray would compile a program for each shape


def to_layers(model: AlexNet, params: Mapping[str, Any]) -> Layers:
    """Converts the net's parameters to layers of float32 arrays."""
    layers = {}
    for name in (name for name in COMMON_LAYERS if name in params):
        kernel, bias = (np.asarray(params[name][key], np.float32) for key in ("kernel", "bias"))
        weight = kernel.transpose((0, 4, 3, 1, 2) if kernel.ndim == 5 else (0, 2, 1))
        if name == "fc6":
            weight = _reorder_inputs(weight, model.widths[4], to_channels_last=False)
        weight, bias = weight.reshape(-1, *weight.shape[2:]), bias.reshape(-1)
        used = model.num_classes if name == "fc8" else len(bias)
        layers[name] = (np.ascontiguousarray(weight[:used]), bias[:used])
    return layers


def _reorder_inputs(weight: np.ndarray, channels: int, *, to_channels_last: bool) -> np.ndarray:
    """Reorders fc6's inputs `[columns, O, I]` from channel-major to position-major, or back."""
    positions = weight.shape[-1] // channels
    before = (channels, positions) if to_channels_last else (positions, channels)
    return weight.reshape(*weight.shape[:2], *before).swapaxes(2, 3).reshape(weight.shape)


def swap_colours(layers: Layers) -> Layers:
    """Converts conv1 from BGR to RGB or back."""
    weight, bias = layers["conv1"]
    if np.ndim(weight) != 4:
        return layers  # the shape check reports it
    return {**layers, "conv1": (np.ascontiguousarray(np.asarray(weight)[:, ::-1]), bias)}
