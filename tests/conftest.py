"""Every test sees eight CPU devices, and mixed dtypes are errors."""

import os

# Both must be set before jax is first imported; other XLA flags of the environment stay.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
)

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
