"""A run's images and preprocessing: opens the source in all processes and builds the training view."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from alexnet_jax import augment
from alexnet_jax import config as configs
from alexnet_jax.common import host
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import sources
from alexnet_jax.data.preprocess import TORCHVISION, Preprocess
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.run import processes


def open_images(data: configs.DataConfig, split: str) -> sources.Source:
    """The `train` or `test` images of a config.

    Raises:
      UserError: as in `sources.open_configured`, TensorFlow is missing, or the processes find different
        images.
    """
    host.require_tensorflow()
    source = processes.together(functools.partial(sources.open_configured, data, split))
    found = processes.gather(f"{len(source):,} {split} images of {source.num_classes} classes")
    for index, other in enumerate(found):
        if other != found[0]:
            raise UserError(
                f"data.source={data.source}: has {found[0]} for process 0, but {other} for process {index}; "
                "give all processes the same images"
            )
    return source


def new_preprocess(config: configs.Config, statistics: Statistics) -> Preprocess:
    """The preprocessing for a net trained from random weights."""
    data = config.data
    mean = statistics.mean(config.augment.mean, data.resize_size)
    # torchvision's net expects inputs of about unit variance, all others grey levels.
    std = TORCHVISION.std if config.model["variant"] == "torchvision" else np.ones(3, np.float32)
    mean_crop = config.augment.mean_crop
    return Preprocess(data.resize_size, data.image_size, mean=mean, std=std, mean_crop=mean_crop)


def training_view(
    config: configs.AugmentConfig,
    preprocess: Preprocess,
    statistics: Statistics,
    steps_at: Callable[[float], int],
) -> augment.Augment:
    """The augmentation for a net with this preprocessing and a training set with these statistics.

    Args:
      steps_at: converts epochs to the step at which they are complete.
    """
    until = config.colour_until_epochs
    return augment.Augment(
        config,
        size=preprocess.crop_size,
        mean=jnp.asarray(preprocess.mean),
        std=jnp.asarray(preprocess.std),
        mean_crop=preprocess.mean_crop,
        sqrt_eigenvalues=jnp.asarray(statistics.pca_sqrt_eigenvalues),
        eigenvectors=jnp.asarray(statistics.pca_eigenvectors),
        colour_until_step=None if until is None else steps_at(until),
    )
