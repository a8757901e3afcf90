"""A table of the net's layers: inputs, output shape, parameters, multiply-accumulates and neurons."""

import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp

from alexnet_jax.model import AlexNet
from alexnet_jax.variants import layer_names, param_shapes

COUNTS = ("parameters", "multiply_accumulates", "neurons")


def summarise(model: AlexNet, image_size: int) -> dict[str, Any]:
    """Counts parameters and operations for images of `image_size` x `image_size`, without running the net.

    Returns:
      `layers`, a list of dictionaries with `name`, `window` (convolutions only), `input` (which columns),
      `output` (shape over all columns, `[H, W, C]` or `[units]`), `parameters`,
      `multiply_accumulates` (per image) and `neurons`; and `total`, the sums of the last three.

    Raises:
      UserError: the images are too small for the net.
    """
    params = param_shapes(model, image_size)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    capture = functools.partial(model.apply, capture=tuple(params))
    _, outputs = jax.eval_shape(capture, {"params": params}, images)
    layers = []
    for name in layer_names(model):
        kernel, shape = params[name]["kernel"].shape, outputs[name].shape[1:]
        places = math.prod(shape[:-1])
        local = len(kernel) == 7  # filters and biases for each place
        inputs = math.prod(kernel[-4 if local else 1 : -1])  # per unit
        if name == "fc8" and not model.is_cross_column("fc8"):
            inputs *= kernel[0]  # independent columns: each has weights for every class
        weights, sets = inputs * shape[-1], places if local else 1
        layers.append(
            {
                "name": name,
                "window": list(kernel[-4:-2]) if len(kernel) >= 5 else None,
                "input": _input(model, name, kernel),
                "output": list(shape),
                "parameters": sets * (weights + shape[-1]),
                "multiply_accumulates": weights * places,
                "neurons": math.prod(shape),
            }
        )
    total = {key: sum(layer[key] for layer in layers) for key in COUNTS}
    return {"image_size": image_size, "num_classes": model.num_classes, "layers": layers, "total": total}


def operations(model: AlexNet, image_size: int, *, train: bool) -> int:
    """Floating-point operations per image in a forward pass or, with `train`, in a training step.

    A multiply-accumulate is two operations. A training step does those of the forward pass three times:
    forward, for the gradient of the weights, and for the gradient of the inputs (not needed in the first
    layer). Norms, pooling and the update are not counted.
    """
    counts = [layer["multiply_accumulates"] for layer in summarise(model, image_size)["layers"]]
    return 2 * (3 * sum(counts) - counts[0] if train else sum(counts))


def _input(model: AlexNet, name: str, kernel: tuple[int, ...]) -> str:
    if name == "conv1":
        return "the image"
    if model.columns == 1:
        return "all"
    if model.is_cross_column(name) or name == "fc8":
        return "both columns" if model.columns == 2 else "all columns"
    return "own column and blurred image" if name == "conv2" and model.low_resolution else "own column"


def as_table(summary: dict[str, Any]) -> str:
    """The summary as a Markdown table."""
    rows: list[tuple[str, ...]] = [
        ("layer", "input", "output", *(name.replace("_", "-", 1) for name in COUNTS))
    ]
    for layer in [*summary["layers"], {"name": "total", "input": "", "output": (), **summary["total"]}]:
        window = "{} x {} of ".format(*layer["window"]) if layer.get("window") else ""
        output = " x ".join(str(n) for n in layer["output"])
        rows.append((layer["name"], window + layer["input"], output, *(f"{layer[key]:,}" for key in COUNTS)))
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * w if i < 3 else "-" * (w - 1) + ":" for i, w in enumerate(widths)))
    lines = [
        " | ".join(f"{cell:{'<' if i < 3 else '>'}{widths[i]}}" for i, cell in enumerate(row)) for row in rows
    ]
    return "".join(f"| {line} |\n" for line in lines)


def as_json(summary: dict[str, Any]) -> str:
    """The summary as JSON."""
    return json.dumps(summary, indent=2) + "\n"
