"""Convolutions by device: on NVIDIA, one at stride s is one at stride 1 over blocks of s x s places.

With this space-to-depth, conv1's windows of 11 x 11 places with 3 channels are 3 x 3 blocks with 48 channels
each, a depth that matrix units are made for. Maps are `[B, H, W, C]`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Edges = tuple[tuple[int, int], ...]  # padding before and after the maps' rows and columns

# Takes x, kernel, window_strides and padding.
xla_convolution = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def by_device(stride: int, edges: Edges) -> dict[str, Callable]:
    """How each platform convolves, for `lax.platform_dependent`; the functions take `x` and `kernel`."""
    plain = functools.partial(xla_convolution, window_strides=(stride, stride), padding=edges)
    over_blocks = functools.partial(convolution, stride=stride, edges=edges)
    return {"default": plain} if stride == 1 else {"cuda": over_blocks, "default": plain}


def rules(ways: Callable[..., dict[str, Callable]]) -> tuple[Callable, Callable]:
    """The `defvjp` rules of a convolution of `x`, `kernel` and sizes, of which `ways` makes a `by_device`.

    Its gradients have a `lax.platform_dependent` of their own. JAX's gradient of the forward pass's leaves
    the choice to run time on several devices, and there CPUs run XLA's convolutions up to fifty times slower.
    """

    def forward(x: Array, kernel: Array, *sizes: Any) -> Any:
        return lax.platform_dependent(x, kernel, **ways(x, kernel, *sizes)), (x, kernel)

    def backward(*given: Any) -> Any:
        *sizes, inputs, g = given
        pullbacks = {
            device: lambda x, kernel, g, way=way: jax.vjp(way, x, kernel)[1](g)
            for device, way in ways(*inputs, *sizes).items()
        }
        return lax.platform_dependent(*inputs, g, **pullbacks)

    return forward, backward


def convolution(x: Array, kernel: Array, *, stride: int, edges: Edges) -> Array:
    """The convolution of `x` `[B, H, W, I]` with `kernel` `[h, w, I, O]`: `[B, H', W', O]`."""
    outputs, blocks = counts(x, kernel.shape[:2], stride, edges)
    x = as_channels(pad(x, (0, 0), *padding(x, outputs, blocks, stride, edges)), stride)
    return xla_convolution(x, kernel_of(kernel, stride), (1, 1), ((0, 0), (0, 0)))


def counts(x: Array, window: Sequence[int], stride: int, edges: Edges) -> tuple[list[int], list[int]]:
    """Rows and columns of the outputs; height and width of the window in blocks."""
    sides = zip(x.shape[1:3], edges, window, strict=True)
    outputs = [(side + sum(edge) - size) // stride + 1 for side, edge, size in sides]
    return outputs, [-(-size // stride) for size in window]


def padding(
    x: Array, outputs: Sequence[int], blocks: Sequence[int], stride: int, edges: Edges
) -> list[tuple[int, int]]:
    """Padding of the rows and columns of `x` to the full blocks that its windows see; negative: crop."""
    return [
        (before, (count - 1 + block) * stride - size - before)
        for count, block, size, (before, _) in zip(outputs, blocks, x.shape[1:3], edges, strict=True)
    ]


def as_channels(x: Array, stride: int) -> Array:
    """Space-to-depth, `[B, H, W, I]` to `[B, H / s, W / s, s * s * I]`.

    A stride-s window is then a stride-1 window over s x s blocks (conv1: 9 blocks instead of 121 places).
    """
    batch, height, width, inputs = x.shape
    x = x.reshape(batch, height // stride, stride, width // stride, stride, inputs)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // stride, width // stride, -1)


def kernel_of(kernel: Array, stride: int) -> Array:
    """The kernel over blocks, `[h, w, I, O]` to `[h / s, w / s, s * s * I, O]`, rounded up with zeros."""
    inputs, outputs = kernel.shape[2:]
    height, width = (-(-size // stride) for size in kernel.shape[:2])
    ends = [(0, n * stride - size) for n, size in zip((height, width), kernel.shape[:2], strict=True)]
    kernel = pad(kernel, *ends).reshape(height, stride, width, stride, inputs, outputs)
    return kernel.transpose(0, 2, 1, 3, 4, 5).reshape(height, width, -1, outputs)


def pad(x: Array, *ends: tuple[int, int]) -> Array:
    """Zero-pads the first axes before and after; negative values crop."""
    more = [(0, 0)] * (x.ndim - len(ends))
    return lax.pad(x, jnp.zeros((), x.dtype), [(before, after, 0) for before, after in (*ends, *more)])
