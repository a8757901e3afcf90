"""Cached compiled code and XLA's options, unless the user turns them off."""

import hashlib
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from alexnet_jax.common import host
from alexnet_jax.weights import pretrained, published

SCRIPT = """
import pathlib
from alexnet_jax.common import host
directory = host.keep_compiled()
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x * 2 + 1)(3.0).block_until_ready()
print(directory)
"""


def kept(**variables):
    """The directory in which a fresh process caches compiled code."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    return done.stdout.strip()


def test_alexnet_jax_cache_holds_for_compiled_code_and_downloads(tmp_path, monkeypatch):
    """One rule for both, and it wins over XDG_CACHE_HOME."""
    own, other = str(tmp_path / "own"), str(tmp_path / "other")
    directory = pathlib.Path(kept(ALEXNET_JAX_CACHE=own, XDG_CACHE_HOME=other))
    assert directory.is_relative_to(tmp_path / "own" / "compiled") and any(directory.iterdir())

    weights = tmp_path / "w.pth"
    weights.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setitem(published.PUBLISHED, "caffe", published.Published(weights.as_uri(), "sha256", digest))
    monkeypatch.setenv("ALEXNET_JAX_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", other)
    assert pretrained._locate("caffe") == tmp_path / "own" / "w.pth"
    assert not (tmp_path / "other").exists()


def test_compiled_code_lies_in_the_users_cache(tmp_path):
    directory = pathlib.Path(kept(XDG_CACHE_HOME=str(tmp_path)))
    assert directory.is_relative_to(tmp_path / "alexnet_jax" / "compiled")
    assert any(directory.iterdir())


@pytest.mark.parametrize(
    "variable", ["ALEXNET_JAX_KEEP_COMPILED", "ALEXNET_JAX_SETTINGS", "JAX_COMPILATION_CACHE_DIR"]
)
def test_the_user_can_turn_it_off(tmp_path, variable):
    value = "0" if variable.startswith("ALEXNET") else str(tmp_path / "own")
    assert kept(XDG_CACHE_HOME=str(tmp_path), **{variable: value}) == "None"
    assert not (tmp_path / "alexnet_jax").exists()


def test_the_nets_convolutions_are_not_given_away(monkeypatch):
    """Where XLA has YNNPACK, the options keep its convolutions from it, and change no number by much."""
    monkeypatch.delenv(host.OPTIONS_SWITCH, raising=False)
    host.eigen_options.cache_clear()
    options = host.eigen_options()
    if not options:
        pytest.skip(f"jax {jax.__version__} on {jax.default_backend()} has no such option")

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(4, 27, 27, 48)), rng.normal(size=(5, 5, 48, 128))
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    run = jax.jit(convolve, compiler_options=options)
    text = run.lower(x, kernel).compile().as_text()
    assert "convolution(" in text
    assert "ynn" not in text
    # Sums of 1,200 products near 1: values are near 35 and up to 170.
    np.testing.assert_allclose(run(x, kernel), jax.jit(convolve)(x, kernel), rtol=5e-6, atol=2e-4)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALEXNET_JAX_XLA_OPTIONS", "0"),
        ("ALEXNET_JAX_SETTINGS", "0"),
        ("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type="),
    ],
)
def test_the_users_options_hold(monkeypatch, variable, value):
    host.eigen_options.cache_clear()
    monkeypatch.setenv(variable, value)
    assert host.eigen_options() == {}
    host.eigen_options.cache_clear()


def test_an_xla_without_the_option_does_without(monkeypatch):
    monkeypatch.setattr(host, "_ON_CPU", {"xla_cpu_of_another_year": "1"})
    host.eigen_options.cache_clear()
    assert host.eigen_options() == {}
    host.eigen_options.cache_clear()
