"""A disk that fills up, becomes read-only or disappears during a run."""

import errno
import os
import pathlib
import re
import resource
import shutil
import subprocess
import time
import types

import jax.numpy as jnp
import pytest

from alexnet_jax import train as training
from alexnet_jax.common import progress
from alexnet_jax.common.errors import Fault
from alexnet_jax.run import checkpoint, logs
from tests.faults import runs
from tests.faults.conftest import status

pytestmark = pytest.mark.slow

ROOM_FOR_LOGS = 72 * 1024  # bytes: enough for lines and events, not for a checkpoint


class SmallDisk:
    """A file system of 8 MB that can be filled."""

    def __init__(self, path: pathlib.Path):
        path.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path], capture_output=True)
        if made.returncode != 0:
            pytest.skip("mounting is not allowed here; the limit on file sizes stands in for it")
        self.path, self.workdir = path, path / "run"

    def fill(self, leave: int) -> None:
        with open(self.path / "filler", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC
            file.truncate(file.tell() - leave)

    def make_room(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.path], check=True)


class LimitOnFiles:
    """A limit on the size of this process's files, for machines where nothing can be mounted."""

    def __init__(self, path: pathlib.Path):
        path.mkdir()
        self.workdir = path / "run"
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, leave: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (leave, self._limits[1]))

    def make_room(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)

    close = make_room


@pytest.fixture(params=[SmallDisk, LimitOnFiles], ids=lambda kind: kind.__name__)
def disk(request, tmp_path, capsys):  # capsys: pytest's own output file is subject to the limit, too
    limited = request.param(tmp_path / "disk")
    yield limited
    limited.close()


def train(disk, config) -> str:
    try:
        return training.train(config, disk.workdir)
    finally:
        disk.make_room()


def test_a_save_that_fails_in_mid_run_is_a_warning(
    disk, config, whole, outcome, after_step, tmp_path, monkeypatch, capsys
):
    # Only the checkpoints are on the small disk: the log might not fit either.
    workdir = tmp_path / "run"
    workdir.mkdir()
    disk.workdir.mkdir()
    (workdir / "checkpoints").symlink_to(disk.workdir)
    say = progress.say

    def make_room_once_it_is_said(line):
        if "could not be written" in line:
            disk.make_room()
        say(line)

    monkeypatch.setattr(progress, "say", make_room_once_it_is_said)
    after_step(8, lambda: disk.fill(leave=ROOM_FOR_LOGS))
    assert training.train(config(**{"run.total_steps": 15}), workdir) == "done"
    said = capsys.readouterr().err
    assert said.count("warning:") == 1
    assert "a checkpoint could not be written" in said
    assert "the last good checkpoint is of step 6; training goes on" in said
    # 5 is the best; 9 is missing; 12 and 15 are saved as usual.
    assert sorted(int(p.name) for p in disk.workdir.iterdir()) == [5, 6, 12, 15]
    shutil.rmtree(disk.workdir / "15")
    assert outcome(workdir).state == whole[1].state


def test_too_little_room_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    state, said = {"params": {"w": jnp.zeros(12)}}, []  # 48 bytes
    checkpoints = checkpoint.Checkpoints(tmp_path, say=said.append)
    for free, saved in ((47, None), (48, 2), (47, 2)):
        usage = types.SimpleNamespace(free=free)
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path, usage=usage: usage)
        checkpoints.save(2 if free == 48 else 3, state, {})
        checkpoints.wait()
        assert checkpoints.saved_step == saved
    assert len(said) == 2
    assert "could not be written (No space left on device); there is no checkpoint before it" in said[0]
    assert "the last good checkpoint is of step 2; training goes on" in said[1]
    with pytest.raises(Fault, match="make room and start the same command again"):
        checkpoints.save(4, state, {})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    checkpoints.close()


def test_the_second_failed_save_in_a_row_ends_the_run(disk, config, after_step, tmp_path, capsys):
    """tensorpack#1317: training went on to the end with nothing saved."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    disk.workdir.mkdir()
    (workdir / "checkpoints").symlink_to(disk.workdir)
    after_step(4, lambda: disk.fill(leave=ROOM_FOR_LOGS))
    longer = config(**{"run.total_steps": 30, "run.eval_every_steps": 30})
    with pytest.raises(Fault, match="a checkpoint could not be written") as caught:
        training.train(longer, workdir)
    disk.make_room()
    assert "the last good checkpoint is of step 3; make room and start the same" in str(caught.value)
    assert capsys.readouterr().err.count("training goes on") == 1
    assert status(workdir)["status"] == "failed"
    assert "could not be written" in status(workdir)["message"]
    assert (
        max(line["step"] for line in logs.read_metrics(workdir)) <= 12
    )  # saves at 6 and 9, seen at 9 and 12
    assert training.train(longer, workdir) == "done"


def test_a_last_save_that_fails_is_a_fault_and_the_run_goes_on_later(
    disk, config, whole, outcome, after_step
):
    after_step(11, lambda: disk.fill(leave=ROOM_FOR_LOGS))
    with pytest.raises(Fault, match="a checkpoint could not be written") as caught:
        train(disk, config())
    assert "the last good checkpoint is of step 9; make room and start the same" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert outcome(disk.workdir).step == 9
    assert training.train(config(), disk.workdir) == "done"
    assert outcome(disk.workdir) == whole[1]


def test_a_line_of_metrics_that_cannot_be_written_is_a_fault(disk, config, whole, outcome, after_step):
    after_step(8, lambda: disk.fill(leave=0))
    with pytest.raises(Fault, match="the disk is full; make room and start the same command again") as caught:
        train(disk, config())
    assert "\n" not in str(caught.value)
    # There is no room for a new status either, so the old one remains.
    assert status(disk.workdir)["status"] == "running"
    assert training.train(config(), disk.workdir) == "done"
    assert outcome(disk.workdir) == whole[1]


def test_a_disk_that_is_full_from_the_start_is_one_line(images, tmp_path):
    disk = SmallDisk(tmp_path / "disk")
    try:
        disk.fill(leave=40 * 1024)
        code, said = runs.run(runs.command(images, disk.workdir, **{"run.total_steps": 3}))
    finally:
        disk.close()
    assert code == 1
    assert [line for line in said.splitlines() if re.match("error|ERROR|W0", line)] == said.splitlines()[-1:]
    assert "make room and start the same command again" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_workdir_that_becomes_read_only(images, outcome, tmp_path):
    """As a file system that the kernel remounts after a disk error."""
    disk = SmallDisk(tmp_path / "disk")
    try:
        arguments = runs.command(images, disk.workdir, **{"run.total_steps": 10_000})
        process = runs.Process(arguments)
        assert process.wait_for("^step 30/")
        remount(disk, "ro")
        since = time.monotonic()
        assert process.end() == 1
        assert time.monotonic() - since < 30
        end = process.said.splitlines()[-1]
        assert re.fullmatch(
            f"error: {disk.workdir}: cannot be .*Read-only .* start the same command again.*", end
        )
        # Where a save was under way, orbax may have logged tracebacks before; nothing comes after our line.
        code, said = runs.run(arguments)
        assert (code, said.count("\n")) == (2, 1)
        assert f"--workdir={disk.workdir}: cannot be written (Read-only file system)" in said
        remount(disk, "rw")
        assert outcome(disk.workdir).step >= 20
    finally:
        disk.close()


def remount(disk: SmallDisk, mode: str) -> None:
    # A mount cannot become read-only while files are open for writing, but a bind mount of it can.
    if mode == "ro":
        subprocess.run(["mount", "--bind", disk.path, disk.path], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", disk.path], check=True)
    else:
        subprocess.run(["umount", "-l", disk.path], check=True)


@pytest.mark.parametrize("step", [5, 8])  # before a test and at a save
def test_a_workdir_that_is_removed(config, tmp_path, after_step, step):
    workdir = tmp_path / "run"
    after_step(step, lambda: shutil.rmtree(workdir))
    with pytest.raises(Fault, match=f"{workdir}: was removed while the run was using it"):
        training.train(config(), workdir)


def test_what_a_killed_run_left_half_written_goes(config, tmp_path):
    tmp_path.joinpath(f".{logs.STATUS}.{os.getpid()}.tmp").write_text("{")
    training.train(config(**{"run.total_steps": 1}), tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))
