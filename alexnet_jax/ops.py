"""The net's operations on one column's maps `[B, H, W, C]`: convolution, normalisation, pooling.

Outputs are sized as in the 2012 code, where a window that hangs over the lower or right edge still counts
("ceil"); this is why 224 x 224 images give 55 x 55 maps after 11 x 11 windows at stride 4.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def output_size(size: int, *, window: int, stride: int, padding: int = 0, ceil: bool = True) -> int:
    """Number of windows along an axis of `size`; below 1 where not even one window fits."""
    span = size + 2 * padding - window
    if span < 0:
        return 0
    return (-(-span // stride) if ceil else span // stride) + 1


def _edges(size: int, *, window: int, stride: int, padding: int, ceil: bool) -> tuple[int, int]:
    """Padding before and after an axis so that exactly `output_size` windows fit (negative: cropped)."""
    count = output_size(size, window=window, stride=stride, padding=padding, ceil=ceil)
    return padding, (count - 1) * stride + window - size - padding


def convolution(x: Array, kernel: Array, *, stride: int = 1, padding: int = 0, ceil: bool = True) -> Array:
    """Convolves `x` `[B, H, W, I]` with `kernel` `[h, w, I, O]` (no flipping): `[B, H', W', O]`."""
    edges = [
        _edges(size, window=window, stride=stride, padding=padding, ceil=ceil)
        for size, window in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    ]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), edges, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _window_sum(x: Array, size: int, axis: int) -> Array:
    """Sum over `size` neighbours centred on each place along `axis`; places beyond the ends count 0."""
    before, after = size // 2, size - 1 - size // 2
    padded = lax.pad(
        x, jnp.zeros((), x.dtype), [(before, after, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
    )
    length = x.shape[axis]
    slices = [lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(size)]
    return functools.reduce(jnp.add, slices)


def _inverse_power(d: Array, beta: float) -> Array:
    """`d ** -beta` for positive `d`; the paper's 0.75 without a power function."""
    if beta == 0.75:
        r = lax.rsqrt(d)
        return r * lax.sqrt(r)
    return d**-beta


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _normalise(x: Array, k: float, alpha: float, beta: float, size: int, axes: tuple[int, ...]) -> Array:
    return x * _inverse_power(_denominator(x, k, alpha, size, axes), beta)


def _denominator(x: Array, k: float, alpha: float, size: int, axes: tuple[int, ...]) -> Array:
    total = jnp.square(x)
    for axis in axes:
        total = _window_sum(total, size, axis)
    return k + alpha * total


def _normalise_forward(x, k, alpha, beta, size, axes):
    # Only x is kept: the denominator is cheaper to compute again than to hold in memory.
    return _normalise(x, k, alpha, beta, size, axes), x


def _normalise_backward(k, alpha, beta, size, axes, x, g):
    # y_i = x_i d_i^-b,  d_i = k + a sum_{j near i} x_j^2, and "near" is symmetric (size is odd), so
    # dL/dx_i = g_i d_i^-b - 2 a b x_i sum_{j near i} g_j x_j d_j^-b / d_j.
    d = _denominator(x, k, alpha, size, axes)
    scaled = g * _inverse_power(d, beta)
    spread = scaled * x / d
    for axis in axes:
        spread = _window_sum(spread, size, axis)
    return (scaled - (2 * alpha * beta) * x * spread,)


_normalise.defvjp(_normalise_forward, _normalise_backward)


def local_response_norm(x: Array, *, k: float, alpha: float, beta: float, size: int) -> Array:
    """Normalises each activity by those of `size` neighbouring channels at the same place (section 3.3).

    `b_i = a_i / (k + alpha * sum_j a_j^2) ** beta` over the `size` (odd) channels j centred on i; channels
    beyond the first and last count as 0. `alpha` multiplies each term: it is not divided by `size`.

    Args:
      x: `[..., C]`.
    """
    return _normalise(x, k, alpha, beta, size, (x.ndim - 1,))


def within_map_norm(x: Array, *, k: float, alpha: float, beta: float, size: int) -> Array:
    """Normalises each activity by its `size` x `size` neighbourhood in the same map.

    The extra layer of run 145 (`layers/layers-145.cfg`), of which the paper says nothing.

    Args:
      x: `[B, H, W, C]`; `alpha` multiplies each of the `size * size` terms (`size` is odd).
    """
    return _normalise(x, k, alpha, beta, size, (1, 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: Array, window: int, stride: int, ceil: bool = True) -> Array:
    """Maximum over `window` x `window` places every `stride`, overlapping if stride < window (section 3.4).

    The gradient goes to the first maximum in row-major order, as in XLA and PyTorch.

    Args:
      x: `[B, H, W, C]`.
    """
    edges = [_edges(size, window=window, stride=stride, padding=0, ceil=ceil) for size in x.shape[1:3]]
    lowest = jnp.array(-jnp.inf, x.dtype)
    return lax.reduce_window(
        x, lowest, lax.max, (1, window, window, 1), (1, stride, stride, 1), ((0, 0), *edges, (0, 0))
    )


def _max_pool_forward(x, window, stride, ceil):
    y = max_pool(x, window, stride, ceil)
    return y, (x, y)


def _max_pool_backward(window, stride, ceil, residuals, g):
    # One shifted comparison per place in the window; XLA's own select-and-scatter is four times slower
    # on a CPU. `lax.pad` with interior padding puts each part back where its places lie.
    x, y = residuals
    (_, height, width, _), (_, rows, columns, _) = x.shape, y.shape
    reach = [(n - 1) * stride + window for n in (rows, columns)]
    low, zero = jnp.array(-jnp.inf, x.dtype), jnp.zeros((), g.dtype)
    padded = lax.pad(x, low, [(0, 0, 0), (0, reach[0] - height, 0), (0, reach[1] - width, 0), (0, 0, 0)])
    taken = jnp.zeros(y.shape, bool)
    total = jnp.zeros(padded.shape, g.dtype)
    for i in range(window):
        for j in range(window):
            last = (i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1)
            here = lax.slice(padded, (0, i, j, 0), (x.shape[0], *last, x.shape[3]), (1, stride, stride, 1))
            first = (here == y) & ~taken
            taken |= first
            total += lax.pad(
                jnp.where(first, g, zero),
                zero,
                [
                    (0, 0, 0),
                    (i, reach[0] - last[0], stride - 1),
                    (j, reach[1] - last[1], stride - 1),
                    (0, 0, 0),
                ],
            )
    # Crops what hung over the edge, or restores what no window saw.
    return (
        lax.pad(total, zero, [(0, 0, 0), (0, height - reach[0], 0), (0, width - reach[1], 0), (0, 0, 0)]),
    )


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
