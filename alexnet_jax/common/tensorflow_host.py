"""TensorFlow as a library of the host: quiet, off the accelerators, and done without where it is missing."""

import functools
import importlib
import importlib.util
import os
from typing import Any


def installed() -> bool:
    """Whether there is a TensorFlow; the free TPU runtime of Colab has none."""
    return importlib.util.find_spec("tensorflow") is not None


@functools.cache
def tensorflow() -> Any:
    """Imports TensorFlow and hides the accelerators from it, for it would take the memory that JAX needs."""
    # Without these it greets every user with lines on instruction sets, missing CUDA and rounding.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    tf = importlib.import_module("tensorflow")
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    return tf
