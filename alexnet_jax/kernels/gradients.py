"""The operations inside norms, pooling and dense products, with their gradients and those of biases.

XLA's own gradients are slower on CPUs, in places several times (`python -m benchmarks.kernels`). Maps are
`[B, H, W, C]`.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Edges = tuple[tuple[int, int], ...]  # padding before and after the maps' rows and columns


def products_gradients(dtype: Any, inputs: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    """The gradients of `layers.products`; the kernel's has the kernel's axis order.

    JAX's own does not, and with one column XLA then updates fc6's 38 million weights against their memory
    order: 0.5 s of a 2 s step on two cores.
    """
    del dtype
    x, kernel = inputs
    x_gradient = lax.dot_general(g, kernel, (((2,), (2,)), ((0,), (0,))), preferred_element_type=x.dtype)
    kernel_gradient = lax.dot_general(x, g, (((1,), (1,)), ((0,), (0,))), preferred_element_type=kernel.dtype)
    return x_gradient, kernel_gradient


def bias_gradient(bias: Array, g: Array) -> tuple[Array, Array]:
    """The gradients of `layers.add_bias`; the bias's is summed in its own type."""
    g = barrier(g)  # else XLA computes it anew in each kernel that reads it
    return g, jnp.sum(g, axis=(0, 1, 2), dtype=bias.dtype)


def sum_of_neighbours(x: Array, size: int, axes: tuple[int, ...]) -> Array:
    """Sum over the `size` neighbours along each of `axes`, centred on each position; 0 beyond the ends."""
    before, after = size // 2, size - 1 - size // 2
    for axis in axes:
        ends = [(before, after, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
        padded = lax.pad(x, jnp.zeros((), x.dtype), ends)
        slices = [lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(size)]
        x = functools.reduce(jnp.add, slices)
    return x


def inverse_power(d: Array, beta: float) -> Array:
    """`d ** -beta` for positive `d`; for the paper's 0.75 without a power function."""
    if beta == 0.75:
        r = lax.rsqrt(d)
        return r * lax.sqrt(r)
    return d**-beta


def norm_gradient(
    k: float, alpha: float, beta: float, size: int, axes: tuple[int, ...], x: Array, g: Array
) -> tuple[Array]:
    """The gradient of the norms' inputs `x`, from the gradient `g` of their outputs."""
    # y_i = x_i d_i^-b,  d_i = k + a sum_{j near i} x_j^2, and "near" is symmetric (size is odd), so
    # dL/dx_i = g_i d_i^-b - 2 a b x_i sum_{j near i} g_j x_j d_j^-b / d_j.
    # Without the barrier XLA keeps the forward pass's d in memory, in float32, instead of computing it again.
    dtype, (x, g) = x.dtype, map(in_float32, (barrier(x), g))
    d = k + alpha * sum_of_neighbours(jnp.square(x), size, axes)
    scaled = g * inverse_power(d, beta)
    shared = sum_of_neighbours(scaled * x / d, size, axes)
    return ((scaled - (2 * alpha * beta) * x * shared).astype(dtype),)


def in_float32(x: Array) -> Array:
    """bfloat16 in float32, wider types as they are."""
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def barrier(x: Array) -> Array:
    """`x`; on NVIDIA, XLA neither fuses nor merges computations across it."""
    return lax.platform_dependent(x, cuda=lax.optimization_barrier, default=lambda x: x)


def shifted_maps(x: Array, window: int, stride: int, edges: Edges) -> list[Array]:
    """For each position in the window, row-major: the inputs there of all windows, `[B, H', W', C]`.

    Slices, because XLA's window operations are several times slower on a CPU and their gradient
    (`select_and_scatter`) even more so.
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


def max_pool_forward(x: Array, window: int, stride: int, edges: Edges, ties: str) -> tuple[Array, Array]:
    """The maxima, and where each window has them, a bit per place in row-major order; `first`: only one."""
    y, *others = shifted_maps(x, window, stride, edges)
    found = jnp.ones(y.shape, jnp.uint16)
    for place, values in enumerate(others, 1):
        here = jnp.uint16(1 << place)
        if ties == "all":
            found = jnp.where(values == y, found | here, found)
        found = jnp.where(values > y, here, found)
        y = jnp.maximum(values, y)
    return y, found


def max_pool_gradient(
    window: int, stride: int, edges: Edges, ties: str, found: Array, g: Array
) -> tuple[Any]:
    """Sends the gradient `g` of each window to the places `found` in it."""
    del ties
    sizes = {"window": window, "stride": stride, "edges": edges}
    by_phase = functools.partial(_gradient_by_phase, **sizes)
    by_place = functools.partial(_gradient_by_place, **sizes)
    return (lax.platform_dependent(found, g, cuda=by_phase, default=by_place),)


def _gradient_by_place(found: Array, g: Array, *, window: int, stride: int, edges: Edges) -> Array:
    zero = jnp.zeros((), g.dtype)

    def part(place: int) -> Array:
        # Interior zeros move it back to its position; negative padding crops what lay beyond the edge.
        ends = []
        for offset, (_, beyond) in zip(divmod(place, window), edges, strict=True):
            ends.append((offset, window - 1 - offset - beyond, stride - 1))
        return lax.pad(jnp.where((found >> place) & 1 == 1, g, zero), zero, [(0, 0, 0), *ends, (0, 0, 0)])

    return functools.reduce(jnp.add, map(part, range(window * window)))


def _gradient_by_phase(found: Array, g: Array, *, window: int, stride: int, edges: Edges) -> Array:
    """The same; each input adds up only the windows that see it (3 x 3 at stride 2: one, two or four).

    Inputs of one phase (row and column modulo the stride) form a grid like that of the windows. By place,
    each input looks at all places; a training step on an H100 takes 0.92 of that time, one on a CPU longer.
    """
    zero, phases = jnp.zeros((), g.dtype), range(stride)
    more = (window - 1) // stride  # rows of a phase beyond those of the windows
    (batch, *counts, channels), shape = g.shape, [count + more for count in g.shape[1:3]]

    def part(i: int, j: int) -> Array:
        values = jnp.where((found >> (i * window + j)) & 1 == 1, g, zero)
        ends = [(offset // stride, more - offset // stride, 0) for offset in (i, j)]
        return lax.pad(values, zero, [(0, 0, 0), *ends, (0, 0, 0)])

    def phase(a: int, b: int) -> Array:
        places = itertools.product(range(a, window, stride), range(b, window, stride))
        none = jnp.zeros((batch, *shape, channels), g.dtype)  # for strides above the window
        return functools.reduce(jnp.add, (part(*place) for place in places), none)

    total = jnp.stack([jnp.stack([phase(a, b) for b in phases], 3) for a in phases], 2)
    total = total.reshape(batch, shape[0] * stride, shape[1] * stride, channels)
    ends = [
        (-before, (count - 1) * stride + window - after - size, 0)
        for count, size, (before, after) in zip(counts, total.shape[1:3], edges, strict=True)
    ]
    return lax.pad(total, zero, [(0, 0, 0), *ends, (0, 0, 0)])
