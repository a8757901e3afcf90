"""Every test sees eight CPU devices, and mixed dtypes are errors."""

import getpass
import os
import pathlib
import tempfile

from tests import xla

# Set these before the first import of jax.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla.flags(devices=8)}".strip()
# Workers and the processes that tests start share one cache of compiled programs.
_CACHE = pathlib.Path(tempfile.gettempdir()) / f"alexnet_jax-tests-{getpass.getuser()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real photographs and weights, which are too large for the repository."""
    if not (folder := os.environ.get("ALEXNET_JAX_TEST_DATA")):
        pytest.skip("ALEXNET_JAX_TEST_DATA names no folder of real data")
    return pathlib.Path(folder)
