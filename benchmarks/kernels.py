"""Each operation of `alexnet_jax/layers.py` against its plain-XLA reference, in turns in one process.

    python -m benchmarks.kernels [--batch=128] [--rounds=7] [--out=DIR] [--only=REGEX]

The shapes are those of one column of the paper's net, or of both for layers that see both. "and gradient" is
the result and the gradient of the input, since a training step needs both. The table has milliseconds an
image (median of the rounds), how many times faster the kernel is than the reference, and the largest
difference between their results next to the largest value.
"""

import functools
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from alexnet_jax import layers
from alexnet_jax.common import command_line, host
from benchmarks import tables

Array = jax.Array
Case = tuple[str, Callable, Callable, tuple[Array, ...]]
LRN = {"k": 2.0, "alpha": 1e-4, "beta": 0.75, "size": 5}
# Window, stride, padding, side, input and output channels, in the groups that the program computes.
CONVOLUTIONS = {
    "conv1": (11, 4, 0, 224, 3, 96),
    "conv2": (5, 1, 2, 27, 48, 128),
    "conv3": (3, 1, 1, 13, 256, 384),
    "conv4": (3, 1, 1, 13, 192, 192),
    "conv5": (3, 1, 1, 13, 192, 128),
}
POOLS = {"pool1": (55, 48), "pool2": (27, 128), "pool5": (13, 128)}
NORMS = {"lrn1": (55, 48), "lrn2": (27, 128)}
DENSE = {"fc6": (9216, 2048), "fc7": (4096, 2048), "fc8": (4096, 500)}
COLUMNS = ("kernel", "ms an image", "reference, ms", "times faster", "difference", "largest")


def plain_pool(x: Array) -> Array:
    """The paper's maps have odd sizes, so no window reaches over the edge."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")


def plain_norm(x: Array) -> Array:
    total = lax.reduce_window(jnp.square(x), 0.0, lax.add, (1, 1, 1, LRN["size"]), (1, 1, 1, 1), "SAME")
    return x / (LRN["k"] + LRN["alpha"] * total) ** LRN["beta"]


def plain_convolution(x: Array, kernel: Array, *, stride: int, edge: tuple[int, int]) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (edge, edge), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def with_gradient(function: Callable) -> Callable:
    """The result, and the gradients of all arguments but the last, which is the gradient of the result."""

    def both(*arguments: Array) -> Any:
        *inputs, g = arguments
        y, back = jax.vjp(function, *inputs)
        return y, back(g)

    return both


def kernel_gradient(convolve: Callable) -> Callable:
    return lambda x, kernel, g: jax.vjp(functools.partial(convolve, x), kernel)[1](g)


def input_gradient(convolve: Callable) -> Callable:
    return lambda x, kernel, g: jax.vjp(lambda x: convolve(x, kernel), x)[1](g)


def cases(batch: int) -> Iterator[Case]:
    """Yields the name, kernel, reference and arguments of each case."""
    numbers = (jax.random.key(i) for i in range(100))

    def draw(*shape: int) -> Array:
        return jax.random.normal(next(numbers), shape)

    for name, (side, channels) in POOLS.items():
        x, g = draw(batch, side, side, channels), draw(batch, side // 2, side // 2, channels)
        pool = functools.partial(layers.max_pool, window=3, stride=2)
        yield f"{name} forward", pool, plain_pool, (x,)
        yield f"{name} and gradient", with_gradient(pool), with_gradient(plain_pool), (x, g)
    for name, (side, channels) in NORMS.items():
        x, g = draw(batch, side, side, channels), draw(batch, side, side, channels)
        norm = functools.partial(layers.local_response_norm, **LRN)
        yield f"{name} forward", norm, plain_norm, (x,)
        yield f"{name} and gradient", with_gradient(norm), with_gradient(plain_norm), (x, g)
    for name, (window, stride, padding, side, inputs, outputs) in CONVOLUTIONS.items():
        size = layers.output_size(side, window=window, stride=stride, padding=padding)
        edge = (padding, (size - 1) * stride + window - side - padding)
        x, kernel = draw(batch, side, side, inputs), draw(window, window, inputs, outputs)
        g = draw(batch, size, size, outputs)
        convolve = functools.partial(_convolve, stride=stride, padding=padding)
        plain = functools.partial(plain_convolution, stride=stride, edge=edge)
        if stride > 1:  # conv1: the gradient of the image is not needed
            yield f"{name} forward", convolve, plain, (x, kernel)
        else:
            yield (
                f"{name} gradient of its inputs",
                input_gradient(convolve),
                input_gradient(plain),
                (x, kernel, g),
            )
        yield (
            f"{name} gradient of its kernel",
            kernel_gradient(convolve),
            kernel_gradient(plain),
            (x, kernel, g),
        )
    for name, (inputs, outputs) in DENSE.items():
        xs, kernel, g = draw(2, batch, inputs), draw(2, inputs, outputs), draw(2, batch, outputs)
        yield f"{name} and gradients", with_gradient(_together), with_gradient(_one_by_one), (xs, kernel, g)


def _convolve(x: Array, kernel: Array, *, stride: int, padding: int) -> Array:
    return layers.convolution(x, kernel, stride=stride, padding=padding)


def _together(xs: Array, kernel: Array) -> Array:
    """Both columns as in `layers.dense`."""
    return layers.products(xs, kernel, "float32")


def _one_by_one(xs: Array, kernel: Array) -> Array:
    return jnp.stack([x @ own for x, own in zip(xs, kernel, strict=True)])


def measure(case: Case, batch: int, rounds: int, calls: int = 1) -> dict[str, Any]:
    """The table's row for a case: compiles both functions, then times them in turns, `calls` back to back."""
    name, kernel, reference, arguments = case
    runs = {"ours": jax.jit(kernel, compiler_options=host.eigen_options()), "reference": jax.jit(reference)}
    results = [jax.tree.leaves(jax.block_until_ready(run(*arguments))) for run in runs.values()]
    pairs = list(zip(*results, strict=True))
    difference = max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)
    largest = max(float(jnp.max(jnp.abs(b))) for _, b in pairs)
    del results, pairs
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            began = time.perf_counter()
            for _ in range(calls - 1):
                run(*arguments)
            jax.block_until_ready(run(*arguments))
            seconds[key].append((time.perf_counter() - began) / calls)
    ours, plain = (statistics.median(values) for values in seconds.values())
    return {
        "kernel": name,
        "ms an image": 1000 * ours / batch,
        "reference, ms": 1000 * plain / batch,
        "times faster": plain / ours,
        "difference": difference,
        "largest": largest,
        "fastest ms": 1000 * min(seconds["ours"]) / batch,
        "slowest ms": 1000 * max(seconds["ours"]) / batch,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = tables.Parser("kernels", __doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=command_line.new_folder)
    given = parser.parse_args(argv)
    chosen = (case for case in cases(given.batch) if re.search(given.only, case[0]))
    rows = [measure(case, given.batch, given.rounds) for case in chosen]
    label = tables.of_operations(given.batch, given.rounds)
    tables.publish(given.out, "kernels", rows, COLUMNS, label)


if __name__ == "__main__":
    host.keep_memory()
    host.keep_compiled()
    main()
