"""Convolutions for CPUs and their gradients, where XLA's own are slower. Skip at a first reading.

By how much: `python -m benchmarks.convolutions`. Other devices use XLA's, NVIDIA's over blocks for conv1
(`blocks.py`). Maps are `[B, H, W, C]`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax.kernels import blocks
from alexnet_jax.kernels.blocks import Edges, pad, xla_convolution

Array = jax.Array

# Numbers of outputs (filters), measured on two cores with batches of 64 and 128 (`benchmarks.convolutions`).
FEW_OUTPUTS = 128  # below this, YNNPACK's convolutions are slower than Eigen's
NARROW = 48  # below this, XLA's gradients are faster than ours, and above 16 its conv1 is far slower
CACHED_BYTES = 4 * 2**20  # bytes of maps that stay in cache between products


def formulation(inputs: int, outputs: int, *, stride: int, rows: int, extra_rows: int, in_step: bool) -> str:
    """How a CPU computes a convolution, by its number of outputs: `xla`, `eigen` or `product`.

    XLA prefers YNNPACK, which is faster alongside other work but leaves much of the second core idle for few
    outputs (conv1, and the gradient of conv2's inputs). In a training step these run on Eigen instead.
    Forward-only programs and nets of one column set an XLA option (`host.eigen_options`).

    With 17 to 47 filters, a conv1 on YNNPACK is 2 to 8 times slower than the alternatives, so it avoids
    YNNPACK in every program. On small images, where Eigen needs too many extra rows, it becomes a product.

    Args:
      rows: of the outputs; extra_rows: those that Eigen needs (see `_convolution_on_eigen`).
      in_step: whether gradients are computed as well.
    """
    narrow = stride > 1 and 16 < outputs < NARROW
    if max(inputs, outputs) <= 16 or outputs >= FEW_OUTPUTS or not (in_step or narrow):
        return "xla"
    if extra_rows <= rows // 8:
        return "eigen"
    return "product" if narrow else "xla"


def convolution(x: Array, kernel: Array, *, stride: int, edges: Edges, in_step: bool = True) -> Array:
    """A convolution on a CPU, computed as `formulation` says."""
    (window_height, _, inputs, outputs), (above, below) = kernel.shape, edges[0]
    rows = (x.shape[1] + above + below - window_height) // stride + 1
    # With the window's height in blocks of `stride` rows.
    height = x.shape[1] if stride == 1 else rows - 1 + -(-window_height // stride)
    extra = max(height + 1 - rows, 0)
    match formulation(inputs, outputs, stride=stride, rows=rows, extra_rows=extra, in_step=in_step):
        case "eigen":
            return _convolution_on_eigen(x, kernel, height, extra, stride=stride, edges=edges)[:, :rows]
        case "product":
            return _convolution_by_product(x, kernel, stride=stride, edges=edges)
    return xla_convolution(x, kernel, (stride, stride), edges)


def _convolution_on_eigen(
    x: Array, kernel: Array, height: int, extra: int, *, stride: int, edges: Edges
) -> Array:
    """A convolution that XLA leaves to Eigen, with `extra` rows below that the caller drops.

    YNNPACK rejects convolutions with more output than input rows, or with at most 16 channels
    (`IsConvolutionOpSupportedByYnn` in XLA's `ynn_support.cc`). At stride s, s rows first become channels
    (space-to-depth) in `height` rows; otherwise there would be s times as many input rows as output rows.
    Without YNNPACK in XLA, the extra rows cost 2 to 5 % of conv1 and of the gradient of conv2's inputs.
    """
    (batch, _, width, inputs), (window_height, window_width, _, outputs) = x.shape, kernel.shape
    (above, below), sides = edges
    if stride > 1:
        parts = -(-window_height // stride)
        x = pad(x, (0, 0), (above, height * stride - above - x.shape[1]))
        x = x.reshape(batch, height, stride, width, inputs).transpose(0, 1, 3, 2, 4)
        x = x.reshape(batch, height, width, stride * inputs)
        kernel = pad(kernel, (0, parts * stride - window_height))
        kernel = kernel.reshape(parts, stride, window_width, inputs, outputs).transpose(0, 2, 1, 3, 4)
        kernel = kernel.reshape(parts, window_width, stride * inputs, outputs)
        above = below = 0
    return xla_convolution(x, kernel, (1, stride), ((above, below + extra), sides))


def _convolution_by_product(x: Array, kernel: Array, *, stride: int, edges: Edges) -> Array:
    """A convolution as one matrix product, of what each window sees (conv1: nine blocks of pixels)."""
    wide = x.dtype if x.dtype.itemsize > 4 else jnp.float32  # accumulate bfloat16 in float32
    (rows, columns), (height, width) = sizes = blocks.counts(x, kernel.shape[:2], stride, edges)
    x = blocks.as_channels(pad(x, (0, 0), *blocks.padding(x, *sizes, stride, edges)), stride)
    seen = jnp.concatenate(
        [x[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)], axis=3
    )
    own = blocks.kernel_of(kernel, stride).reshape(seen.shape[3], -1)
    return jnp.matmul(seen, own, preferred_element_type=wide).astype(x.dtype)


def convolution_gradients(
    x: Array, kernel: Array, g: Array, *, stride: int, edges: Edges
) -> tuple[Array, Array]:
    """The gradients of `(x, kernel)` on a CPU, from the gradient `g` of the outputs.

    XLA's own for layers with fewer than `NARROW` filters (at stride 1, twice as many): the products below
    would be too thin, and XLA takes 0.4 to 0.8 of their time.
    """
    plain = functools.partial(xla_convolution, window_strides=(stride, stride), padding=edges)
    if kernel.shape[3] < (NARROW if stride > 1 else 2 * NARROW):
        return jax.vjp(plain, x, kernel)[1](g)
    if stride > 1:
        (x_gradient,) = jax.vjp(lambda x: plain(x, kernel), x)[1](g)
    else:
        # As in XLA, a convolution with the flipped kernel. The barrier keeps XLA from fusing the transpose
        # into it inside a loop, which would be five times slower.
        flipped = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
        sizes = zip(kernel.shape[:2], edges, strict=True)
        outer = tuple((size - 1 - before, size - 1 - after) for size, (before, after) in sizes)
        x_gradient = convolution(g, flipped, stride=1, edges=outer)
    return x_gradient, _kernel_gradient(x, g, window=kernel.shape[:2], stride=stride, edges=edges)


def images_at_once(batch: int, image_bytes: int) -> int:
    """Images per group: a group fits in `CACHED_BYTES`, and if possible all groups are full."""
    most = min(max(CACHED_BYTES // image_bytes, 1), batch)
    images = max(n for n in range(1, most + 1) if batch % n == 0)
    if 2 * images < most:  # e.g. a prime batch: the last group is padded
        images = -(-batch // -(-batch // most))
    return images


def _kernel_gradient(x: Array, g: Array, *, window: tuple[int, ...], stride: int, edges: Edges) -> Array:
    """The gradient of a convolution's kernel: one matrix product per position in the window.

    XLA computes a convolution with windows as large as the maps. The places in the window are blocks
    (`blocks.as_channels`). A few images at a time stay in cache between products. `g`, shared by all
    products, is the left operand, because that is the one that has to be transposed.

    Args:
      x: the inputs `[B, H, W, I]`; g: the gradient of the outputs `[B, H', W', O]`.

    Returns:
      `[h, w, I, O]`.
    """
    (batch, rows, columns, outputs), inputs = g.shape, x.shape[3]
    sizes = height, width = [-(-size // stride) for size in window]  # the window in blocks
    depth = stride * stride * inputs
    wide = x.dtype if x.dtype.itemsize > 4 else jnp.float32  # accumulate bfloat16 in float32

    # Pad to full blocks and full groups of images; zeros add nothing.
    images = images_at_once(batch, (x.nbytes + g.nbytes) // batch)
    groups = -(-batch // images)
    padding = [(0, groups * images - batch)]
    x = pad(x, *padding, *blocks.padding(x, (rows, columns), sizes, stride, edges))
    g = pad(g, *padding)

    def add(total: Array, group: tuple[Array, Array]) -> tuple[Array, None]:
        x, g = blocks.as_channels(group[0], stride), group[1]
        g = lax.optimization_barrier(g.reshape(-1, outputs).T)  # else XLA transposes each x instead
        products = [
            jnp.matmul(g, x[:, i : i + rows, j : j + columns].reshape(-1, depth), preferred_element_type=wide)
            for i in range(height)
            for j in range(width)
        ]
        return total + jnp.stack(products), None

    total = jnp.zeros((height * width, outputs, depth), wide)
    x, g = (a.reshape(groups, -1, *a.shape[1:]) for a in (x, g))
    total, _ = lax.scan(add, total, (x, g))

    total = total.reshape(height, width, outputs, stride, stride, inputs).transpose(0, 3, 1, 4, 5, 2)
    total = total.reshape(height * stride, width * stride, inputs, outputs)
    return total[: window[0], : window[1]].astype(g.dtype)
