"""AlexNet (2012) in JAX: the net, its two columns, its training."""

from alexnet_jax.errors import UserError
from alexnet_jax.model import AlexNet, create_model

__all__ = ["AlexNet", "UserError", "create_model"]
__version__ = "0.1.0"
