"""The wheel, built and installed as users do, away from the checkout."""

import json
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
from tests import tiny

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
assert alexnet_jax.perceptual.LINEAR.stat().st_size == 6009
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
    wanted |= {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert package == wanted and {"py.typed", "configs/default.py"} <= package
    assert wheel.name.startswith(f"alexnet_jax-{alexnet_jax.__version__}-py3-none-any")
    assert "Provides-Extra: demo" in metadata and "Requires-Dist: gradio" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in info)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The `bin` directory of a fresh environment with the wheel."""
    directory = tmp_path_factory.mktemp("venv")
    venv.create(directory, with_pip=False)
    python = directory / "bin" / "python"
    site = pathlib.Path(sysconfig.get_path("purelib", vars={"base": str(directory)}))
    pip = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True, timeout=300)
    # Its requirements are borrowed from here: installing them again would take minutes.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return directory / "bin"


def run(*command, cwd):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=400
    )


def test_installed_in_a_fresh_environment_it_works_from_any_directory(installed, tmp_path):
    done = run(installed / "python", "-c", USE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1000"


TWO_STEPS = [
    *(f"--config.{key}={value}" for key, value in tiny.NET.items()),
    "--config.run.total_steps=2",
    "--config.run.total_epochs=None",
]


@pytest.mark.slow
def test_installed_it_trains_the_default_config_in_an_empty_directory(installed, tmp_path):
    """The default config, narrow."""
    done = run(installed / "python", "-m", "alexnet_jax", "train", *TWO_STEPS, "--workdir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["step"]) == ("done", 2)


OWN = """
from configs import {parent}


def get_config():
    config = {parent}.get_config()
    config.optimizer.momentum = 0.5
    return config
"""


@pytest.mark.parametrize(
    ("flag", "momentum"), [("run148", 0.9), ("configs/run148.py", 0.9), ("configs/mine.py", 0.5)]
)
def test_installed_it_finds_its_configs_and_the_user_s(installed, tmp_path, flag, momentum):
    """A config by name, by the path that it has in a checkout, and one that starts from another."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text(OWN.format(parent="default"))
    program = (
        "import sys; from alexnet_jax import launch\n"
        "launch.summarise = lambda config: print(config.optimizer.momentum) or 0\n"
        "sys.exit(launch.main(sys.argv[1:]))"
    )
    done = run(installed / "python", "-c", program, f"--config={flag}", "--mode=summary", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == momentum


def test_the_console_script(installed, tmp_path):
    done = run(installed / "alexnet-jax", "--version", cwd=tmp_path)
    assert done.stdout == f"alexnet-jax {alexnet_jax.__version__}\n"
    done = run(installed / "alexnet-jax", "summary", "--config=no_such", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --config=no_such: no such file; choose one of cnn_star")
    assert done.stderr.count("\n") == 1
