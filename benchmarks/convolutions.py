"""GFLOP/s of the five convolutions by number of filters and image size, beside a large matrix product.

    python -m benchmarks.convolutions [--widths=8,24,96] [--sizes=56,224] [--only=REGEX] [--out=DIR]

A width is the number of filters of a layer; its inputs are in the paper's proportion (48 to 128 in conv2, and
so on). The programs are the forward pass and the gradients of the kernel and of the inputs. Ours, which has
the options of this project's programs, XLA's own convolution as it comes and the product (2048 x 2048) run in
turns, a call each a round. Rates are medians of the rounds; ratios are medians of each round's ratio, so that
a machine that also does other work affects them less. `of the product` compares processor time, which waiting
does not count; below a third it is marked with `<`.
"""

import functools
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from alexnet_jax import layers
from alexnet_jax.common import host
from alexnet_jax.kernels import blocks
from benchmarks import tables

Array = jax.Array
# Window, stride, padding, and inputs for a number of filters.
LAYERS: dict[str, tuple[int, int, int, Callable[[int], int]]] = {
    "conv1": (11, 4, 0, lambda width: 3),
    "conv2": (5, 1, 2, lambda width: max(round(width * 48 / 128), 1)),
    "conv3": (3, 1, 1, lambda width: max(round(width * 256 / 192), 1)),
    "conv4": (3, 1, 1, lambda width: width),
    "conv5": (3, 1, 1, lambda width: max(round(width * 192 / 128), 1)),
}
PROGRAMS = ("forward", "kernel gradient", "input gradient")
PRODUCT = 2048
COLUMNS = (
    *("layer", "images", "filters", "program", "GFLOP/s", "XLA's", "times XLA", "times XLA, processor time"),
    *("of the product", "<"),
)


def maps_side(layer: str, image_size: int) -> int:
    """The side of the maps that a layer of the paper's net sees."""
    side, pools = image_size, {"conv1": 0, "conv2": 1}.get(layer, 2)
    for number in range(pools):
        window, stride = (11, 4) if number == 0 else (5, 1)
        side = layers.output_size(side, window=window, stride=stride, padding=0 if number == 0 else 2)
        side = layers.output_size(side, window=3, stride=2)
    return side


def cases(
    layer: str, image_size: int, width: int, batch: int, only: str
) -> Iterator[tuple[str, Any, Any, int]]:
    """Yields each program with ours and XLA's compiled, ready to call, and its operations."""
    window, stride, padding, inputs_of = LAYERS[layer]
    inputs, side = inputs_of(width), maps_side(layer, image_size)
    size = layers.output_size(side, window=window, stride=stride, padding=padding)
    end = (size - 1) * stride + window - side - padding
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, side, side, inputs))
    kernel = jax.random.normal(keys[1], (window, window, inputs, width))
    g = jax.random.normal(keys[2], (batch, size, size, width))
    ours = functools.partial(layers.convolution, stride=stride, padding=padding)
    plain = functools.partial(
        blocks.xla_convolution, window_strides=(stride, stride), padding=((padding, end), (padding, end))
    )
    programs: dict[str, Callable[[Callable], Callable]] = {
        "forward": lambda f: lambda x, k, g: f(x, k),
        "kernel gradient": lambda f: lambda x, k, g: jax.vjp(lambda k: f(x, k), k)[1](g),
        "input gradient": lambda f: lambda x, k, g: jax.vjp(lambda x: f(x, k), x)[1](g),
    }
    operations = 2 * batch * size**2 * window**2 * inputs * width
    for name, of in programs.items():
        needed = layer != "conv1" or name != "input gradient"
        if not needed or not re.search(only, f"{layer} {name}"):
            continue
        own, xla = (
            functools.partial(_compiled(of(f), options, x, kernel, g), x, kernel, g)
            for f, options in ((ours, host.eigen_options()), (plain, {}))
        )
        yield name, own, xla, operations


def _compiled(function: Callable, options: dict[str, Any], *arguments: Array) -> Any:
    return jax.jit(function, compiler_options=options, keep_unused=True).lower(*arguments).compile()


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and processor seconds of each call, by round; each begins with another call.

    Otherwise the call after the product, which empties the caches, would always be the same.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    order = list(calls.items())
    for _ in range(rounds):
        order = [*order[1:], order[0]]
        for name, call in order:
            wall, processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            seconds[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return seconds


def row_of(names: dict[str, Any], seconds: dict[str, list[tuple[float, float]]], operations: int) -> dict:
    """A row of the table, from the seconds of `ours`, `xla` and `product`."""
    ours, xla, product = (seconds[name] for name in ("ours", "xla", "product"))
    wall = {name: statistics.median(w for w, _ in values) for name, values in seconds.items()}
    processor_ratio = statistics.median(
        operations / own / (2 * PRODUCT**3 / large)
        for (_, own), (_, large) in zip(ours, product, strict=True)
    )
    return {
        **names,
        "GFLOP/s": operations / wall["ours"] / 1e9,
        "XLA's": operations / wall["xla"] / 1e9,
        "times XLA": statistics.median(b / a for (a, _), (b, _) in zip(ours, xla, strict=True)),
        "times XLA, processor time": statistics.median(
            b / a for (_, a), (_, b) in zip(ours, xla, strict=True)
        ),
        "of the product": processor_ratio,
        "<": "<" if processor_ratio < 1 / 3 else "",
        "product, GFLOP/s": 2 * PRODUCT**3 / wall["product"] / 1e9,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = tables.Parser("convolutions", __doc__)
    parser.add_argument("--widths", type=tables.numbers, default=[8, 16, 24, 32, 48, 64, 96, 128])
    parser.add_argument("--sizes", type=tables.numbers, default=[32, 56, 112, 224])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="layer and program, such as 'conv[12] forward$'")
    parser.add_argument("--out", type=pathlib.Path)
    given = parser.parse_args(argv)
    square = jax.random.normal(jax.random.key(0), (PRODUCT, PRODUCT))
    product = functools.partial(_compiled(jnp.matmul, {}, square, square), square, square)
    rows = []
    for layer in LAYERS:
        for size in given.sizes:
            for width in given.widths:
                for program, ours, xla, operations in cases(layer, size, width, given.batch, given.only):
                    calls = {"ours": ours, "xla": xla, "product": product}
                    names = {"layer": layer, "images": size, "filters": width, "program": program}
                    rows.append(row_of(names, in_turns(calls, given.rounds), operations))
    label = tables.of_operations(given.batch, given.rounds)
    tables.publish(given.out, "convolutions", rows, COLUMNS, label)
    if given.out:
        plot(rows, given.out / "convolutions.png")


def plot(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Rates in % of the product's: a panel for each layer and program, filters across, image sizes down."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    layers_, sizes, widths = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("layer", "images", "filters")
    )
    programs = [program for program in PROGRAMS if any(row["program"] == program for row in rows)]
    figure, axes = plt.subplots(
        *(len(layers_), len(programs)),
        figsize=(1 + 0.36 * len(widths) * len(programs), 0.7 + (0.35 + 0.23 * len(sizes)) * len(layers_)),
        **{"layout": "constrained", "squeeze": False, "sharex": True, "sharey": True},
    )
    shades = None
    for line, layer in enumerate(layers_):
        for column, program in enumerate(programs):
            ax = axes[line][column]
            found = {
                (row["images"], row["filters"]): row["of the product"]
                for row in rows
                if (row["layer"], row["program"]) == (layer, program)
            }
            if not found:
                ax.axis("off")
                continue
            share = [[found.get((size, width), float("nan")) for width in widths] for size in sizes]
            shades = ax.imshow(share, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            for (size, width), value in found.items():
                ax.text(
                    *(widths.index(width), sizes.index(size), f"{100 * value:.0f}"),
                    **{"ha": "center", "va": "center", "fontsize": 7},
                    color="white" if value < 0.6 else "black",
                )
            ax.set_title(f"{layer}, {program}", fontsize=8)
            ax.set_xticks(range(len(widths)), widths, fontsize=7)
            ax.set_yticks(range(len(sizes)), sizes, fontsize=7)
    figure.supxlabel("filters", fontsize=8)
    figure.supylabel("image side in pixels", fontsize=8)
    if shades is not None:
        figure.colorbar(shades, ax=axes, label="of a large product's rate", shrink=0.5)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    host.keep_memory()
    host.keep_compiled()
    main()
