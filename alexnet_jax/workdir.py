"""A run's directory: made or found, locked against a second run, and holding the config it was begun with."""

import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from alexnet_jax import config as configs
from alexnet_jax import logs
from alexnet_jax.errors import UserError

LOCK = "lock"


def open_workdir(path: str | pathlib.Path, config: configs.Config) -> pathlib.Path:
    """Makes the directory, or finds it with the config of a run that is to go on.

    Raises:
      UserError: it cannot be written, or holds a run of another config (each difference is listed).
    """
    workdir = pathlib.Path(path)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be written ({error.strerror}); choose another"
        ) from error
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
    logs.write_atomically(workdir / configs.FILE_NAME, config.to_json())
    return workdir


@contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps a second run out of `workdir` as long as this one lives.

    The lock is the kernel's, so that of a killed process is gone with it; the file names its holder.

    Raises:
      UserError: another run holds it.
    """
    with open(workdir / LOCK, "a+") as file:
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
