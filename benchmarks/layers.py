"""torchvision's net layer by layer beside PyTorch: where the difference between their steps lies.

    python -m benchmarks.layers --torch_python=PYTHON [--batch=128] [--rounds=3] [--steps=5] [--out=DIR]

Each layer is timed alone, as a training step computes it: the forward pass and the gradients of its kernel
and of its inputs. A process for each side and round, in turns; PyTorch with channels last, its freed memory
kept. Times are medians of the rounds.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import contestants, tables

# Name, side of the maps, window, stride, padding, inputs, outputs; a side of 0: fully connected.
LAYERS = (
    ("conv1", 224, 11, 4, 2, 3, 64),
    ("conv2", 27, 5, 1, 2, 64, 192),
    ("conv3", 13, 3, 1, 1, 192, 384),
    ("conv4", 13, 3, 1, 1, 384, 256),
    ("conv5", 13, 3, 1, 1, 256, 256),
    ("fc6", 0, 1, 1, 0, 9216, 4096),
    ("fc7", 0, 1, 1, 0, 4096, 4096),
    ("fc8", 0, 1, 1, 0, 4096, 1000),
)
PROGRAMS = ("forward", "kernel gradient", "input gradient")
COLUMNS = (
    *("layer", "program", "ours, ms an image", "PyTorch's, ms", "difference, ms"),
    *("ours, GFLOP/s", "PyTorch's, GFLOP/s"),
)


def programs() -> Iterator[tuple[str, str]]:
    """Layers and their programs; nobody needs the gradient of conv1's inputs."""
    return ((layer[0], p) for layer in LAYERS for p in PROGRAMS if (layer[0], p) != ("conv1", PROGRAMS[2]))


def operations(name: str) -> float:
    """Floating-point operations of a layer for an image; each of its programs has as many."""
    (_, side, window, stride, padding, inputs, outputs) = next(layer for layer in LAYERS if layer[0] == name)
    places = ((side + 2 * padding - window) // stride + 1) ** 2 if side else 1
    return 2.0 * places * window**2 * inputs * outputs


def ours(batch: int, warm: int, steps: int) -> dict[str, list[float]]:
    """Seconds of each call, by layer and program."""
    import jax
    import jax.numpy as jnp

    from alexnet_jax import layers
    from alexnet_jax.common import host
    from benchmarks.ours import timed

    def multiply(x: Any, kernel: Any) -> Any:
        y: Any = layers.products(x[None], kernel[None], jnp.float32)
        return y[0]

    found = {}
    for name, side, window, stride, padding, inputs, outputs in LAYERS:
        convolve = functools.partial(layers.convolution, stride=stride, padding=padding, ceil=False)
        run: Callable = convolve if side else multiply
        keys = jax.random.split(jax.random.key(0), 2)
        x = jax.random.normal(keys[0], (batch, side, side, inputs) if side else (batch, inputs))
        kernel = jax.random.normal(keys[1], (window, window, inputs, outputs) if side else (inputs, outputs))
        g = jax.jit(run)(x, kernel)
        of = {
            "forward": lambda x, kernel, g, run=run: jax.vjp(run, x, kernel)[0],
            "kernel gradient": lambda x, kernel, g, run=run: jax.vjp(run, x, kernel)[1](g)[1],
            "input gradient": lambda x, kernel, g, run=run: jax.vjp(run, x, kernel)[1](g)[0],
        }
        for program in (p for layer, p in programs() if layer == name):
            compiled = jax.jit(of[program], compiler_options=host.eigen_options())
            call = functools.partial(compiled, x, kernel, g)
            found[f"{name} {program}"] = timed(call, warm, steps)[1]
    return found


def main() -> None:
    parser = tables.Parser("layers", __doc__)
    parser.add_argument("--torch_python", required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # ours, in a child process
    given = parser.parse_args()
    if given.one:
        from alexnet_jax.common import host

        host.keep_memory()
        host.keep_compiled()
        print(json.dumps(ours(given.batch, given.warm, given.steps)))
        return

    sizes = [f"--{key}={getattr(given, key)}" for key in ("batch", "warm", "steps")]
    own = [sys.executable, "-m", "benchmarks.layers", "--one", "--torch_python=", *sizes]
    torch = [given.torch_python, contestants.THEIRS, "layers", "--layout=channels_last", *sizes]
    seconds: dict[str, dict[str, list[float]]] = {"ours": {}, "theirs": {}}
    for _ in range(given.rounds):
        for side, command, environment in (("ours", own, {}), ("theirs", torch, tables.KEPT_MEMORY)):
            answer = tables.answer(command, environment)
            if "failed" in answer:
                raise SystemExit(f"{command[0]}: {answer['failed']}")
            for layer, program in programs():
                times = answer[key := f"{layer} {program}"]
                seconds[side].setdefault(key, []).append(statistics.median(times))
    about = contestants.torch_about(given.torch_python)
    label = {**tables.of_operations(given.batch, given.rounds), **about.get("versions", {})}
    tables.publish(given.out, "layers", rows_of(seconds, given.batch), COLUMNS, label)


def rows_of(seconds: dict[str, dict[str, list[float]]], batch: int) -> list[dict[str, Any]]:
    """The table, from the seconds of each round by layer and program, `ours` and `theirs`."""
    ours, theirs = (
        {key: 1e3 * statistics.median(rounds) / batch for key, rounds in seconds[side].items()}
        for side in ("ours", "theirs")
    )

    def row(layer: str, program: str, own: float, other: float) -> dict[str, Any]:
        times = {"ours, ms an image": own, "PyTorch's, ms": other, "difference, ms": own - other}
        return {"layer": layer, "program": program, **times}

    rows = []
    for layer, program in programs():
        own, other, count = ours[f"{layer} {program}"], theirs[f"{layer} {program}"], operations(layer)
        rates = {"ours, GFLOP/s": count / own / 1e6, "PyTorch's, GFLOP/s": count / other / 1e6}
        rows.append({**row(layer, program, own, other), **rates})
    return [*rows, row("sum", "", sum(ours.values()), sum(theirs.values()))]


if __name__ == "__main__":
    main()
