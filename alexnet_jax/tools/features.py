"""The command `features`: the activations of a layer, for other programs."""

import argparse
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from alexnet_jax.common import host, progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.common.files import write_npz
from alexnet_jax.data import inference
from alexnet_jax.weights import pretrained
from alexnet_jax.weights.pretrained import Pretrained


def layer_names(loaded: Pretrained) -> list[str]:
    """The names of the activations that the weights determine, in the order of the net."""
    names: list[str] = []

    def record(params: Any, images: Any) -> None:
        how: dict[str, Any] = {"method": "_partial", "mutable": "intermediates"}
        _, state = nn.Module.apply(loaded.model, {"params": params}, images, **how)
        names.extend(state["intermediates"]["activations"])

    side = loaded.preprocess.crop_size
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    jax.eval_shape(record, loaded.variables["params"], images)
    return names


def layer_function(loaded: Pretrained, layer: str) -> Callable[[Any], jax.Array]:
    """Compiles `images -> activations` of a layer: uint8 `[B, S, S, 3]` to float32 `[B, ...]`.

    Layers above `layer` may be missing from the weights.

    Raises:
      UserError: the net has no such layer, or needed weights are missing.
    """
    model, params = loaded.model, loaded.variables["params"]
    if layer not in (names := layer_names(loaded)):
        absent = ", ".join(loaded.missing) or "such layer"
        raise UserError(f"--layer={layer}: {loaded.path} has no {absent}; choose one of {', '.join(names)}")

    def activations(params: Any, images: jax.Array) -> Any:
        return model.apply({"params": params}, loaded.preprocess.view(images), capture=layer)[1][layer]

    compiled = jax.jit(activations, compiler_options=host.eigen_options())
    return lambda images: compiled(params, images)


def extract(loaded: Pretrained, files: Iterable[str], layer: str) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yields each file with its activations, float32 `[...]`, or with None for a bad image.

    Images are resized as the weights' own program does (`loaded.preprocess`); training takes central squares.
    """
    decode = loaded.preprocess.decode
    for file, _, activations in inference.run_batches(layer_function(loaded, layer), files, decode):
        yield file, activations


def load(path: str | pathlib.Path) -> tuple[list[str], np.ndarray, list[str]]:
    """Reads what the command wrote: file names, features float32 `[N, D]`, classes (or folders).

    Raises:
      UserError: the file is missing or contains no features.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            files = arrays["files"].tolist()
            classes = arrays.get("classes", np.array([pathlib.PurePath(file).parent.name for file in files]))
            return files, arrays["features"].reshape(len(files), -1), classes.tolist()
    except Exception as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error
        raise UserError(
            f"{path}: not a file of features ({reason}); python -m alexnet_jax features makes one"
        ) from error


def main(args: argparse.Namespace) -> int:
    files, classes = zip(*inference.find_with_classes(args.images), strict=True)
    loaded = pretrained.read(args.weights, partial=True, variant=args.variant, mean=args.mean)
    good = []
    answers = progress.bar(len(files), "image", args.layer, iterable=extract(loaded, files, args.layer))
    for class_name, (file, activations) in zip(classes, answers, strict=True):
        if activations is None:
            tqdm.tqdm.write(f"bad image, left out: {file}", file=sys.stderr)
        else:
            good.append((file, class_name, activations))
    if not good:
        raise UserError("none of the images can be read")
    names, names_of_classes, rows = zip(*good, strict=True)
    is_map, bad = rows[0].ndim == 3, len(files) - len(good)
    arrays = {"files": names, "classes": names_of_classes, "features": np.stack(rows), "layer": args.layer}
    write_npz(args.out, {**arrays, "axes": "NHWC" if is_map else "NC"})
    shape = " x ".join(map(str, rows[0].shape)) + (" (height x width x channels)" if is_map else "")
    print(f"{args.out}: {args.layer} of {len(good)} images, {shape} each; {bad} bad")
    return 0
