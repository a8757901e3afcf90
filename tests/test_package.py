"""The wheel, built and installed as users do, away from the checkout."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

import alexnet_jax

ROOT = pathlib.Path(__file__).parents[1]
USE = """
import importlib.metadata, pathlib, sys
import numpy as np
import alexnet_jax
from alexnet_jax.data import classes, sources
from alexnet_jax.weights import pretrained

assert pathlib.Path(alexnet_jax.__file__).is_relative_to(sys.prefix), alexnet_jax.__file__
assert importlib.metadata.version("alexnet-jax") == alexnet_jax.__version__
source = sources.open_source("embedded", "test")
encoded, labels = source.read(np.arange(3))
assert len(source) == 2000 and encoded[0].startswith(b"\\x89PNG")
assert classes.readable_names(["n01440764"]) == ("tench, Tinca tinca",)
print(len(pretrained.imagenet_classes()))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, which no earlier build has left anything in, and without the network."""
    out, copy = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("copy")
    for name in ("pyproject.toml", "README.md", "LICENSE", *(p.name for p in ROOT.glob("requirements*.txt"))):
        shutil.copy(ROOT / name, copy / name)
    for name in ("alexnet_jax", "configs", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, f"--wheel-dir={out}", str(copy)], cwd=out, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_has_the_package_and_its_data_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    info = {name for name in names if ".dist-info/" in name}
    package = {name.removeprefix("alexnet_jax/") for name in names - info}
    there = {path.relative_to(ROOT / "alexnet_jax") for path in (ROOT / "alexnet_jax").rglob("*")}
    wanted = {str(p) for p in there if (ROOT / "alexnet_jax" / p).is_file() and "__pycache__" not in p.parts}
    assert package == wanted and "py.typed" in package
    assert wheel.name.startswith(f"alexnet_jax-{alexnet_jax.__version__}-py3-none-any")
    assert "Provides-Extra: demo" in metadata and "Requires-Dist: gradio" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in info)


def test_installed_in_a_fresh_environment_it_works_from_any_directory(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = pathlib.Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    pip = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True, timeout=300)
    # What it needs is lent from here, after its own: to fetch it all again would take minutes.
    (site / "lent.pth").write_text(sysconfig.get_path("purelib"))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1000"
