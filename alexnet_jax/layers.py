"""The net's operations on one column's maps `[B, H, W, C]`: convolution, normalisation, pooling.

Outputs are sized as in the 2012 code, where a window that hangs over the lower or right edge still counts
("ceil"); this is why 224 x 224 images give 55 x 55 maps after 11 x 11 windows at stride 4.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Edges = tuple[tuple[int, int], ...]  # padding before and after the rows and the columns of the maps


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
    edges = tuple(
        _edges(size, window=window, stride=stride, padding=padding, ceil=ceil)
        for size, window in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    )
    return _convolve(x, kernel, stride, edges)


def _xla_convolution(x: Array, kernel: Array, stride: int, edges: Edges) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), edges, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


_convolve = jax.custom_vjp(_xla_convolution, nondiff_argnums=(2, 3))


def _convolve_forward(x, kernel, stride, edges):
    how = {"stride": stride, "edges": edges}
    y = lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_convolution_on_cpu, **how),
        default=functools.partial(_xla_convolution, **how),
    )
    return y, (x, kernel)


def _convolve_backward(stride, edges, residuals, g):
    how = {"stride": stride, "edges": edges}
    return lax.platform_dependent(
        *residuals,
        g,
        cpu=functools.partial(_gradients_on_cpu, **how),
        default=lambda x, kernel, g: jax.vjp(functools.partial(_xla_convolution, **how), x, kernel)[1](g),
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)

FEW_OUTPUTS = 128  # below, YNNPACK's convolutions are slower than Eigen's (two cores, batch 128)


def _convolution_on_cpu(x: Array, kernel: Array, *, stride: int, edges: Edges) -> Array:
    """A convolution inside a training step on a CPU: one of few outputs goes to Eigen.

    XLA gives a convolution to YNNPACK, which is the faster of the two beside other work, but leaves much of
    the second core idle where there are few outputs (`benchmarks.kernels` has conv1 and the gradient of
    conv2's inputs). YNNPACK takes no convolution whose outputs are higher than its inputs, or that has 16
    channels at most (`IsConvolutionOpSupportedByYnn` in XLA's `ynn_support.cc`); and so there are a few more
    rows here, which are dropped. At a stride s, s rows become channels first: otherwise the inputs would be s
    times as high as the outputs. An XLA without YNNPACK computes the rows for nothing, 2 to 5 % of these two.
    A program that runs the net forward only has an option of XLA instead (`host.forward_options`).
    """
    (batch, _, width, inputs), (window_height, window_width, _, outputs) = x.shape, kernel.shape
    (above, below), sides = edges
    count = (x.shape[1] + above + below - window_height) // stride + 1
    squares = -(-window_height // stride)  # the window's height in rows of channels
    height = x.shape[1] if stride == 1 else count - 1 + squares
    more = max(height + 1 - count, 0)
    if outputs >= FEW_OUTPUTS or max(inputs, outputs) <= 16 or more > count // 8:
        return _xla_convolution(x, kernel, stride, edges)
    if stride > 1:
        zero = jnp.zeros((), x.dtype)
        ends = (above, height * stride - above - x.shape[1], 0)
        x = lax.pad(x, zero, [(0, 0, 0), ends, (0, 0, 0), (0, 0, 0)])
        x = x.reshape(batch, height, stride, width, inputs).transpose(0, 1, 3, 2, 4)
        x = x.reshape(batch, height, width, stride * inputs)
        ends = (0, squares * stride - window_height, 0)
        kernel = lax.pad(kernel, zero, [ends, (0, 0, 0), (0, 0, 0), (0, 0, 0)])
        kernel = kernel.reshape(squares, stride, window_width, inputs, outputs).transpose(0, 2, 1, 3, 4)
        kernel = kernel.reshape(squares, window_width, stride * inputs, outputs)
        above = below = 0
    y = lax.conv_general_dilated(
        x,
        kernel,
        (1, stride),
        ((above, below + more), sides),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y[:, :count]


CACHED_BYTES = 4 * 2**20  # of maps that a product finds still in the cache after the one before


def _gradients_on_cpu(x: Array, kernel: Array, g: Array, *, stride: int, edges: Edges) -> tuple[Array, Array]:
    """The gradients of a convolution's inputs and kernel, from that of its outputs."""
    window = kernel.shape[:2]
    if stride == 1:
        # A convolution with the kernel turned around, as XLA has it. But inside a loop XLA would fold the
        # exchange of the kernel's channels into it, and what it then has is five times slower.
        turned = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
        around = tuple(
            (size - 1 - before, size - 1 - after) for size, (before, after) in zip(window, edges, strict=True)
        )
        of_x = _convolution_on_cpu(g, turned, stride=1, edges=around)
    else:
        (of_x,) = jax.vjp(lambda x: _xla_convolution(x, kernel, stride, edges), x)[1](g)
    return of_x, _kernel_gradient(x, g, window=window, stride=stride, edges=edges)


def images_at_once(batch: int, image_bytes: int) -> int:
    """Images of a group, so that it fits `CACHED_BYTES` and, where that can be, all groups are full."""
    most = min(max(CACHED_BYTES // image_bytes, 1), batch)
    images = max(n for n in range(1, most + 1) if batch % n == 0)
    if 2 * images < most:  # as for a prime batch: the last group is filled up
        images = -(-batch // -(-batch // most))
    return images


def _kernel_gradient(x: Array, g: Array, *, window: tuple[int, ...], stride: int, edges: Edges) -> Array:
    """The gradient of a convolution's kernel on a CPU: one matrix product for each place in the window.

    XLA's own is a convolution whose windows are as large as the maps, and slower (`benchmarks.kernels`). A
    window at `stride` s is one at stride 1 over squares of s x s places taken as channels, which makes of
    conv1's 121 thin products 9 of a good size. It goes a few images at a time, so that what one product has
    read is still in the cache for the next; and `g`, which all products share, comes first, as what is on the
    left of a product has to be transposed.

    Args:
      x: the inputs `[B, H, W, I]`; g: the gradient of the outputs `[B, H', W', O]`.

    Returns:
      `[h, w, I, O]`.
    """
    (batch, rows, columns, outputs), inputs = g.shape, x.shape[3]
    squares = [-(-size // stride) for size in window]  # the window's height and width in squares
    depth = stride * stride * inputs
    wide = x.dtype if x.dtype.itemsize > 4 else jnp.float32  # sums of bfloat16 are float32

    # All maps in whole squares, all groups of images full; zeros add nothing.
    images = images_at_once(batch, (x.nbytes + g.nbytes) // batch)
    groups = -(-batch // images)
    zero, more = jnp.zeros((), x.dtype), groups * images - batch
    padding = [(0, more, 0)]
    for count, square, size, (before, _) in zip((rows, columns), squares, x.shape[1:3], edges, strict=True):
        padding.append((before, (count - 1 + square) * stride - size - before, 0))
    x = lax.pad(x, zero, [*padding, (0, 0, 0)])
    g = lax.pad(g, zero, [(0, more, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0)])

    def add(total: Array, group: tuple[Array, Array]) -> tuple[Array, None]:
        x, g = group
        images, height, width, _ = x.shape
        x = x.reshape(images, height // stride, stride, width // stride, stride, inputs)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(images, height // stride, width // stride, depth)
        g = lax.optimization_barrier(g.reshape(-1, outputs).T)  # else XLA would transpose each x instead
        products = [
            jnp.matmul(g, x[:, i : i + rows, j : j + columns].reshape(-1, depth), preferred_element_type=wide)
            for i in range(squares[0])
            for j in range(squares[1])
        ]
        return total + jnp.stack(products), None

    total = jnp.zeros((squares[0] * squares[1], outputs, depth), wide)
    x, g = (a.reshape(groups, -1, *a.shape[1:]) for a in (x, g))
    total, _ = lax.scan(add, total, (x, g))

    total = total.reshape(*squares, outputs, stride, stride, inputs).transpose(0, 3, 1, 4, 5, 2)
    total = total.reshape(squares[0] * stride, squares[1] * stride, inputs, outputs)
    return total[: window[0], : window[1]].astype(g.dtype)


def connect(x: Array, kernel: Array, dtype: Any) -> Array:
    """All columns' products at once, `[columns, B, I]` by `[columns, I, O]`: `[columns, B, O]` of `dtype`.

    The gradient of the kernel is made in the kernel's own order. JAX makes it the other way round, and where
    there is one column XLA then updates fc6's 38 million weights against the order they lie in: 0.5 s of a
    step of 2 s on two cores.
    """
    return _connect(x, kernel, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _connect(x: Array, kernel: Array, dtype: Any) -> Array:
    return lax.dot_general(x, kernel, (((2,), (1,)), ((0,), (0,))), preferred_element_type=dtype)


def _connect_forward(x, kernel, dtype):
    return _connect(x, kernel, dtype), (x, kernel)


def _connect_backward(dtype, residuals, g):
    x, kernel = residuals
    of_x = lax.dot_general(g, kernel, (((2,), (2,)), ((0,), (0,))), preferred_element_type=x.dtype)
    of_kernel = lax.dot_general(x, g, (((1,), (1,)), ((0,), (0,))), preferred_element_type=kernel.dtype)
    return of_x, of_kernel


_connect.defvjp(_connect_forward, _connect_backward)


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


def max_pool(x: Array, window: int, stride: int, ceil: bool = True) -> Array:
    """Maximum over `window` x `window` places every `stride`, overlapping if stride < window (section 3.4).

    The gradient goes to the first maximum in row-major order, as in XLA and PyTorch.

    Args:
      x: `[B, H, W, C]`.
    """
    edges = tuple(_edges(size, window=window, stride=stride, padding=0, ceil=ceil) for size in x.shape[1:3])
    return _max_pool(x, window, stride, edges)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: Array, window: int, stride: int, edges: Edges) -> Array:
    return functools.reduce(jnp.maximum, _places(x, window, stride, edges))


def _places(x: Array, window: int, stride: int, edges: Edges) -> list[Array]:
    """What the windows see at each of their places, in row-major order, each `[B, H', W', C]`.

    Shifted maps in the plain language of arrays: XLA's own windows, and still more their gradient
    (`select_and_scatter`), are several times slower on a CPU.
    """
    lowest = jnp.array(-jnp.inf, x.dtype)
    x = lax.pad(x, lowest, [(0, 0, 0), *((*edge, 0) for edge in edges), (0, 0, 0)])
    batch, height, width, channels = x.shape
    reach = height - window + 1, width - window + 1
    return [
        lax.slice(x, (0, i, j, 0), (batch, i + reach[0], j + reach[1], channels), (1, stride, stride, 1))
        for i in range(window)
        for j in range(window)
    ]


def _max_pool_forward(x, window, stride, edges):
    # All that is kept is where in its window each maximum was first found: a byte.
    first, *others = _places(x, window, stride, edges)
    y, found = first, jnp.zeros(first.shape, jnp.uint8)
    for place, here in enumerate(others, 1):
        found = jnp.where(here > y, jnp.uint8(place), found)
        y = jnp.maximum(here, y)
    return y, found


def _max_pool_backward(window, stride, edges, found, g):
    # `lax.pad` with `stride - 1` between the places puts each part back where it was found; its negative
    # padding crops what hung over the edge.
    zero = jnp.zeros((), g.dtype)
    total = None
    for place in range(window * window):
        spread = []
        for offset, (_, beyond) in zip(divmod(place, window), edges, strict=True):
            spread.append((offset, window - 1 - offset - beyond, stride - 1))
        part = lax.pad(jnp.where(found == place, g, zero), zero, [(0, 0, 0), *spread, (0, 0, 0)])
        total = part if total is None else total + part
    return (total,)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
