"""A run's directory: made or found, locked against a second run, and holding the config it was begun with."""

import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from alexnet_jax import config as configs
from alexnet_jax import logs
from alexnet_jax.errors import UserError

LOCK = "lock"


@contextmanager
def opened(workdir: pathlib.Path, config: configs.Config) -> Iterator[None]:
    """Makes the directory, or finds it with the config of a run that goes on, and keeps other runs out.

    Raises:
      UserError: it cannot be written, another run is using it, or it holds a run of another config (each
        difference is listed).
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / LOCK, "a+")  # noqa: SIM115  (closed in locked)
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be written ({error.strerror}); choose another"
        ) from error
    with _locked(lock, workdir):
        _claim(workdir, config)
        yield


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
    logs.write_atomically(workdir / configs.FILE_NAME, config.to_json())


@contextmanager
def _locked(file: IO[str], workdir: pathlib.Path) -> Iterator[None]:
    """Keeps a second run out of `workdir` as long as this one lives.

    The lock is the kernel's, so that of a killed process is gone with it; the file names its holder.
    """
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UserError(
                f"--workdir={workdir}: another run is using it ({_holder(file.read())}); "
                "wait for it, stop it, or choose another directory"
            ) from error
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
