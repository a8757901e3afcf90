"""Multi-process runs: launcher detection, start-up, agreement, shutdown.

A launcher starts the same command once per host or GPU. `find` detects that from the environment or the
flags, and `job` connects the processes through JAX's runtime. What only one process knows (a signal, the
clock, its files) is agreed on before anyone acts on it, so all take the same steps. If one dies, all end.
"""

import contextlib
import ctypes
import dataclasses
import itertools
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from alexnet_jax.common.errors import Fault, UserError

BEAT_SECONDS = 1.0
# A process without a heartbeat for this long counts as dead; a job then ends within a minute.
DEAD_SECONDS = 40.0
# The same limit once a process has failed: a broken connection makes its neighbours fail at once.
SUSPECT_SECONDS = 8.0
_READ_SECONDS = 5.0  # time for the others to read the reason from process 0 before it exits
BARRIER_SECONDS = 24 * 3600.0  # practically no limit: waiting processes exit when one dies
_CALLS_BEHIND = 2  # an agreement lags this many calls, so nobody waits for it
_LEADER = 0


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """This process in a multi-process run.

    Attributes:
      count: number of processes.
      index: this process's number, from 0.
      coordinator: `host:port` of process 0; None if JAX gets it from the launcher.
      launcher: JAX's name for the launcher: `slurm`, `ompi`, `k8s`, `gcetpu`, `gketpu`, or `deactivate` for
        none.
      devices: numbers of the host's devices that this process uses; () for all.
    """

    count: int
    index: int
    coordinator: str | None
    launcher: str
    devices: tuple[int, ...] = ()


# --- launcher detection ----------------------------------------------------------------------------------


def find(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> ProcessInfo | None:
    """This process in a multi-process run, from the flags or else the launcher's environment variables.

    Returns None for a single process: without a launcher, in a job of one task, and in a batch script that
    does not use `srun` or `mpirun`.

    Args:
      coordinator, count, index: the flags `--coordinator_address`, `--num_processes` and `--process_id`;
        missing ones come from the launcher. `count=1` is a single process whatever the launcher says.

    Raises:
      UserError: flags are missing or contradict each other.
    """
    if count is not None and count < 1:
        raise UserError(f"--num_processes={count}: must be 1 or more")
    if count == 1:
        return None
    info = _launched(environment)
    if info is None:
        if coordinator is None and count is None and index is None:
            return None
        coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
        given = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
        missing = [f"--{flag}" for flag, value in given.items() if value is None]
        if missing:
            raise UserError(f"{', '.join(missing)}: missing; no launcher was found, so give all three")
        info = ProcessInfo(count or 0, index or 0, coordinator, "deactivate")
    else:
        info = dataclasses.replace(
            info,
            count=info.count if count is None else count,
            index=info.index if index is None else index,
            coordinator=coordinator or info.coordinator,
        )
    if info.count == 1:
        return None
    if not 0 <= info.index < info.count:
        raise UserError(
            f"--process_id={info.index}: must be at least 0 and below --num_processes={info.count}"
        )
    if info.coordinator is not None and not re.fullmatch(r".+:\d{1,5}", info.coordinator):
        raise UserError(f"--coordinator_address={info.coordinator}: must be host:port")
    if info.coordinator is None and info.launcher == "deactivate":
        raise UserError(
            "--coordinator_address: missing; this launcher does not say where process 0 is, so give its host "
            "and a free port, such as host:1234"
        )
    return info


def _launched(environment: Mapping[str, str]) -> ProcessInfo | None:
    """Detects Open MPI, Slurm, Kubernetes and TPU slices, the innermost launcher first."""
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        # Since Open MPI 5, mpirun does not tell processes its address.
        is_known = address is not None or "OMPI_MCA_orte_hnp_uri" in environment
        return ProcessInfo(
            count=int(environment["OMPI_COMM_WORLD_SIZE"]),
            index=int(environment["OMPI_COMM_WORLD_RANK"]),
            coordinator=address,
            launcher="ompi" if is_known else "deactivate",
            devices=_own_device(
                int(environment["OMPI_COMM_WORLD_LOCAL_RANK"]),
                int(environment["OMPI_COMM_WORLD_LOCAL_SIZE"]),
                environment,
            ),
        )
    # Variables of the job step: a batch script without srun has none.
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in environment:
        on_host = _expanded(environment["SLURM_STEP_TASKS_PER_NODE"])[int(environment["SLURM_NODEID"])]
        return ProcessInfo(
            count=int(environment["SLURM_STEP_NUM_TASKS"]),
            index=int(environment["SLURM_PROCID"]),
            coordinator=address,
            launcher="slurm",
            devices=_own_device(int(environment["SLURM_LOCALID"]), on_host, environment),
        )
    for name, cluster in _clusters_without_tasks(environment):
        if (count := cluster.get_process_count()) > 1:
            return ProcessInfo(count, cluster.get_process_id(), address, name)
    return None


def _clusters_without_tasks(environment: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """TPU slices and indexed Kubernetes jobs, as JAX detects them; it has no public function for that."""
    from jax._src import clusters

    for name in ("GkeTpuCluster", "GceTpuCluster"):
        cluster: Any = getattr(clusters, name, None)
        if cluster is not None and cluster.is_env_present():
            yield cluster.name, cluster
    in_indexed_job = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environment)
    if in_indexed_job and clusters.K8sCluster.is_env_present():  # warns if its package is missing
        yield "k8s", clusters.K8sCluster


def _own_device(number: int, count: int, environment: Mapping[str, str]) -> tuple[int, ...]:
    """The device of process `number` of the `count` on its host; () for all visible ones.

    A process alone on its host uses all of them; one that sees a single GPU uses that.
    """
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    one_shown = shown is not None and "," not in shown
    return () if count == 1 or one_shown else (number,)


def _expanded(counts: str) -> list[int]:
    """Slurm's tasks per node: `2(x3),1` is 2, 2, 2, 1."""
    pairs = (re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in counts.split(","))
    return [int(pair[1]) for pair in pairs if pair for _ in range(int(pair[2] or 1))]


# --- the job ---------------------------------------------------------------------------------------------


class _Awake:
    """Seconds this thread was running: a process that was itself suspended must not suspect the others."""

    def __init__(self, pause: float) -> None:
        self._longest, self._last, self.seconds = 2 * pause, time.monotonic(), 0.0

    def tick(self) -> None:
        """Call after each pause."""
        now = time.monotonic()
        self.seconds += min(now - self._last, self._longest)
        self._last = now


class _Job:
    """Sends heartbeats and watches the other processes' heartbeats."""

    def __init__(self, info: ProcessInfo) -> None:
        from jax._src import distributed  # the key-value store and barriers are not public

        self.info = info
        self.client: Any = distributed.global_state.client
        self.names = {info.index: f"process {os.getpid()} on {socket.gethostname()}"}
        self.last_words: Callable[[str], None] = lambda message: None
        self._counter = itertools.count()
        self._over, self._ended = threading.Event(), threading.Event()
        self._suspicious = False
        self._reached = 0.0  # time of process 0's last answer, on `_watch`'s clock
        self._clock = _Awake(BEAT_SECONDS)
        self.client.key_value_set(f"who/{info.index}", self.names[info.index])
        self.barrier()
        for key, name in self.client.key_value_dir_get("who/"):
            self.names[int(key.rsplit("/", 1)[1])] = name
        # Not daemons: `command_line` exits at once after a failure and does not wait for them.
        self._threads = [
            threading.Thread(target=work, name="alexnet_jax.job") for work in (self._beat, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def key(self, what: str) -> str:
        """A new key, identical in all processes because they all call this in the same order."""
        return f"{what}/{next(self._counter)}"

    def barrier(self) -> None:
        """Returns when all processes have reached it."""
        self.client.wait_at_barrier(self.key("barrier"), int(1000 * BARRIER_SECONDS))

    def name(self, index: int) -> str:
        """A process's name for messages."""
        return f"process {index} of {self.info.count} ({self.names.get(index, 'never seen')})"

    def tell(self, code: int, message: str) -> None:
        """Tells the other processes that this one is failing."""
        self._ended.set()
        with contextlib.suppress(Exception):
            self._announce(self.info.index, code, f"{self.name(self.info.index)} failed: {message}")

    def leave(self) -> None:
        """Ends the job normally."""
        self.barrier()
        self._ended.set()
        self._over.set()
        for thread in self._threads:
            thread.join()
        jax.distributed.shutdown()

    def wait_for_verdict(self) -> None:
        """Call after an error: if the death of another process caused it, this process exits here."""
        self._suspicious = True
        with contextlib.suppress(Exception):
            self.client.key_value_set(f"suspicion/{self.info.index}", "", allow_overwrite=True)
        time.sleep(SUSPECT_SECONDS + _READ_SECONDS + 2 * BEAT_SECONDS)

    def _announce(self, index: int, code: int, line: str) -> None:
        self.client.key_value_set(f"ended/{index}", json.dumps([code, line]), allow_overwrite=True)
        if self.info.index != _LEADER:
            return
        # The store dies with this process, so wait until the others have read it.
        deadline = time.monotonic() + _READ_SECONDS
        while time.monotonic() < deadline:
            keys = [key for what in ("ended/", "read/") for key, _ in self.client.key_value_dir_get(what)]
            if len({key.rsplit("/", 1)[1] for key in keys} - {str(_LEADER)}) == self.info.count - 1:
                return
            time.sleep(BEAT_SECONDS / 10)

    def _beat(self) -> None:
        # Larger jobs beat less often, to limit process 0's load.
        pause = BEAT_SECONDS * max(1.0, self.info.count / 64)
        seen: dict[str, tuple[str, float]] = {}
        clock = _Awake(pause)
        for beat in itertools.count():
            try:
                self.client.key_value_set(f"beat/{self.info.index}", str(beat), allow_overwrite=True)
                for _, text in self.client.key_value_dir_get("ended/"):
                    if not self._ended.is_set():
                        self._end(*json.loads(text))
                if self.info.index == _LEADER:
                    self._suspicious |= bool(self.client.key_value_dir_get("suspicion/"))
                    self._judge(dict(self.client.key_value_dir_get("beat/")), seen, clock.seconds)
                self._reached = self._clock.seconds
            except Exception:  # process 0 does not answer; `_watch` handles that
                pass
            if self._over.wait(pause):
                return
            clock.tick()

    def _judge(self, beats: dict[str, str], seen: dict[str, tuple[str, float]], now: float) -> None:
        for index in range(1, self.info.count):
            key = f"beat/{index}"
            beat = beats.get(key, "")
            if key not in seen or seen[key][0] != beat:
                seen[key] = (beat, now)
            elif now - seen[key][1] > self._patience():
                line = f"{self.name(index)} died or no longer answers"
                self._announce(index, 1, line)
                self._end(1, line)

    def _watch(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            self._clock.tick()
            if self.info.index != _LEADER and self._clock.seconds - self._reached > self._patience():
                self._end(1, f"{self.name(_LEADER)} died or can no longer be reached")

    def _patience(self) -> float:
        return SUSPECT_SECONDS if self._suspicious else DEAD_SECONDS

    def _end(self, code: int, line: str) -> None:
        """Exits because another process died or failed."""
        with contextlib.suppress(Exception):
            self.last_words(line)
        with contextlib.suppress(Exception):
            self.client.key_value_set(f"read/{self.info.index}", "", allow_overwrite=True)
        _say(f"error: {line}; {GO_ON}" if code == 1 else f"error: {line}")
        os._exit(code)


GO_ON = "all processes end; start the same command again to resume from the last checkpoint"
_job: _Job | None = None
_stderr = sys.stderr.fileno() if hasattr(sys.stderr, "fileno") else 2


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(_stderr, f"\n{line}\n".encode())


@contextlib.contextmanager
def job(info: ProcessInfo | None, timeout_seconds: int = 300) -> Iterator[None]:
    """Connects the processes of a job while the context lasts; does nothing for a single process.

    Enter it before anything touches a device. If another process dies or leaves the context with an error,
    this one prints which and exits with the error's code, or 1.

    Raises:
      Fault: the other processes did not start in time.
    """
    global _job, _stderr
    if info is None:
        yield
        return
    _stderr = os.dup(2)  # a load may silence descriptor 2
    with _start(info, timeout_seconds):
        _job = _Job(info)
    before = _on_abort(f"{_job.name(_LEADER)} died or can no longer be reached; {GO_ON}")
    try:
        yield
        _job.leave()
    except BaseException as error:
        if not isinstance(error, Fault | UserError | SystemExit | KeyboardInterrupt):
            _job.wait_for_verdict()
        code = 2 if isinstance(error, UserError) else 1
        _job.tell(code, " ".join(str(error).split()) or type(error).__name__)
        raise
    finally:
        _job = None
        before()


@contextlib.contextmanager
def _start(info: ProcessInfo, timeout_seconds: int) -> Iterator[None]:
    """Calls `jax.distributed.initialize`; one-line errors replace its aborts."""
    where = info.coordinator or "the launcher's address"
    missing = (
        f"process {info.index} of {info.count}: not all other processes started within "
        f"{timeout_seconds} s (process 0 is at {where}); check their messages, --num_processes and "
        "--process_id of each, and whether the port is free and reachable"
    )
    # JAX's own SIGTERM handler would replace that of `signals.Stop`.
    jax.config.update("jax_enable_preemption_service", False)
    logging.getLogger("jax._src.distributed").setLevel(logging.ERROR)
    undo = _on_abort(missing)
    try:
        if info.index != _LEADER and info.coordinator is not None:
            _reach(info.coordinator, timeout_seconds, missing)
        jax.distributed.initialize(
            coordinator_address=info.coordinator,
            num_processes=info.count,
            process_id=info.index,
            local_device_ids=list(info.devices),
            cluster_detection_method=info.launcher,
            initialization_timeout=timeout_seconds,
        )
        yield
    except Fault:
        raise
    except Exception as error:
        raise Fault(f"{missing} ({' '.join(str(error).split())[:200]})") from error
    finally:
        undo()


def _reach(coordinator: str, timeout_seconds: float, missing: str) -> None:
    """Waits until process 0 listens at `host:port`; without a listener JAX would abort this process."""
    host, port = coordinator.rsplit(":", 1)
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline:
                raise Fault(f"{missing} ({error})") from error
            time.sleep(0.2)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_handlers: list[Any] = []


def _on_abort(line: str) -> Callable[[], None]:
    """If JAX aborts this process, prints `line` and exits with 1; returns a function that undoes this.

    JAX aborts from its own thread as soon as the connection to process 0 breaks. Python's signal handlers
    run in the main thread, which is too late.
    """

    @_HANDLER
    def handler(number: int) -> None:
        _say(f"error: {line}")
        os._exit(1)

    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    before = libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    _handlers.append(handler)  # C holds no reference to it

    return lambda: libc.signal(signal.SIGABRT, before)


# --- agreement -------------------------------------------------------------------------------------------


def is_first() -> bool:
    """Whether this process writes the logs and decides: process 0, or the only one."""
    return _job is None or _job.info.index == _LEADER


def label() -> str:
    """Prefix for lines that only this process prints; empty in a single-process run."""
    return "" if _job is None else f"process {_job.info.index}: "


def on_death(last_words: Callable[[str], None]) -> None:
    """Makes process 0 call `last_words(reason)` before it exits because another process failed."""
    if _job is not None and is_first():
        _job.last_words = last_words


def barrier() -> None:
    """Returns when all processes have reached it."""
    if _job is not None:
        _job.barrier()


def from_first(value: str) -> str:
    """Broadcasts process 0's value to all processes."""
    if _job is None:
        return value
    key = _job.key("first")
    if is_first():
        _job.client.key_value_set(key, value)
        return value
    return _job.client.blocking_key_value_get(key, int(1000 * BARRIER_SECONDS))


def all_of(good: bool) -> bool:
    """Whether `good` is true in all processes."""
    if _job is None:
        return good
    key = _job.key("all")
    if not good:
        _job.client.key_value_set(f"{key}/{_job.info.index}", "")
    _job.barrier()
    return not _job.client.key_value_dir_get(f"{key}/")


class DelayedMax:
    """The maximum over the processes, with a delay; all must call it equally often.

    Each call returns the maximum of the call two before (0 at first): by then the devices have computed
    it, so nobody waits. A single process gets its own number at once.
    """

    def __init__(self) -> None:
        self._answers: deque[jax.Array] = deque()
        if _job is None:
            return
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        mesh = jax.sharding.Mesh(np.asarray(devices), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
        self._split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._max = jax.jit(jax.numpy.max, out_shardings=replicated)

    def __call__(self, number: int) -> int:
        if _job is None:
            return number
        mine = np.full(jax.local_device_count(), number, np.int32)
        given = jax.make_array_from_process_local_data(self._split, mine, (jax.device_count(),))
        self._answers.append(self._max(given))
        return int(self._answers.popleft()) if len(self._answers) > _CALLS_BEHIND else 0
