"""Any source to prepared records: a TFDS directory of 256 x 256 JPEGs with the statistics beside it."""

import numpy as np

from alexnet_jax.statistics import Statistics


class ColourSums:
    """Exact sums over images, from which the statistics follow; the order of the images does not matter."""

    def __init__(self, image_size: int) -> None:
        self.count = 0
        self.pixels = np.zeros((image_size, image_size, 3), np.int64)  # of values, by position
        self.products = np.zeros((3, 3), np.int64)  # of pairs of channels, over all pixels

    def add(self, images: np.ndarray) -> None:
        """Adds uint8 `images` `[N, S, S, 3]`."""
        self.count += len(images)
        self.pixels += images.sum(axis=0, dtype=np.int64)
        for image in images:
            # A float64 product is exact here: every sum is a whole number far below 2**53.
            flat = image.reshape(-1, 3).astype(np.float64)
            self.products += (flat.T @ flat).astype(np.int64)

    def statistics(self) -> Statistics:
        """Mean image, mean colour and principal components of RGB, smallest first as in the 2012 release."""
        mean_image = self.pixels / self.count
        mean = mean_image.mean(axis=(0, 1))
        pixels = self.count * self.pixels[..., 0].size
        covariance = self.products / pixels - np.outer(mean, mean)
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
