"""The operations of the net as the paper defines them, and the initial weights.

Maps are `[B, H, W, C]`. Their sizes follow the 2012 code, where a window that hangs over the lower or right
edge still counts ("ceil"): 224 x 224 images give 55 x 55 maps after 11 x 11 windows at stride 4.
The gradients of norms, pooling, dense products and biases are in `kernels/`.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.common.errors import UserError
from alexnet_jax.kernels import blocks, gradients
from alexnet_jax.kernels.blocks import Edges

Array = jax.Array

# Layers with positive initial biases, so that ReLUs get positive inputs "in the early stages of learning": 1
# in section 5, which has no conv6 (run 146 has the same), 0.1 in Caffe.
BIASED = ("conv2", "conv4", "conv5", "conv6", "fc6", "fc7")


class TooSmall(UserError):
    """The input is too small for a layer's window."""


def output_size(size: int, *, window: int, stride: int, padding: int = 0, ceil: bool = True) -> int:
    """Number of windows along an axis of `size`; 0 if none fits."""
    span = size + 2 * padding - window
    if span < 0:
        return 0
    return (-(-span // stride) if ceil else span // stride) + 1


def _edges(sides: Sequence[int], window: int, stride: int, padding: int, ceil: bool, name: str) -> Edges:
    """Padding before and after each axis with which exactly `output_size` windows fit (negative: crop)."""
    counts = [output_size(side, window=window, stride=stride, padding=padding, ceil=ceil) for side in sides]
    if min(counts) < 1:
        raise TooSmall(f"{name} has windows of {window} x {window}, but sees maps of {sides[0]} x {sides[1]}")
    ends = [(n - 1) * stride + window - side - padding for n, side in zip(counts, sides, strict=True)]
    return tuple((padding, end) for end in ends)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def convolution(
    x: Array, kernel: Array, stride: int = 1, padding: int = 0, ceil: bool = True, name: str = "convolution"
) -> Array:
    """Convolves `x` `[B, H, W, I]` with `kernel` `[w, w, I, O]`, which is not flipped: `[B, H', W', O]`.

    Raises:
      TooSmall: no window fits; the message begins with `name`.
    """
    return lax.platform_dependent(x, kernel, **_ways(x, kernel, stride, padding, ceil, name))


def _ways(x: Array, kernel: Array, stride: int, *others: Any) -> dict[str, Callable]:
    return blocks.by_device(stride, _edges(x.shape[1:3], kernel.shape[0], stride, *others))


convolution.defvjp(*blocks.rules(_ways))


@jax.custom_vjp
def add_bias(y: Array, bias: Array) -> Array:
    """Adds `bias` `[O]` to maps `[B, H, W, O]`, in the type of the maps."""
    return y + bias.astype(y.dtype)


add_bias.defvjp(lambda y, bias: (add_bias(y, bias), bias), gradients.bias_gradient)


def local_response_norm(x: Array, *, k: float, alpha: float, beta: float, size: int) -> Array:
    """Normalises each activation over `size` neighbouring channels at the same position (section 3.3).

    `b_i = a_i / (k + alpha * sum_j a_j^2) ** beta` over the `size` (odd) channels j centred on i; channels
    beyond the first and last count as 0. `alpha` multiplies each term and is not divided by `size`.
    `x` is `[..., C]`; bfloat16 is normalised in float32.
    """
    return _normalise(x, k, alpha, beta, size, (x.ndim - 1,))


def within_map_norm(x: Array, *, k: float, alpha: float, beta: float, size: int) -> Array:
    """Normalises each activation over its `size` x `size` neighbourhood (`size` odd) in the same map.

    The second norm of run 145 (`layers/layers-145.cfg`), which the paper does not mention. The formula is
    that of `local_response_norm`, with a sum of `size * size` terms; `x` is `[B, H, W, C]`.
    """
    return _normalise(x, k, alpha, beta, size, (1, 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _normalise(x: Array, k: float, alpha: float, beta: float, size: int, axes: tuple[int, ...]) -> Array:
    a = gradients.in_float32(x)
    squares = gradients.sum_of_neighbours(jnp.square(a), size, axes)
    y = a * gradients.inverse_power(k + alpha * squares, beta)  # a / (k + alpha * squares) ** beta
    return y.astype(x.dtype)


# Keeps only the inputs: the denominator is cheaper to compute again than to keep in memory.
_normalise.defvjp(lambda x, *constants: (_normalise(x, *constants), x), gradients.norm_gradient)


def max_pool(
    x: Array, window: int, stride: int, ceil: bool = True, name: str = "pool", ties: str = "first"
) -> Array:
    """Maximum over windows of `x` `[B, H, W, C]`, which overlap if stride < window (section 3.4).

    The gradient of a window (at most 4 wide) with several equal maxima goes to the `first` in row-major
    order, as in XLA and PyTorch, or in full to `all`, as in cuda-convnet (conv_util.cu:1547-1559).
    Raises `TooSmall` as `convolution` does.
    """
    return _maximum(x, window, stride, _edges(x.shape[1:3], window, stride, 0, ceil, name), ties)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _maximum(x: Array, window: int, stride: int, edges: Edges, ties: str) -> Array:
    del ties
    return functools.reduce(jnp.maximum, gradients.shifted_maps(x, window, stride, edges))


_maximum.defvjp(gradients.max_pool_forward, gradients.max_pool_gradient)


def dense(xs: Sequence[Array], kernel: Array, biases: Iterable[Array], dtype: Any = None) -> list[Array]:
    """Fully connected: each column's `x` `[B, ...]` times its `kernel[i]` `[I, O]`, plus its bias `[O]`.

    Maps are flattened row by row, channels last.

    Args:
      kernel: `[columns, I, O]`. One product batched over columns: slicing it by column would copy it.
      dtype: of sums and outputs; None for that of the inputs.
    """
    stacked = jnp.stack([x.reshape(x.shape[0], -1) for x in xs])
    dtype = dtype or stacked.dtype
    ys: Any = products(stacked, kernel.astype(stacked.dtype), dtype)
    return [y + bias.astype(dtype) for y, bias in zip(ys, biases, strict=True)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def products(x: Array, kernel: Array, dtype: Any) -> Array:
    """The product of each column, `[columns, B, I]` by `[columns, I, O]`: `[columns, B, O]` of `dtype`."""
    return lax.dot_general(x, kernel, (((2,), (1,)), ((0,), (0,))), preferred_element_type=dtype)


products.defvjp(lambda x, k, dtype: (products(x, k, dtype), (x, k)), gradients.products_gradients)


def by_example(key: Array, example_ids: Array, draw: Callable[[Array], Array]) -> Array:
    """`draw(key)` for each of `example_ids` `[B]`, positions in the global batch: the same on any devices."""
    return jax.vmap(lambda example_id: draw(jax.random.fold_in(key, example_id)))(example_ids)


def dropout(x: Array, key: Array, example_ids: Array, *, rate: float, scaled: bool) -> Array:
    """Zeroes a fraction `rate` of `x` `[B, ...]` (section 4.2); `scaled` divides the rest by 1 - rate."""
    kept = 1.0 - rate
    mask = by_example(key, example_ids, lambda key: jax.random.bernoulli(key, kept, x.shape[1:]))
    return jnp.where(mask, x / kept if scaled else x, jnp.zeros((), x.dtype))


class Parameters(nn.Module):
    """The parameters of a layer, `kernel` and `bias` of these shapes, each with a leading axis of columns."""

    @nn.compact
    def __call__(self, init: tuple[Callable, Callable], kernel: Any, bias: Any) -> tuple[Array, Array]:
        return self.param("kernel", init[0], kernel), self.param("bias", init[1], bias)


# Inputs of a unit in the paper's net, whose weights the schemes with a fixed std were made for.
FULL_FAN_IN = {
    **{"conv1": 11 * 11 * 3, "conv2": 5 * 5 * 48, "conv3": 3 * 3 * 256, "conv4": 3 * 3 * 192},
    **{"conv5": 3 * 3 * 192, "conv6": 3 * 3 * 256, "fc6": 6 * 6 * 256, "fc7": 4096, "fc8": 4096},
}


def initialisers(
    scheme: str, scale: str, hidden_bias: float | None, name: str, fan_in: int
) -> tuple[Callable, Callable]:
    """Initialisers of the kernel and bias of layer `name`; arguments are fields of `AlexNet`."""
    bound = 1.0 / math.sqrt(fan_in)

    def uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    std, bias = {
        "paper": (0.01, 1.0),  # section 5
        "original": (0.03 if name in ("conv3", "conv4", "conv5", "conv6") else 0.01, 1.0),  # runs 145, 146
        "caffe": (0.005 if name in ("fc6", "fc7") else 0.01, 0.1),  # bvlc_alexnet train_val.prototxt
        "he": (math.sqrt(2.0 / fan_in), 0.0),
        "torch": (None, None),  # PyTorch's default for its convolutions and linear layers: uniform
    }[scheme]
    if std is not None and scale == "fan_in":
        std *= math.sqrt(FULL_FAN_IN[name] / fan_in)
    if name in BIASED and hidden_bias is not None:
        bias = hidden_bias
    elif name not in BIASED and bias is not None:
        bias = 0.0
    kernel = uniform if std is None else nn.initializers.normal(std)
    return kernel, uniform if bias is None else nn.initializers.constant(bias)
