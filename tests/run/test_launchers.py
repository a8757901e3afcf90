"""Real launchers, each with two processes on this machine: Slurm's `srun`, and `mpirun` of Open MPI."""

import os
import shutil
import subprocess

import numpy as np
import pytest

from alexnet_jax.run import logs
from tests import tiny
from tests.processes import ROOT, arguments, command, environment

pytestmark = pytest.mark.slow

LAUNCHERS = ROOT / "tests" / "launchers"
SLURM = ("srun", "slurmctld", "slurmd", "munged")
MPI = ("mpirun",)


def needs(*commands):
    absent = [name for name in commands if shutil.which(name) is None]
    why = f"{', '.join(absent)} missing: as root, bash tests/launchers/install.sh installs them (Debian)"
    return pytest.mark.skipif(bool(absent), reason=why)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start the Slurm daemons")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.make_images(tmp_path_factory.mktemp("images"), train=6, test=3)


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """Losses of one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    done = launched(images, workdir)
    assert done.returncode == 0, done.stderr
    assert "1 x 1 (data x column)" in done.stderr
    return losses(workdir)


def losses(workdir):
    return [line["train/loss"] for line in logs.read_metrics(workdir) if "train/loss" in line]


def launched(images, workdir, *launcher):
    run = command(*arguments(images, workdir, **{"run.total_steps": 20}))
    return subprocess.run(
        [*launcher, *run], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=400
    )


def same_as_alone(done, workdir, alone):
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 x 1 (data x column)") == 1
    assert len(alone) == 4
    np.testing.assert_allclose(losses(workdir), alone, rtol=1e-4)


@as_root
@needs(*SLURM)
def test_srun(images, alone, tmp_path):
    slurm = ["bash", str(LAUNCHERS / "slurm.sh"), str(tmp_path / "slurm")]
    done = launched(images, tmp_path / "run", *slurm, "srun", "-n", "2")
    same_as_alone(done, tmp_path / "run", alone)


@needs(*MPI)
def test_mpirun(images, alone, tmp_path):
    launcher = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    same_as_alone(launched(images, tmp_path / "run", *launcher), tmp_path / "run", alone)


@needs(*MPI)
def test_one_task_of_a_launcher_is_a_process_by_itself(images, alone, tmp_path):
    done = launched(images, tmp_path / "run", "mpirun", "--allow-run-as-root", "-n", "1")
    assert done.returncode == 0, done.stderr
    assert "1 x 1 (data x column)" in done.stderr
    assert losses(tmp_path / "run") == alone
