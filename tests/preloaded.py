"""What the server of tests/starts.py imports before it forks; nothing here starts a thread or a device."""

from alexnet_jax import launch, train  # noqa: F401
from alexnet_jax.common import host

host.skip_keras()  # as `main.py` does
host.tensorflow()
