"""Multi-process runs on JAX's own runtime: launcher detection, start-up, agreement, shutdown.

A launcher starts the same command once per host or GPU. `find` detects that from the environment or the
flags, and `job` connects the processes. Decisions that depend on one process (a signal, the clock, its files)
are agreed on first, so all take the same steps. If one dies, JAX's runtime ends the others.
"""

import concurrent.futures
import contextlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from alexnet_jax.common.errors import Fault, UserError, one_line
from alexnet_jax.run import faults

T = TypeVar("T")
DEAD_SECONDS = 40  # a process without a heartbeat for this long counts as dead; all end within a minute
LEAVE_SECONDS = 3.0  # process 0 exits last: JAX aborts the others once it is gone
GATHERED_BYTES = 4096  # texts are padded to a multiple of this, so few programs are compiled
_CALLS_BEHIND = 2  # a `DelayedMax` lags this many calls, so nobody waits for it
_MPI, _SLURM = "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"


def find(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`, from the flags; JAX asks the launcher for what is None.

    None for a single process: without a launcher, in a job of one task, and in a batch script that does not
    use `srun` or `mpirun`.

    Args:
      coordinator, count, index: the flags `--coordinator_address`, `--num_processes` and `--process_id`.
        `count=1` is a single process whatever the launcher says.

    Raises:
      UserError: flags are missing or contradict each other.
    """
    if count == 1:
        return None
    launched = _is_launched(environment) or _on_tpu_vm(environment)
    if not launched and (coordinator, count, index) == (None, None, None):
        return None
    if count is not None and count < 1:
        raise UserError(f"--num_processes={count}: must be 1 or more")
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    if _number(environment, _MPI, 1) > 1 and "OMPI_MCA_orte_hnp_uri" not in environment:
        # Since Open MPI 5, mpirun does not give processes its address, so JAX does not detect it.
        count = count or _number(environment, _MPI, 1)
        index = _number(environment, "OMPI_COMM_WORLD_RANK", None) if index is None else index
    values = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
    missing = [f"--{flag}" for flag, value in values.items() if value is None]
    if missing and (not launched or (count is not None and index is not None)):
        raise UserError(
            f"{', '.join(missing)}: missing, and no launcher provides it; give all three (the address is the "
            "host of process 0 and a free port, such as host:1234)"
        )
    if index is not None and not 0 <= index < (count or index + 1):
        raise UserError(f"--process_id={index}: must be at least 0 and below --num_processes={count}")
    if coordinator is not None and not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise UserError(f"--coordinator_address={coordinator}: must be host:port")
    return {**values, "local_device_ids": _own_devices(environment) if launched else []}


def _number(environment: Mapping[str, str], name: str, default: Any) -> Any:
    """A launcher's variable; `default` if it is missing or empty."""
    if not (text := environment.get(name)):
        return default
    if not text.isdecimal():
        raise UserError(f"{name}={text}: a launcher sets a number; unset it, or --num_processes=1 runs alone")
    return int(text)


def _is_launched(environment: Mapping[str, str]) -> bool:
    """Whether this looks like one of several processes: Open MPI, Slurm, a TPU slice, a Kubernetes job."""
    # Slurm's variable is that of the job step: a batch script without srun has none.
    if any(_number(environment, name, 1) > 1 for name in (_MPI, _SLURM)):
        return True
    if any("," in environment.get(name, "") for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")):
        return True
    in_indexed_job = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environment)
    return in_indexed_job and importlib.util.find_spec("kubernetes") is not None


def _on_tpu_vm(environment: Mapping[str, str]) -> bool:
    """Whether this may be a host of a TPU slice without the variables: JAX asks its metadata server."""
    known = {"TPU_WORKER_HOSTNAMES", "TPU_SKIP_MDS_QUERY"}  # JAX sets the latter where there are no chips
    return importlib.util.find_spec("libtpu") is not None and not known & set(environment)


def _own_devices(environment: Mapping[str, str]) -> list[int] | None:
    """[] for all visible devices; None for JAX's choice, under a launcher the one of the process's number.

    A process alone on its host uses all of them; one that sees a single GPU uses that.
    """
    if "," not in environment.get("CUDA_VISIBLE_DEVICES", ","):
        return []
    if _number(environment, _MPI, 1) > 1:
        alone = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
        return [] if alone else [_number(environment, "OMPI_COMM_WORLD_LOCAL_RANK", 0)]
    alone = _SLURM in environment and environment[_SLURM] == environment.get("SLURM_STEP_NUM_NODES")
    return [] if alone else None


@contextlib.contextmanager
def job(place: dict[str, Any] | None, timeout_seconds: int = 300) -> Iterator[None]:
    """Connects the processes of a job while the context lasts; does nothing for a single process.

    Enter it before anything touches a device. If another process dies, JAX's runtime ends this one, and a
    last line says how to go on.

    Args:
      place: what `find` returned.

    Raises:
      Fault: the other processes did not start in time, or one was lost.
      UserError: the launcher's variables are incomplete.
    """
    if place is None or not _start(place, timeout_seconds):
        yield
        return
    name = f"process {jax.process_index()} of {jax.process_count()} ({os.getpid()} on {socket.gethostname()})"
    with _line_if_killed(f"error: {name} was killed, or ended because another one died; {faults.RESUME}"):
        try:
            gather(name)  # connects the devices now: later, one may be too slow for Gloo's 30 s
            yield
            jax.distributed.shutdown()
        except Exception as error:
            if (lost := faults.lost_process(error)) is None:
                raise
            raise lost from error
        finally:
            if jax.distributed.is_initialized() and is_first():
                time.sleep(LEAVE_SECONDS)


def _start(place: dict[str, Any], timeout_seconds: int) -> bool:
    """Calls `jax.distributed.initialize`, with one-line errors; False on a TPU host outside a slice."""
    with contextlib.suppress(AttributeError):  # JAX 0.7 cannot turn it off
        # Its SIGTERM handler would replace that of `signals.Stop`.
        jax.config.update("jax_enable_preemption_service", False)
    if place["process_id"] == 0 and (address := place["coordinator_address"]):
        _check_port(address)
    # In another thread, because JAX aborts the process when its own timeout expires.
    pool = concurrent.futures.ThreadPoolExecutor(1)
    start = pool.submit(
        jax.distributed.initialize,
        **place,
        initialization_timeout=timeout_seconds + 60,
        heartbeat_timeout_seconds=DEAD_SECONDS,
    )
    try:
        start.result(timeout_seconds)
    except TimeoutError as error:
        raise Fault(
            f"process {place['process_id']} of {place['num_processes']}: not all other processes started "
            f"within {timeout_seconds} s (process 0 is at {place['coordinator_address']}); check their "
            "messages, --num_processes and --process_id of each, and whether the port is reachable"
        ) from error
    except (ValueError, KeyError) as error:
        if not _is_launched(os.environ) and set(place.values()) == {None}:
            return False
        raise UserError(
            f"the launcher's variables are incomplete or wrong ({one_line(error)}); start with "
            "srun or mpirun, or give --coordinator_address, --num_processes and --process_id; "
            "--num_processes=1 runs alone"
        ) from error
    finally:
        pool.shutdown(wait=False)
    return True


def _check_port(address: str) -> None:
    """Raises `UserError` if another program uses the port; JAX would crash."""
    try:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--coordinator_address={address}: {error}; choose a free port") from error


@contextlib.contextmanager
def _line_if_killed(line: str) -> Iterator[None]:
    """Prints `line` to standard error if this process is killed or aborted inside.

    JAX aborts a process from a thread of its own, and no Python code can run then. So a shell waits for its
    end of a pipe to close.
    """
    script = "trap '' INT TERM HUP; read -r ended || printf '%s\\n' \"$0\" >&2"
    watcher = subprocess.Popen(["/bin/sh", "-c", script, line], stdin=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        watcher.communicate("ended\n")


def _is_job() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, which decides and writes the logs, or the only one."""
    return not _is_job() or jax.process_index() == 0


def barrier() -> None:
    """Returns when all processes have reached it."""
    if _is_job():
        multihost_utils.sync_global_devices("alexnet_jax")


def gather(text: str) -> list[str]:
    """The texts of all processes, in their order."""
    if not _is_job():
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    width = -(-int(lengths.max()) // GATHERED_BYTES) * GATHERED_BYTES
    rows = multihost_utils.process_allgather(np.pad(data, (0, width - len(data))))
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def from_first(value: str) -> str:
    """Broadcasts process 0's value to all processes."""
    return gather(value)[0]


def all_of(good: bool) -> bool:
    """Whether `good` is true in all processes."""
    return good if not _is_job() else bool(multihost_utils.process_allgather(np.bool_(good)).all())


def together(make: Callable[[], T]) -> T:
    """Calls `make` in all processes; a `UserError` or `Fault` of one is raised in all.

    `make` must not communicate with the other processes.
    """
    result: Any = None
    try:
        result, mine = make(), None
    except (UserError, Fault) as error:
        result, mine = error, [isinstance(error, UserError), str(error)]
    for index, other in enumerate(map(json.loads, gather(json.dumps(mine)))):
        if other is not None:
            is_mistake, message = other
            raise result if mine else (UserError if is_mistake else Fault)(f"process {index}: {message}")
    return result


class DelayedMax:
    """The maximum over the processes, with a delay; all must call it equally often.

    Each call returns the maximum of the call two before (0 at first): by then the devices have computed
    it, so nobody waits. A single process gets its own number at once.
    """

    def __init__(self) -> None:
        self._answers: deque[jax.Array] = deque()
        if _is_job():
            mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
            self._split = NamedSharding(mesh, PartitionSpec("all"))
            self._max = jax.jit(jax.numpy.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, number: int) -> int:
        if not _is_job():
            return number
        mine = np.full(jax.local_device_count(), number, np.int32)
        given = jax.make_array_from_process_local_data(self._split, mine, (jax.device_count(),))
        self._answers.append(self._max(given))
        return int(self._answers.popleft()) if len(self._answers) > _CALLS_BEHIND else 0
