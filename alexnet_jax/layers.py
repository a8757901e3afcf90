"""The operations of the net as the paper defines them, layers with weights, and initialisation.

Maps are `[B, H, W, C]`. Their sizes follow the 2012 code, where a window that hangs over the lower or right
edge still counts ("ceil"): 224 x 224 images give 55 x 55 maps after 11 x 11 windows at stride 4.
`kernels/cpu.py` has the arithmetic of norms, pooling and dense products with their gradients, and faster
convolutions for CPUs; skip it at a first reading.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.common.errors import UserError
from alexnet_jax.kernels import cpu

Array = jax.Array
Initialisers = Callable[[int], tuple[Callable, Callable]]  # fan-in -> initialisers of kernel and bias

# Their biases start at 1, so that ReLUs get positive inputs "in the early stages of learning" (section 5).
BIASED = ("conv2", "conv4", "conv5", "conv6", "fc6", "fc7")


class TooSmall(UserError):
    """The input is too small for a layer's window."""


def output_size(size: int, *, window: int, stride: int, padding: int = 0, ceil: bool = True) -> int:
    """Number of windows along an axis of `size`; 0 if none fits."""
    span = size + 2 * padding - window
    if span < 0:
        return 0
    return (-(-span // stride) if ceil else span // stride) + 1


def _edges(
    sides: Sequence[int], window: int, stride: int, padding: int, ceil: bool, name: str
) -> tuple[tuple[int, int], ...]:
    """Padding before and after each axis with which exactly `output_size` windows fit (negative: crop)."""
    counts = [output_size(side, window=window, stride=stride, padding=padding, ceil=ceil) for side in sides]
    if min(counts) < 1:
        raise TooSmall(f"{name} has windows of {window} x {window}, but sees maps of {sides[0]} x {sides[1]}")
    ends = [(n - 1) * stride + window - side - padding for n, side in zip(counts, sides, strict=True)]
    return tuple((padding, end) for end in ends)


def convolution(
    x: Array,
    kernel: Array,
    *,
    stride: int = 1,
    padding: int = 0,
    ceil: bool = True,
    name: str = "convolution",
) -> Array:
    """Convolves `x` `[B, H, W, I]` with `kernel` `[w, w, I, O]`, which is not flipped: `[B, H', W', O]`.

    Raises:
      TooSmall: no window fits; the message begins with `name`.
    """
    return _convolve(x, kernel, stride, _edges(x.shape[1:3], kernel.shape[0], stride, padding, ceil, name))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, stride: int, edges: cpu.Edges) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), edges, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


_convolve.defvjp(cpu.convolve_forward, cpu.convolve_backward)


def local_response_norm(x: Array, *, k: float, alpha: float, beta: float, size: int) -> Array:
    """Normalises each activation over `size` neighbouring channels at the same position (section 3.3).

    `b_i = a_i / (k + alpha * sum_j a_j^2) ** beta` over the `size` (odd) channels j centred on i; channels
    beyond the first and last count as 0. `alpha` multiplies each term and is not divided by `size`.

    Args:
      x: `[..., C]`; bfloat16 is normalised in float32.
    """
    return _normalise(x, cpu.Norm(k, alpha, beta, size, axes=(x.ndim - 1,)))


def within_map_norm(x: Array, *, k: float, alpha: float, beta: float, size: int) -> Array:
    """Normalises each activation over its `size` x `size` neighbourhood (`size` odd) in the same map.

    The second norm of run 145 (`layers/layers-145.cfg`), which the paper does not mention. The formula is
    that of `local_response_norm`; `alpha` multiplies each of the `size * size` terms.

    Args:
      x: `[B, H, W, C]`; bfloat16 is normalised in float32.
    """
    return _normalise(x, cpu.Norm(k, alpha, beta, size, axes=(1, 2)))


def _normalise(x: Array, norm: cpu.Norm) -> Array:
    wide = x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)  # sums of squares need the digits
    y: Any = cpu.normalise(wide, norm)
    return y.astype(x.dtype)


def max_pool(x: Array, window: int, stride: int, ceil: bool = True, name: str = "pool") -> Array:
    """Maximum over `window` x `window` places every `stride`, overlapping if stride < window (section 3.4).

    The gradient goes to the first maximum in row-major order, as in XLA and PyTorch.

    Args:
      x: `[B, H, W, C]`.

    Raises:
      TooSmall: no window fits; the message begins with `name`.
    """
    return cpu.max_pool(x, window, stride, _edges(x.shape[1:3], window, stride, 0, ceil, name))


def dropout(x: Array, key: Array, example_ids: Array, *, rate: float, scaled: bool) -> Array:
    """Zeroes a fraction `rate` of `x` `[B, ...]` (section 4.2); with `scaled`, divides the rest by 1 - rate.

    Masks are keyed by `example_ids` `[B]`, positions in the global batch, so they do not depend on the number
    of devices.
    """
    kept = 1.0 - rate

    def draw(example_id: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, example_id), kept, x.shape[1:])

    return jnp.where(jax.vmap(draw)(example_ids), x / kept if scaled else x, jnp.zeros((), x.dtype))


class Convolution(nn.Module):
    """One convolution per column; parameters `kernel` `[columns, w, w, I, O]` and `bias` `[columns, O]`."""

    features: int  # filters of one column
    window: int
    stride: int
    padding: int
    ceil: bool
    initialisers: Initialisers

    @nn.compact
    def __call__(self, xs: list[Array]) -> list[Array]:
        inputs = xs[0].shape[-1]
        kernel_init, bias_init = self.initialisers(self.window * self.window * inputs)
        kernel = self.param("kernel", kernel_init, (len(xs), self.window, self.window, inputs, self.features))
        bias = self.param("bias", bias_init, (len(xs), self.features))
        size = {"stride": self.stride, "padding": self.padding, "ceil": self.ceil, "name": self.name}
        if len(xs) > 1 and all(x is xs[0] for x in xs):  # same input: a single, wider convolution
            joined = jnp.concatenate(list(kernel), axis=-1).astype(xs[0].dtype)
            ys = jnp.split(convolution(xs[0], joined, **size), len(xs), axis=-1)
        else:
            ys = [convolution(x, kernel[i].astype(x.dtype), **size) for i, x in enumerate(xs)]
        return [y + bias[i].astype(y.dtype) for i, y in enumerate(ys)]


class Dense(nn.Module):
    """One fully connected layer per column; parameters `kernel` `[columns, I, O]` and `bias` `[columns, O]`.

    With `bias_features`, each column has only that many biases, added to its own part of the outputs.
    """

    features: int  # units of one column
    initialisers: Initialisers
    bias_features: int | None = None
    out_dtype: str | None = None  # dtype of sums and outputs; None for that of the inputs

    @nn.compact
    def __call__(self, xs: list[Array], bias_places: Sequence[Any] = ()) -> list[Array]:
        xs = [x.reshape(x.shape[0], -1) for x in xs]  # flattens maps row by row, channels last
        inputs = xs[0].shape[-1]
        kernel_init, bias_init = self.initialisers(inputs)
        kernel = self.param("kernel", kernel_init, (len(xs), inputs, self.features))
        bias = self.param("bias", bias_init, (len(xs), self.bias_features or self.features))
        biases = list(bias)
        if bias_places:
            zeros = jnp.zeros(self.features, bias.dtype)
            biases = [
                lax.dynamic_update_slice_in_dim(zeros, b, place, axis=0)
                for b, place in zip(biases, bias_places, strict=True)
            ]
        dtype = self.out_dtype or xs[0].dtype
        # One product batched over columns: slicing the kernel by column would copy it.
        kernel = kernel.astype(xs[0].dtype)
        ys: Any = cpu.connect(jnp.stack(xs), kernel, dtype)
        return [y + b.astype(dtype) for y, b in zip(ys, biases, strict=True)]


def initialisers(scheme: str, hidden_bias: float | None, name: str, fan_in: int) -> tuple[Callable, Callable]:
    """Initialisers of the kernel and bias of layer `name`, by fan-in."""
    bias = hidden_bias if name in BIASED else None
    if scheme == "torch":  # PyTorch's default for its convolutions and linear layers
        bound = 1.0 / math.sqrt(fan_in)

        def uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return uniform, uniform if bias is None else nn.initializers.constant(bias)
    std = {
        "paper": 0.01,  # section 5
        "original": 0.03 if name in ("conv3", "conv4", "conv5", "conv6") else 0.01,  # layers-145.cfg, run 146
        "caffe": 0.005 if name in ("fc6", "fc7") else 0.01,  # bvlc_alexnet train_val.prototxt
        "he": math.sqrt(2.0 / fan_in),
    }[scheme]
    if bias is None:
        bias = {"paper": 1.0, "original": 1.0, "caffe": 0.1, "he": 0.0}[scheme] if name in BIASED else 0.0
    return nn.initializers.normal(std), nn.initializers.constant(bias)
