"""AlexNet (2012) in JAX: the net, its two columns, its training."""

from alexnet_jax.common.errors import UserError
from alexnet_jax.data.preprocess import Preprocess
from alexnet_jax.model import AlexNet
from alexnet_jax.variants import create_model
from alexnet_jax.weights.pretrained import load_pretrained, save_pretrained

__all__ = ["AlexNet", "Preprocess", "UserError", "create_model", "load_pretrained", "save_pretrained"]
__version__ = "0.1.0"
