"""Statistics of a training set: mean image and principal components of the colours.

All values are RGB in grey levels, 0-255. The paper subtracts the mean from each pixel (section 2) and draws
its colour augmentation along the components (section 4.1).
"""

import dataclasses
import pathlib

import numpy as np
from PIL import Image

from alexnet_jax.common import files
from alexnet_jax.common.errors import UserError

FILE_NAME = "statistics.npz"


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of the training images of one data set."""

    mean_colour: np.ndarray  # float32 [3], mean of R, G, B over all training pixels
    # float32 [3], square roots of the eigenvalues of the 3x3 covariance of RGB over all training pixels:
    # standard deviations along the components, smallest first as in the authors' files
    pca_sqrt_eigenvalues: np.ndarray
    pca_eigenvectors: np.ndarray  # float32 [3, 3], one component per column, rows R, G, B
    mean_image: np.ndarray | None = None  # float32 [S, S, 3], mean of the stored training images, if known

    def mean(self, kind: str, size: int) -> np.ndarray:
        """The mean to subtract from images of side `size`: `image` `[size, size, 3]` or `colour` `[3]`.

        Raises:
          UserError: there is no mean image.
        """
        if kind == "colour":
            return self.mean_colour
        if self.mean_image is None:
            raise UserError(
                "augment.mean=image: this source has no mean image; set augment.mean=colour, or prepare the "
                "images (python -m alexnet_jax prepare), which computes it"
            )
        return resize_mean(self.mean_image, size)

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes `statistics.npz` under `directory`."""
        arrays = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        files.write_npz(pathlib.Path(directory) / FILE_NAME, arrays)

    @classmethod
    def load(cls, directory: str | pathlib.Path) -> "Statistics | None":
        """Reads `statistics.npz` in `directory` without pickle; None if the file does not exist.

        Raises:
          UserError: the file cannot be read or lacks an array.
        """
        path = pathlib.Path(directory) / FILE_NAME
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{key: np.asarray(arrays[key], np.float32) for key in arrays.files})
        except Exception as error:
            raise UserError(f"{path}: not a statistics file ({error}); delete it or make it again") from error


@dataclasses.dataclass(frozen=True)
class ColourSums:
    """Exact integer sums over images, enough for their statistics; independent of the images' order."""

    count: int  # number of images
    pixels: np.ndarray  # int64 [S, S, 3], sums of the values at each position
    products: np.ndarray  # int64 [3, 3], sums of products of two channels over all pixels

    @classmethod
    def zeros(cls, size: int) -> "ColourSums":
        return cls(0, np.zeros((size, size, 3), np.int64), np.zeros((3, 3), np.int64))

    @classmethod
    def of(cls, images: np.ndarray) -> "ColourSums":
        """The sums of uint8 images `[N, S, S, 3]`."""
        # Exact in float64: the sums are integers far below 2**53.
        flat = (image.reshape(-1, 3).astype(np.float64) for image in images)
        products = sum((pixels.T @ pixels for pixels in flat), np.zeros((3, 3)))
        return cls(len(images), images.sum(axis=0, dtype=np.int64), products.astype(np.int64))

    def __add__(self, other: "ColourSums") -> "ColourSums":
        pixels, products = self.pixels + other.pixels, self.products + other.products
        return ColourSums(self.count + other.count, pixels, products)

    def statistics(self) -> Statistics:
        """The statistics of the summed images."""
        mean_image = self.pixels / self.count
        mean = mean_image.mean(axis=(0, 1))
        covariance = self.products / (self.count * self.pixels[..., 0].size) - np.outer(mean, mean)
        eigenvalues, eigenvectors = np.linalg.eigh(covariance)
        # Grey images vary along one direction; the other two eigenvalues are rounding errors, some negative.
        eigenvalues[eigenvalues < 1e-6 * eigenvalues.max()] = 0.0
        return Statistics(
            mean_colour=mean.astype(np.float32),
            pca_sqrt_eigenvalues=np.sqrt(eigenvalues).astype(np.float32),
            pca_eigenvectors=eigenvectors.astype(np.float32),
            mean_image=mean_image.astype(np.float32),
        )


def resize_mean(mean: np.ndarray, size: int) -> np.ndarray:
    """Resizes a mean image to `[size, size, 3]` float32; returns a mean colour `[3]` unchanged."""
    if mean.ndim == 1:
        return mean
    channels = (Image.fromarray(mean[..., channel]) for channel in range(3))
    resized = [channel.resize((size, size), Image.Resampling.BILINEAR) for channel in channels]
    return np.stack([np.asarray(channel) for channel in resized], axis=-1)


# Krizhevsky's values over ILSVRC at 256 x 256, from cuda-convnet2 of 2014 (make-data/input_meta). The 2012
# code reads such a file (convdata.py:39-41) but was released without it.
ILSVRC = Statistics(
    mean_colour=np.array([127.305, 119.715, 104.913], np.float32),
    pca_sqrt_eigenvalues=np.array([19.7208, 37.0939, 121.7801], np.float32),
    pca_eigenvectors=np.array(
        [[0.41796, -0.71258, -0.56351], [-0.81698, -0.02354, -0.57618], [0.39731, 0.70120, -0.59200]],
        np.float32,
    ),
)
