"""The pass over a training set from which its statistics follow."""

import dataclasses

import numpy as np

from alexnet_jax.data.statistics import Statistics


@dataclasses.dataclass
class ColourSums:
    """Exact sums over images, from which the statistics follow; the order of the images does not matter.

    Attributes:
      count: number of images.
      pixels: int64 `[S, S, 3]`, sums of values by position.
      products: int64 `[3, 3]`, sums of products of two channels over all pixels.
    """

    count: int
    pixels: np.ndarray
    products: np.ndarray

    @classmethod
    def zeros(cls, image_size: int) -> "ColourSums":
        return cls(0, np.zeros((image_size, image_size, 3), np.int64), np.zeros((3, 3), np.int64))

    @classmethod
    def of(cls, image: np.ndarray) -> "ColourSums":
        """The sums of one uint8 image `[S, S, 3]`."""
        # A product in float64 is exact here: its sums are whole numbers far below 2**53.
        flat = image.reshape(-1, 3).astype(np.float64)
        return cls(1, image.astype(np.int64), (flat.T @ flat).astype(np.int64))

    def add(self, other: "ColourSums") -> None:
        self.count += other.count
        self.pixels += other.pixels
        self.products += other.products

    def statistics(self) -> Statistics:
        """Mean image, mean colour and principal components of RGB, smallest first as in the 2012 release."""
        mean_image = self.pixels / self.count
        mean = mean_image.mean(axis=(0, 1))
        covariance = self.products / (self.count * self.pixels[..., 0].size) - np.outer(mean, mean)
        eigenvalues, eigenvectors = np.linalg.eigh(covariance)
        # Grey images vary along one direction alone: the other two are rounding errors about zero, perhaps
        # below.
        eigenvalues[eigenvalues < 1e-6 * eigenvalues.max()] = 0.0
        return Statistics(
            mean_colour=mean.astype(np.float32),
            pca_sqrt_eigenvalues=np.sqrt(eigenvalues).astype(np.float32),
            pca_eigenvectors=eigenvectors.astype(np.float32),
            mean_image=mean_image.astype(np.float32),
        )
