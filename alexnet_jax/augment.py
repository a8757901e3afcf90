"""Augmentation on the device: random crop, mirror, PCA colour, mean subtraction, ten views.

Images come as uint8 `[B, S, S, 3]` (256 x 256 in the paper) and leave as float32: grey levels 0-255 minus the
mean, divided by `std` (1 for all but torchvision's net).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from alexnet_jax import config as configs
from alexnet_jax.layers import by_example

Array = jax.Array


def random_views(
    key: Array, example_ids: Array, margin: int, *, crop: bool, mirror: bool
) -> tuple[Array, Array]:
    """Draws where to crop and whether to mirror: offsets `[B, 2]` in 0..margin (inclusive), flips `[B]` bool.

    Without `crop` the offset is central; without `mirror` nothing is flipped. Examples with the same id get
    the same view.
    """
    crop_key, mirror_key = jax.random.split(key)
    offsets = jnp.full((example_ids.shape[0], 2), margin // 2)
    if crop:
        offsets = by_example(crop_key, example_ids, lambda k: jax.random.randint(k, (2,), 0, margin + 1))
    flips = jnp.zeros(example_ids.shape[0], bool)
    if mirror:
        flips = by_example(mirror_key, example_ids, jax.random.bernoulli)
    return offsets, flips


def _mean_of_views(mean: Array, size: int, mean_crop: str, cut: Callable[[Array], Array]) -> Array:
    """What to subtract from views of `size` x `size`: one colour, one patch for all, or a patch for each.

    Args:
      mean: `[3]`, or a mean image `[S, S, 3]`.
      mean_crop: for a mean image. `centre`: its central patch, never mirrored, from every view, as in the
        2012 code (convdata_jpeg.py:95, 201-211). `same`: `cut(mean)`, cropped and mirrored like the view, as
        if subtracted from the stored image (section 2), and as in Caffe (data_transformer.cpp:98-115).
    """
    if mean.ndim == 1:
        return mean
    start = (len(mean) - size) // 2
    return mean[start : start + size, start : start + size] if mean_crop == "centre" else cut(mean)


def colour_shift(
    key: Array, example_ids: Array, sqrt_eigenvalues: Array, eigenvectors: Array, *, formula: str
) -> Array:
    """Draws the colour shift of section 4.1, added to every pixel of an image: `[B, 3]`, in grey levels.

    The shift is the sum over components i of `p_i * alpha_i * s_i`, with alpha_i of standard deviation 0.1,
    drawn once per image. In the paper s_i is the eigenvalue itself. In grey levels that would swamp the image
    (0.1 * 14,830), so `paper` takes pixels in [0, 1]: s_i = 255 * (sqrt_eigenvalue / 255) ** 2. The code
    behind the numbers (`original`) uses the square root: s_i = sqrt_eigenvalue, 2 to 13 times as large.

    Args:
      sqrt_eigenvalues: `[3]`, in grey levels.
      eigenvectors: `[3, 3]`, one component per column, rows R, G, B.
    """
    scale = {"original": sqrt_eigenvalues, "paper": jnp.square(sqrt_eigenvalues) / 255.0}[formula]
    alphas = 0.1 * by_example(key, example_ids, lambda k: jax.random.normal(k, (3,)))
    return (alphas * scale) @ eigenvectors.T


@dataclasses.dataclass(frozen=True, eq=False)
class Augment:
    """Draws one random view of each training image, as section 4.1 describes.

    Attributes:
      config: the config's section. With `colour="original"` the image is also divided by 1.1 in training, as
        in the 2012 code, which keeps the scale near that of the test data.
      size: side of the crops in pixels.
      mean: `[S, S, 3]` mean image or `[3]` mean colour; grey levels.
      sqrt_eigenvalues, eigenvectors: principal components of the colours, as in `colour_shift`.
      std: `[3]`, divides the result; 1 in the paper.
      mean_crop: `centre` or `same`, as in `_mean_of_views`.
      colour_until_step: the colour shift ends at this step (2012: epoch 68); None for never.
    """

    config: configs.AugmentConfig
    size: int
    mean: Array
    sqrt_eigenvalues: Array
    eigenvectors: Array
    std: Array | float = 1.0
    mean_crop: str = "same"
    colour_until_step: int | None = None

    def __call__(self, images: Array, key: Array, example_ids: Array, step: Array) -> Array:
        """Draws the views, `[B, size, size, 3]` float32.

        Args:
          images: `[B, S, S, 3]` uint8.
          example_ids: `[B]`, positions in the global batch.
          step: number of steps done.
        """

        def view(image: Array, offset: Array, flip: Array) -> Array:
            """The patch of one image at `offset` `[2]`, mirrored where `flip`."""
            patch = jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), (self.size, self.size, 3))
            return jnp.where(flip, patch[:, ::-1], patch)

        view_key, colour_key = jax.random.split(key)
        margin, runs = images.shape[1] - self.size, example_ids // self.config.run_length
        crop, mirror = self.config.crop, self.config.mirror
        offsets, flips = random_views(view_key, runs, margin, crop=crop, mirror=mirror)
        cut_mean = functools.partial(jax.vmap(view, in_axes=(None,)), offset=offsets, flip=flips)
        x = jax.vmap(view)(images, offsets, flips).astype(jnp.float32)
        x -= _mean_of_views(self.mean, self.size, self.mean_crop, cut_mean)
        formula = self.config.colour
        if formula == "none":
            return x / self.std
        components = self.sqrt_eigenvalues, self.eigenvectors
        shift = colour_shift(colour_key, example_ids, *components, formula=formula)
        shifted = x + shift[:, None, None, :]
        if formula == "original":
            shifted /= 1.1
        colour_on = self.colour_until_step is None or step < self.colour_until_step
        return jnp.where(colour_on, shifted, x) / self.std


def views(
    images: Array, number: int, *, mean: Array, std: Array | float = 1.0, size: int, mean_crop: str = "same"
) -> Array:
    """The patches to test on, (x - mean) / std: uint8 `[B, S, S, 3]` to float32 `[number, B, size, size, 3]`.

    Args:
      number: 10, the four corners and the centre, then their mirrors (section 4.1); 9, a 3 x 3 grid, as in
        cuda-convnet's test on CIFAR-10 (`convdata.py`); 1, the centre.
      mean_crop: as in `_mean_of_views`.
    """
    margin = images.shape[1] - size
    middle = margin // 2
    corners = {
        1: [(middle, middle)],
        9: list(itertools.product((0, middle, margin), repeat=2)),
        10: [(0, 0), (0, margin), (margin, 0), (margin, margin), (middle, middle)],
    }[number]

    def cut(images: Array) -> Array:
        patches = jnp.stack([images[:, top : top + size, left : left + size] for top, left in corners])
        return jnp.concatenate([patches, patches[:, :, :, ::-1]]) if number == 10 else patches

    own_mean = _mean_of_views(mean, size, mean_crop, lambda mean: cut(mean[None]))
    return (cut(images).astype(jnp.float32) - own_mean) / std
