"""What was compiled is kept in the user's cache, unless the user says otherwise."""

import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = """
import pathlib
from alexnet_jax import compiled
directory = compiled.keep()
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x * 2 + 1)(3.0).block_until_ready()
print(directory)
"""


def kept(**variables):
    """The directory that a fresh process says it keeps what it compiled in."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=True,
        cwd=pathlib.Path(__file__).parents[1],
    )
    return done.stdout.strip()


def test_it_lies_in_the_users_cache(tmp_path):
    directory = pathlib.Path(kept(XDG_CACHE_HOME=str(tmp_path)))
    assert directory.is_relative_to(tmp_path / "alexnet_jax" / "compiled")
    assert any(directory.iterdir())


@pytest.mark.parametrize("variable", ["ALEXNET_JAX_KEEP_COMPILED", "JAX_COMPILATION_CACHE_DIR"])
def test_the_user_can_say_otherwise(tmp_path, variable):
    value = "0" if variable.startswith("ALEXNET") else str(tmp_path / "own")
    assert kept(XDG_CACHE_HOME=str(tmp_path), **{variable: value}) == "None"
    assert not (tmp_path / "alexnet_jax").exists()
