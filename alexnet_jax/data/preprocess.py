"""Preprocessing from an image to a net's input: resize rule, crop, mean and scale.

Preprocessing belongs to the weights: with another net's they lose up to two points of accuracy. Colours are
always RGB; conv1 of a net trained on BGR is flipped when its weights are loaded.
"""

import base64
import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from alexnet_jax import augment
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import decode
from alexnet_jax.data.statistics import resize_mean

_CHOICES = {"resize": ("central", "torchvision", "squash"), "mean_crop": ("centre", "same")}


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """The preprocessing of a net: `stored` makes the square, as in training; `view` crops and normalises it.

    Attributes:
      resize_size: S, side of the square in pixels.
      crop_size: side of the net's input patches in pixels.
      resize: `central`: shorter side to S, then the central square, as in section 2 and in this package's
        input pipeline; `torchvision`: the same with the rounding of torchvision's transforms; `squash`: both
        sides to S, ignoring the aspect ratio, as in Caffe's ImageNet.
      mean: RGB in grey levels, `[3]` for one colour or `[S, S, 3]` for a mean image.
      std: `[3]`, RGB in grey levels: the divisor after the mean is subtracted.
      mean_crop: what of a mean image is subtracted from a view: `centre`, always its central patch, as in
        2012; `same`, the patch at the view's place, mirrored with it, as in Caffe.
    """

    resize_size: int = 256
    crop_size: int = 224
    resize: str = "central"
    mean: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(3, np.float32))
    std: np.ndarray = dataclasses.field(default_factory=lambda: np.ones(3, np.float32))
    mean_crop: str = "same"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (choice := getattr(self, name)) not in choices:
                raise UserError(f"preprocess.{name}={choice!r}: choose one of {', '.join(choices)}")
        if not 0 < self.crop_size <= self.resize_size:
            raise UserError(f"preprocess.crop_size={self.crop_size}: must be 1 to {self.resize_size}")
        mean, square = np.asarray(self.mean, np.float32), (self.resize_size, self.resize_size, 3)
        if mean.shape not in ((3,), square):
            raise UserError(f"preprocess.mean: the shape is {list(mean.shape)}, not [3] or {list(square)}")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", np.asarray(self.std, np.float32))

    def __call__(self, images: Any) -> np.ndarray:
        """The net's input for one image, float32 `[crop_size, crop_size, 3]`, or `[N, ...]` for a list.

        Args:
          images: a path, the bytes of an image file, a Pillow image, or uint8 `[H, W, 3]` or `[H, W]`; or a
            list of them.

        Raises:
          UserError: an image cannot be read, or the list is empty.
        """
        if is_one(images):
            return self([images])[0]
        return np.asarray(self.view(np.stack([self.stored(image) for image in images])))

    def stored(self, image: Any) -> np.ndarray:
        """Resizes one image to a square, uint8 `[S, S, 3]`; arguments and errors as in `__call__`."""
        name = str(image) if isinstance(image, str | os.PathLike) else "image"
        try:
            if isinstance(image, str | os.PathLike):
                image = pathlib.Path(image).read_bytes()
        except OSError as error:
            raise UserError(f"{name}: cannot be read ({error.strerror}); give image files") from error
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8:
                raise UserError(f"an image as an array must be uint8, 0 to 255, not {image.dtype}")
            image = Image.fromarray(image)
        square = self.decode(image) if isinstance(image, bytes) else self._square(image)
        if square is None:
            raise UserError(f"{name}: not a complete image in a known format; save HEIC as JPEG")
        return square

    def decode(self, file: str | bytes) -> np.ndarray | None:
        """Decodes an image file, a path or its bytes, to a square; None if it is not a complete image."""
        try:
            data = file if isinstance(file, bytes) else pathlib.Path(file).read_bytes()
        except OSError:
            return None
        if self.resize == "central":
            return decode.decode_square(data, self.resize_size)
        return decode.decode(data, self._square)

    def _square(self, image: Image.Image) -> np.ndarray:
        size = self.resize_size
        if self.resize == "central":
            return decode.central_square(image, size)
        image = decode.as_rgb(image)
        if self.resize == "squash":
            return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
        # torchvision truncates the longer side and rounds the crop's corner to nearest, halves to even.
        width, height = (size * side // min(image.size) for side in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized.crop((left, top, left + size, top + size)))

    def view(self, stored: Any) -> jax.Array:
        """The central patches, normalised: uint8 `[B, S, S, 3]` to float32 `[B, crop_size, crop_size, 3]`."""
        return self.views(stored, 1)[0]

    def views(self, stored: Any, number: int) -> jax.Array:
        """The patches to test on, as in `augment.views`: float32 `[number, B, crop_size, crop_size, 3]`.

        Args:
          number: 10, the views of section 4.1; 9, a 3 x 3 grid; 1, the centre.
        """
        how = {"mean": jnp.asarray(self.mean), "std": jnp.asarray(self.std), "mean_crop": self.mean_crop}
        return augment.views(jnp.asarray(stored), number, size=self.crop_size, **how)

    def resized(self, resize_size: int, crop_size: int) -> "Preprocess":
        """A copy with other sizes and the rule `central`, as the input pipeline uses in training."""
        mean = resize_mean(self.mean, resize_size)
        return Preprocess(resize_size, crop_size, "central", mean, self.std, self.mean_crop)

    def to_json(self) -> dict[str, Any]:
        """Converts to JSON values; a mean image becomes base64 of its float32 bytes."""
        mean = self.mean.tolist() if self.mean.ndim == 1 else base64.b64encode(self.mean.tobytes()).decode()
        return {**dataclasses.asdict(self), "mean": mean, "std": self.std.tolist()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Preprocess":
        """The reverse of `to_json`."""
        mean, side = values["mean"], values["resize_size"]
        if isinstance(mean, str):
            mean = np.frombuffer(base64.b64decode(mean), np.float32).reshape(side, side, 3)
        return cls(**{**values, "mean": np.asarray(mean, np.float32)})


def is_one(images: Any) -> bool:
    """Whether `images` is one image instead of a list or an array `[N, H, W, 3]` of several.

    Raises:
      UserError: there are none, or only an iterator over them.
    """
    if hasattr(images, "__next__"):
        raise UserError("images: an iterator, which can be read only once; give a list")
    one = not isinstance(images, list | tuple) and getattr(images, "ndim", 0) < 4
    if not one and not len(images):
        raise UserError("images: an empty list; give at least one image")
    return one


# PyTorch's usual ImageNet mean and standard deviation, which it states for [0, 1].
TORCHVISION = Preprocess(
    resize="torchvision",
    mean=np.array([0.485, 0.456, 0.406], np.float32) * 255,
    std=np.array([0.229, 0.224, 0.225], np.float32) * 255,
)
# Caffe's, with the mean colour of its mean image, so its file is not needed.
CAFFE = Preprocess(
    crop_size=227, resize="squash", mean=np.array([122.67891434, 116.66876762, 104.00698793], np.float32)
)
