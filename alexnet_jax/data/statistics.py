"""Statistics of a training set: its mean image and the principal components of its colours.

All values are RGB in grey levels, 0-255. They are what the paper subtracts from each pixel (section 2)
and what its colour augmentation draws along (section 4.1).
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
    """What a data set knows of its training images.

    Attributes:
      mean_colour: `[3]` float32, mean of R, G, B over all training pixels.
      pca_sqrt_eigenvalues: `[3]` float32, square roots of the eigenvalues of the 3x3 covariance of RGB
        over all training pixels, in grey levels (standard deviations along the components).
      pca_eigenvectors: `[3, 3]` float32, one component a column, rows R, G, B.
      mean_image: `[S, S, 3]` float32, mean over the training images at the size they are stored in, or
        None where only the colour is known.
    """

    mean_colour: np.ndarray
    pca_sqrt_eigenvalues: np.ndarray
    pca_eigenvectors: np.ndarray
    mean_image: np.ndarray | None = None

    def mean(self, kind: str, size: int) -> np.ndarray:
        """What to subtract from images of side `size`: the mean `image` `[size, size, 3]` or `colour` `[3]`.

        Raises:
          UserError: there is no mean image.
        """
        if kind == "colour":
            return self.mean_colour
        if self.mean_image is None:
            raise UserError(
                "augment.mean=image: these images come without a mean image; set augment.mean=colour, or "
                "prepare them (python -m alexnet_jax prepare), which computes it"
            )
        return resize_mean(self.mean_image, size)

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes `statistics.npz` under `directory`; loaded without pickle."""
        arrays = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        files.write_npz(pathlib.Path(directory) / FILE_NAME, arrays)

    @classmethod
    def load(cls, directory: str | pathlib.Path) -> "Statistics | None":
        """Reads `directory`'s `statistics.npz`, or gives None where there is none.

        Raises:
          UserError: the file is there but cannot be read or lacks an array.
        """
        path = pathlib.Path(directory) / FILE_NAME
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{key: np.asarray(arrays[key], np.float32) for key in arrays.files})
        except Exception as error:
            raise UserError(f"{path}: not a statistics file ({error}); make it anew or delete it") from error


def resize_mean(mean: np.ndarray, size: int) -> np.ndarray:
    """A mean image for images of `size` x `size`, `[size, size, 3]` float32; a mean colour `[3]` as it is."""
    if mean.ndim == 1:
        return mean
    channels = [Image.fromarray(mean[..., c]) for c in range(3)]
    resized = [channel.resize((size, size), Image.Resampling.BILINEAR) for channel in channels]
    return np.stack([np.asarray(channel, np.float32) for channel in resized], axis=-1)


# The authors' own, over ILSVRC at 256 x 256, as released with the 2012 code.
ILSVRC = Statistics(
    mean_colour=np.array([127.305, 119.715, 104.913], np.float32),
    pca_sqrt_eigenvalues=np.array([19.7208, 37.0939, 121.7801], np.float32),
    pca_eigenvectors=np.array(
        [[0.41796, -0.71258, -0.56351], [-0.81698, -0.02354, -0.57618], [0.39731, 0.70120, -0.59200]],
        np.float32,
    ),
)
