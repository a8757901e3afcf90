"""The second input of conv2 in runs 96 to 141: the image, blurred and at a quarter of its size.

`blur0`, `nails0` and the first of the two inputs of `conv2a` and `conv2b` in `layers/layers-141.cfg`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax import layers

Array = jax.Array

RADIUS, STD, STEP = 4, 4.0, 4  # pixels: 9 taps, the Gaussian's std, and every fourth pixel stays
_GAUSSIAN = [math.exp(-(distance**2) / (2 * STD**2)) for distance in range(-RADIUS, RADIUS + 1)]
WEIGHTS = tuple(tap / sum(_GAUSSIAN) for tap in _GAUSSIAN)  # layer.py:454-456


def blurred(images: Array) -> Array:
    """Every fourth pixel of the blurred images `[B, H, W, C]`: `[B, ceil(H / 4), ceil(W / 4), C]`.

    Beyond the edges are zeros, as if the mean went on there (cuda-convnet's conv_util.cu:356). The pixels
    that stay are centred, at 2, 6, ..., 222 of 224 (layer.py:422-423). bfloat16 is summed in float32.
    """
    x: Any = images if images.dtype.itemsize >= 4 else images.astype(jnp.float32)
    for axis in (1, 2):
        span = (x.shape[axis] - 1) // STEP * STEP  # from the first pixel that stays to the last
        start = (x.shape[axis] - span) // 2
        x = jnp.pad(x, [(RADIUS, RADIUS) if axis == other else (0, 0) for other in range(4)])
        taps = [lax.slice_in_dim(x, start + i, start + i + span + 1, STEP, axis) for i in range(len(WEIGHTS))]
        x = sum(weight * tap for weight, tap in zip(WEIGHTS, taps, strict=True))
    return x.astype(images.dtype)


def convolution(convolve: Callable[[Array, Array], Array], low: Array, x: Array, kernel: Array) -> Array:
    """`convolve`, a convolution of `x`, plus one of the low-resolution image at stride 2: `[B, H', W', O]`.

    Both have the same number of windows. Where they would not (with images of 60 x 60, not of 224 x 224), the
    released code refuses the net; here the low-resolution image is cut, or continued with zeros.

    Args:
      low: `[B, h, w, C]`; x: `[B, H, W, I]`.
      kernel: `[w, w, I + C, O]`, the filters for `x` and after them those for the image.
    """
    inputs, window = x.shape[-1], kernel.shape[0]
    y = convolve(x, kernel[:, :, :inputs])
    ends = [2 * (y.shape[axis] - 1) + window - low.shape[axis] for axis in (1, 2)]
    low = lax.pad(low, jnp.zeros((), low.dtype), [(0, 0, 0), *((0, end, 0) for end in ends), (0, 0, 0)])
    of_low: Any = layers.convolution(low, kernel[:, :, inputs:], stride=2)
    return y + of_low
