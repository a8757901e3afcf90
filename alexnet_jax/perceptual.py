"""LPIPS, the learned perceptual distance between images, on the five activations of torchvision's AlexNet.

Zhang, Isola, Efros, Shechtman, Wang: "The Unreasonable Effectiveness of Deep Features as a Perceptual
Metric" (CVPR 2018), as version 0.1 of their package `lpips` computes it with `net="alex"`.
"""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from alexnet_jax.common.errors import UserError, named
from alexnet_jax.model import AlexNet
from alexnet_jax.weights import pretrained, torch_files

Array = jax.Array

LINEAR = pathlib.Path(__file__).parent / "weights" / "lpips" / "alex.pth"  # 6 KB
COMPARED = ("activation1", "activation2", "activation3", "activation4", "activation5")
# From [-1, 1] to the input of torchvision's nets; the package rounds these numbers to three places.
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)
_MOST = 2.0  # larger numbers are grey levels; a net that draws images may overshoot 1 a little
_EPSILON = 1e-10  # added to the length of an activation's channels


def _checked(function: Callable[..., Array]) -> Callable[..., Array]:
    """Compiles a method of `Perceptual`, and checks its two batches of images."""
    compiled = jax.jit(function)

    @functools.wraps(function)
    def checked(self: "Perceptual", images: Array, others: Array) -> Array:
        for name, x in (("images", images), ("others", others)):
            if not isinstance(x, jax.Array | np.ndarray):
                found = f"a {type(x).__name__}"
            elif x.shape[3:] != (3,) or x.shape != images.shape or not jnp.issubdtype(x.dtype, jnp.floating):
                found = f"{x.dtype}{list(x.shape)}"
            elif not isinstance(x, jax.core.Tracer) and (most := _largest(x)) > _MOST:
                found = f"numbers up to {most:.4g}"
            else:
                continue
            raise UserError(
                f"{name}: {found}, but both must be floats [B, H, W, 3] in [-1, 1] of one shape; pixels of 0 "
                "to 255 become that by pixels / 127.5 - 1"
            )
        return compiled(self, images, others)

    return checked


def _largest(x: Array | np.ndarray) -> float:
    """The largest magnitude in an array, also while JAX traces something else."""
    with jax.ensure_compile_time_eval():
        return float(jnp.max(jnp.abs(x), initial=0))


class Perceptual(flax.struct.PyTreeNode):
    """The distance between images: 0 for equal ones; about 1 for unlike ones. Smaller is more similar.

    Images are float32 `[B, H, W, 3]`, RGB in [-1, 1], of any size from 31 x 31 pixels on. The functions are
    compiled, and differentiable by `jax.grad` with respect to the images. They raise `UserError` for images
    of other types or of unequal shapes, and, outside of your own `jax.jit`, for numbers beyond -2 to 2.

    Attributes:
      params: the five convolutions.
      linear: the weight of each channel, float32 `[C]` by layer, none below 0.
      model: the net.
    """

    params: Any
    linear: tuple[Array, ...]
    model: AlexNet = flax.struct.field(pytree_node=False)

    @_checked
    def __call__(self, images: Array, others: Array) -> Array:
        """The distance of each pair, float32 `[B]`: the sum of `by_layer`."""
        return jnp.sum(self.by_layer(images, others), axis=-1)

    @_checked
    def by_layer(self, images: Array, others: Array) -> Array:
        """The part of each layer in the distance, float32 `[B, 5]`."""
        return jnp.stack([jnp.mean(x, axis=(1, 2)) for x in self._differences(images, others)], axis=-1)

    @_checked
    def maps(self, images: Array, others: Array) -> Array:
        """Where the images differ, float32 `[B, H, W]`: the layers' maps, enlarged bilinearly and added."""
        shape = jnp.shape(images)[:3]
        maps = [jax.image.resize(x, shape, "bilinear") for x in self._differences(images, others)]
        return jnp.sum(jnp.stack(maps), axis=0)

    def _differences(self, images: Array, others: Array) -> list[Array]:
        """By layer: the squared differences of unit vectors of channels, summed by weight, `[B, h, w]`."""
        x = (jnp.concatenate([images, others]).astype(jnp.float32) - _SHIFT) / _SCALE
        _, activations = self.model.apply({"params": self.params}, x, capture=COMPARED)
        pairs = (jnp.split(_unit(activations[name]), 2) for name in COMPARED)
        return [jnp.square(a - b) @ weight for (a, b), weight in zip(pairs, self.linear, strict=True)]


def _unit(x: Array) -> Array:
    """Divides the channels `[..., C]` at each place by their length; the gradient at 0 is finite."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    positive = squares > 0  # the derivative of the root is infinite at 0, where all ReLUs are off
    return x / (jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 1.0) + _EPSILON)


def load(
    weights: str | os.PathLike[str] = "torchvision", linear: str | os.PathLike[str] = LINEAR
) -> Perceptual:
    """Loads the distance.

    Args:
      weights: torchvision's AlexNet, as `load_pretrained` reads it; the convolutions alone are enough.
      linear: weights of the channels, a `.pth` file as the `lpips` package saves it; by default the published
        ones of version 0.1, which are part of this package.

    Raises:
      UserError: a file is missing, damaged, or of another net.
    """
    loaded, path = pretrained.read(weights, partial=True), pathlib.Path(linear).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a file like {LINEAR}")
    with named(path):
        saved = torch_files.read(path)
    keys = [f"lin{i}.model.1.weight" for i in range(len(COMPARED))]
    if missing := [key for key in keys if key not in saved]:
        raise UserError(f"{path}: no {missing[0]} in it; give a file like {LINEAR}")
    by_layer = tuple(jnp.asarray(saved[key], jnp.float32).reshape(-1) for key in keys)
    ours, theirs = loaded.model.widths[:5], tuple(map(len, by_layer))
    if ours != theirs:
        raise UserError(
            f"{loaded.path}: has {ours} filters, but {path} needs {theirs}; give torchvision's net"
        )
    params = {name: layer for name, layer in loaded.variables["params"].items() if name.startswith("conv")}
    net = loaded.model.clone(layer5="activation")  # pooling needs larger images
    return Perceptual(params, by_layer, net)
