"""AlexNet (2012) in JAX: the net, its two columns, its training."""

import os

# Several libraries import TensorFlow; whichever is first, it should not talk to the user of a JAX program.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from alexnet_jax.common.errors import UserError
from alexnet_jax.data.preprocess import Preprocess
from alexnet_jax.model import AlexNet, create_model
from alexnet_jax.weights.pretrained import load_pretrained, save_pretrained

__all__ = ["AlexNet", "Preprocess", "UserError", "create_model", "load_pretrained", "save_pretrained"]
__version__ = "0.1.0"
