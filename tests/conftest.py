"""Every test sees eight CPU devices, and mixed dtypes are errors."""

import os

# Set before jax is first imported. Most of the suite's time is LLVM's, which compiles each program for one
# run: without its optimisations the suite takes half as long. What XLA itself does stays as it is.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
