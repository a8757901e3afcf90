"""What `benchmarks.accelerator` measures in this project's own process, a JSON object a line as it comes.

python -m benchmarks.accelerator_parts compiling|correctness|rates|kernels [--piece=PIECE] [--small]
"""

import argparse
import contextlib
import json
import math
import re
import statistics
import time
import unittest.mock
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks import ours

Row = dict[str, Any]

# `float32`: proper, slow; `default`: float32 as JAX comes (TF32 on NVIDIA since Ampere, one bfloat16 pass on
# a TPU); `bfloat16`: `model.compute_dtype`. Each with JAX's matmul precision and the place in `ours.PEAKS`.
PRECISIONS = {"float32": ("highest", 2), "default": ("default", 0), "bfloat16": ("default", 1)}

# Largest relative deviation from PyTorch in float64, by the first word of the quantity. Those of float32 are
# the tests'; the others are at least 2.5 times what bfloat16 deviates on a CPU (logits 0.006, gradient 0.2).
LIMITS = {
    "float32": {"logits": 1e-5, "gradient": 1e-4, "losses": 1e-4, "norm": 1e-6, "move": 5e-3},
    "bfloat16": {"logits": 0.05, "gradient": 0.5, "losses": 0.05, "norm": 1e-3, "move": 0.05},
}
LIMITS["default"] = LIMITS["bfloat16"]
KERNEL_LIMIT = 1e-5  # of the largest value

BATCHES = (512, 128, 2048, 256, 1024)  # the most telling first: a part may be cut off
SMALL_BATCHES = (4,)
SMALL_NET = {"widths": (8, 16, 16, 16, 16, 16), "fc_widths": (32, 32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=("compiling", "correctness", "rates", "kernels"))
    parser.add_argument("--piece", help="a precision of correctness, a program of compiling")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()

    from alexnet_jax.common import host

    host.keep_memory()
    host.keep_compiled()
    parts = {
        "compiling": lambda: compiling(given.small, int(given.piece)),
        "correctness": lambda: correctness(given.piece),
        "rates": lambda: rates(given.small),
        "kernels": lambda: kernel_rows(given.small),
    }
    for row in parts[given.part]():
        print(json.dumps(row), flush=True)


def precisions(small: bool) -> Sequence[str]:
    return ("float32",) if small else tuple(PRECISIONS)


def first_programs(small: bool) -> Sequence[str]:
    """Those of the first batch, by their number in `programs`."""
    return [str(number) for number in range(2 if small else 8)]


def programs(small: bool, devices: int) -> list[tuple[int, str, str, str]]:
    """What `rates` measures: batch, work, precision, how; the most telling first."""
    batches = SMALL_BATCHES if small else BATCHES
    plain = [(batches[0], "train", precision, "plain XLA") for precision in ("default", "bfloat16")]
    if devices > 1:
        plain += [(batches[0], "train", precision, "a column each") for precision in ("default", "bfloat16")]
    every = [
        (batch, work, precision, "")
        for batch in batches
        for work in ("train", "forward")
        for precision in PRECISIONS
    ]
    first = len(every) // len(batches)
    return [*every[:first], *plain, *every[first:]]


def attempt(label: Row, measure: Callable[[], Row]) -> Row:
    """A row, or the reason why it could not be measured, such as too little memory."""
    try:
        return {**label, **measure()}
    except Exception as error:  # whatever an unknown device brings is a result
        return {**label, "failed": (str(error).strip().splitlines() or [type(error).__name__])[0][:200]}


def compiling(small: bool, number: int) -> Iterator[Row]:
    """Seconds to trace and compile one of `programs`, which the next part finds in JAX's cache on disk."""
    import jax

    batch, work, precision, how = programs(small, jax.device_count())[number]

    def seconds() -> Row:
        began = time.perf_counter()
        prepared(batch, work, precision, how, small=small)
        return {"seconds": time.perf_counter() - began}

    yield attempt({"work": work, "batch": batch, "precision": precision, "how": how}, seconds)


def correctness(precision: str) -> Iterator[Row]:
    """The forward pass, gradients and ten steps against PyTorch's, on one device and on two."""
    import jax

    from alexnet_jax import columns
    from tests.fixtures import replay

    layouts = {"one device": (1, 1)} | ({"a column each": (1, 2)} if jax.device_count() > 1 else {})
    for devices, layout in layouts.items():
        label = {"precision": precision, "devices": devices}
        with jax.default_matmul_precision(PRECISIONS[precision][0]):
            try:
                dtype = "bfloat16" if precision == "bfloat16" else "float32"
                found = replay.deviations("paper", columns.make_mesh(*layout), compute_dtype=dtype)
            except Exception as error:
                yield {"what": "all", **label, "failed": str(error)[:200]}
                continue
        for what, limit in LIMITS[precision].items():
            worst = max((name for name in found if name.split()[0] == what), key=found.__getitem__)
            right = "yes" if found[worst] < limit else "no"
            yield {"what": worst, **label, "deviation": found[worst], "limit": limit, "right": right}


def rates(small: bool) -> Iterator[Row]:
    """Images a second of steps and forward passes, by batch and precision; plain XLA; two columns."""
    import jax

    for batch, work, precision, how in programs(small, jax.device_count()):
        label = {"work": work, "batch": batch, "precision": precision, "how": how}
        yield attempt(label, lambda cell=(batch, work, precision, how): rate(*cell, small=small))
        jax.clear_caches()


def prepared(batch: int, work: str, precision: str, how: str, *, small: bool) -> tuple[Any, Any, Any]:
    """The net, its compiled program, and the program's arguments."""
    import jax

    from alexnet_jax import columns, create_model

    mesh = columns.make_mesh(1, 2 if how == "a column each" else 1)
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    model = create_model("paper", compute_dtype=dtype, **(SMALL_NET if small else {}))
    given = argparse.Namespace(work=work, batch=batch, image_size=side(small), micro_batches=1)
    layers = plain_layers() if how == "plain XLA" else contextlib.nullcontext()
    with jax.default_matmul_precision(PRECISIONS[precision][0]), layers:
        program, arguments = ours.make_program(given, model, mesh)
        return model, program.lower(*arguments).compile(), arguments


def side(small: bool) -> int:
    return 64 if small else 224


def rate(batch: int, work: str, precision: str, how: str, *, small: bool) -> Row:
    """The rate of a program, its share of the published peak, and its memory."""
    import jax

    from alexnet_jax.run import summary

    model, compiled, arguments = prepared(batch, work, precision, how, small=small)
    run = ours.repeated(work, compiled, arguments)
    del arguments  # the first state, which the step donates
    _, (once,) = ours.timed(run, warm=1, steps=1)
    calls = 1 if small else max(1, min(100, math.ceil(0.2 / once)))  # a fifth of a second each time
    _, seconds = ours.timed(run, warm=1, steps=3, calls=calls)
    images = batch / statistics.median(seconds)
    memory = compiled.memory_analysis()
    parts = ("temp", "argument", "output") if memory else ()
    used = sum(getattr(memory, f"{part}_size_in_bytes") for part in parts)
    row = {
        "images/s": images,
        "spread": f"{batch / max(seconds):.0f}-{batch / min(seconds):.0f}",
        "GB": (used - memory.alias_size_in_bytes) / 1e9 if memory else None,
    }
    peak = (ours.PEAKS.get(jax.devices()[0].device_kind) or (None,) * 3)[PRECISIONS[precision][1]]
    if peak:
        operations = summary.operations(model, side(small), train=work == "train")
        row["MFU"] = images * operations / (peak * 1e12 * (2 if how == "a column each" else 1))
    return row


@contextlib.contextmanager
def plain_layers() -> Iterator[None]:
    """Within it, programs are traced with XLA's own operations and gradients in the place of `kernels/`."""
    import jax.numpy as jnp
    from jax import lax

    from alexnet_jax import layers
    from alexnet_jax.kernels import blocks

    def convolution(x: Any, kernel: Any, stride: int, padding: int, ceil: bool, name: str) -> Any:
        edges = layers._edges(x.shape[1:3], kernel.shape[0], stride, padding, ceil, name)
        return blocks.xla_convolution(x, kernel, (stride, stride), edges)

    def normalise(x: Any, k: float, alpha: float, beta: float, size: int, axes: tuple[int, ...]) -> Any:
        window = tuple(size if axis in axes else 1 for axis in range(x.ndim))
        a = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        total = lax.reduce_window(jnp.square(a), 0.0, lax.add, window, (1,) * a.ndim, "SAME")
        return (a / (k + alpha * total) ** beta).astype(x.dtype)

    def maximum(x: Any, window: int, stride: int, edges: Any, ties: str) -> Any:
        del ties
        sizes, strides = (1, window, window, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, sizes, strides, ((0, 0), *edges, (0, 0)))

    def products(x: Any, kernel: Any, dtype: Any) -> Any:
        return lax.dot_general(x, kernel, (((2,), (1,)), ((0,), (0,))), preferred_element_type=dtype)

    def add_bias(y: Any, bias: Any) -> Any:
        return y + bias.astype(y.dtype)

    own = {"convolution": convolution, "_normalise": normalise, "_maximum": maximum, "products": products}
    with unittest.mock.patch.multiple(layers, add_bias=add_bias, **own):
        yield


def kernel_rows(small: bool) -> Iterator[Row]:
    """The layers' kernels beside plain XLA in float32: the times, and whether the results agree."""
    import jax

    from benchmarks import kernels

    batch, calls = (2, 1) if small else (128, 50)
    only = "pool5|lrn2" if small else "pool|lrn|fc"
    with jax.default_matmul_precision("highest"):
        for case in kernels.cases(batch):
            if re.search(only, case[0]):
                row = attempt(
                    {"kernel": case[0], "batch": batch},
                    lambda case=case: kernels.measure(case, batch, 3, calls),
                )
                if "largest" in row:
                    row["right"] = "yes" if row["difference"] <= KERNEL_LIMIT * row["largest"] else "no"
                yield row


if __name__ == "__main__":
    main()
