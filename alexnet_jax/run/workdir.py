"""A run's directory: made or found, locked against a second run, and holding the config it was begun with."""

import fcntl
import json
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from alexnet_jax import config as configs
from alexnet_jax.common import files
from alexnet_jax.common.errors import UserError
from alexnet_jax.run import logs, processes

LOCK = "lock"
SEEN_WITHIN_SECONDS = 20.0


@contextmanager
def opened(workdir: pathlib.Path, config: configs.Config) -> Iterator[None]:
    """Makes the directory, or finds it with the config of a run that goes on, and keeps other runs out.

    Of several processes the first does so for all.

    Raises:
      UserError: it cannot be written, another run is using it, it holds a run of another config (each
        difference is listed), or it is not the same directory for all processes.
    """
    if not processes.is_first():
        processes.barrier()
        _find(workdir)
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / LOCK, "a+")  # noqa: SIM115  (closed in locked)
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be written ({error.strerror}); choose another"
        ) from error
    with _locked(lock, workdir):
        _claim(workdir, config)
        processes.barrier()
        yield


def _find(workdir: pathlib.Path) -> None:
    """Waits for what process 0 has made, which other hosts may see some seconds later."""
    deadline = time.monotonic() + SEEN_WITHIN_SECONDS
    while not (workdir / configs.FILE_NAME).exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"--workdir={workdir}: process 0 has made it, but {socket.gethostname()} does not see it; "
                "choose one on a file system that all hosts share"
            )
        time.sleep(0.1)


def _claim(workdir: pathlib.Path, config: configs.Config) -> None:
    """Leaves the config in the directory, if there is none or one that may become this."""
    if (workdir / configs.FILE_NAME).exists():
        different = configs.differences(configs.of_workdir(workdir), config)
        if different and not config.run.allow_changes:
            raise UserError(
                f"--workdir={workdir}: holds a run of another config ({'; '.join(different)}); "
                "choose another directory or the config it was begun with, or say --config.run.allow_changes"
            )
    elif (workdir / logs.STATUS).exists():
        raise UserError(
            f"--workdir={workdir}: holds a run without {configs.FILE_NAME}; choose another directory"
        )
    for left in workdir.glob(".*.tmp"):  # by a run that was killed as it wrote
        left.unlink()
    files.write_text(workdir / configs.FILE_NAME, config.to_json())


@contextmanager
def _locked(file: IO[str], workdir: pathlib.Path) -> Iterator[None]:
    """Keeps a second run out of `workdir` as long as this one lives.

    The lock is the kernel's, so that of a killed process is gone with it; the file names its holder.
    """
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"--workdir={workdir}: another run is using it ({_holder(file.read())}); "
                "wait for it, stop it, or choose another directory"
            ) from error
        except OSError as error:  # some file systems of networks have no locks
            print(
                f"warning: --workdir={workdir}: cannot be locked ({error.strerror}); see to it yourself that "
                "no second run uses it",
                file=sys.stderr,
            )
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        yield


def _holder(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "an unknown process"
