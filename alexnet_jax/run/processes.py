"""Many processes as one job, on JAX's own runtime: found, started, of one mind, and ended together.

A launcher starts the same command once for each host (or GPU); `find` sees from the environment or the flags
that it did, and `job` joins the processes. What one of them alone knows (a signal, the clock, its files) is
agreed on before anything follows from it, so that all do the same steps. One that dies ends all of them.
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
# Without a beat for so long a process counts as dead: a minute less what the rest takes.
DEAD_SECONDS = 40.0
# The same once another process has failed, as its neighbours do at once where a connection breaks.
SUSPECT_SECONDS = 8.0
_READ_SECONDS = 5.0  # for the others to read of an end before the leader, which has it written down, goes
BARRIER_SECONDS = 24 * 3600.0  # those who wait are told of a death, and need no limit of their own
_CALLS_BEHIND = 2  # how many calls an agreement lags, so that nobody waits for it
_LEADER = 0


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """A process's place in a job of several.

    Attributes:
      count: how many processes there are.
      index: this one's number, from 0.
      coordinator: `host:port` where process 0 can be reached; None where JAX knows it from the launcher.
      launcher: what JAX calls the launcher that tells the rest: `slurm`, `ompi`, `k8s`, `gcetpu`, `gketpu`,
        or `deactivate` for none.
      devices: numbers of this host's devices that are this process's; () for all.
    """

    count: int
    index: int
    coordinator: str | None
    launcher: str
    devices: tuple[int, ...] = ()


# --- Is this one of several processes? ---------------------------------------------------------------------


def find(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> ProcessInfo | None:
    """This process's place by the flags, else by what the launcher left in the environment.

    None where the process is alone: on one machine, in a job of one task, and in a batch script that did not
    start it by `srun` or `mpirun`.

    Args:
      coordinator, count, index: the flags `--coordinator_address`, `--num_processes` and `--process_id`;
        what is not given is the launcher's. `count=1` is a process by itself, whatever the launcher says.

    Raises:
      UserError: the flags do not make a whole, or do not go together.
    """
    if count is not None and count < 1:
        raise UserError(f"--num_processes={count}: must be 1 or more")
    if count == 1:
        return None
    place = _launched(environment)
    if place is None:
        if coordinator is None and count is None and index is None:
            return None
        coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
        given = {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
        missing = [f"--{flag}" for flag, value in given.items() if value is None]
        if missing:
            raise UserError(
                f"{', '.join(missing)}: missing; no launcher was found that tells, so give all three"
            )
        place = ProcessInfo(count or 0, index or 0, coordinator, "deactivate")
    else:
        place = dataclasses.replace(
            place,
            count=place.count if count is None else count,
            index=place.index if index is None else index,
            coordinator=coordinator or place.coordinator,
        )
    if place.count == 1:
        return None
    if not 0 <= place.index < place.count:
        raise UserError(
            f"--process_id={place.index}: must be at least 0 and below --num_processes={place.count}"
        )
    if place.coordinator is not None and not re.fullmatch(r".+:\d{1,5}", place.coordinator):
        raise UserError(f"--coordinator_address={place.coordinator}: must be as host:port")
    if place.coordinator is None and place.launcher == "deactivate":
        raise UserError(
            "--coordinator_address: missing; this launcher does not say where process 0 is, so give its host "
            "and a free port, as host:1234"
        )
    return place


def _launched(environment: Mapping[str, str]) -> ProcessInfo | None:
    """The place by Open MPI, Slurm, Kubernetes or a TPU slice, asked in the order in which they nest."""
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        # From Open MPI 5 on mpirun does not tell the processes where it runs.
        told = address is not None or "OMPI_MCA_orte_hnp_uri" in environment
        return ProcessInfo(
            count=int(environment["OMPI_COMM_WORLD_SIZE"]),
            index=int(environment["OMPI_COMM_WORLD_RANK"]),
            coordinator=address,
            launcher="ompi" if told else "deactivate",
            devices=_own_device(
                int(environment["OMPI_COMM_WORLD_LOCAL_RANK"]),
                int(environment["OMPI_COMM_WORLD_LOCAL_SIZE"]),
                environment,
            ),
        )
    # A step's own variables: a batch script without srun has those of the job alone.
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
    """TPU slices and indexed jobs of Kubernetes, as JAX recognises them; it has no public way to ask."""
    from jax._src import clusters

    for name in ("GkeTpuCluster", "GceTpuCluster"):
        cluster: Any = getattr(clusters, name, None)
        if cluster is not None and cluster.is_env_present():
            yield cluster.name, cluster
    in_indexed_job = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environment)
    if in_indexed_job and clusters.K8sCluster.is_env_present():  # warns where the package for it is missing
        yield "k8s", clusters.K8sCluster


def _own_device(number: int, count: int, environment: Mapping[str, str]) -> tuple[int, ...]:
    """The device of the process `number` of the `count` on its host: () for all that it sees.

    A process alone on its host has all, and one that the launcher shows a single GPU has that.
    """
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    one_shown = shown is not None and "," not in shown
    return () if count == 1 or one_shown else (number,)


def _expanded(counts: str) -> list[int]:
    """Slurm's tasks by node: `2(x3),1` is 2, 2, 2, 1."""
    pairs = (re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in counts.split(","))
    return [int(pair[1]) for pair in pairs if pair for _ in range(int(pair[2] or 1))]


# --- The job -----------------------------------------------------------------------------------------------


class _Awake:
    """Seconds in which this thread ran: one that was itself stopped, or starved, blames nobody for it."""

    def __init__(self, pause: float) -> None:
        self._longest, self._last, self.seconds = 2 * pause, time.monotonic(), 0.0

    def tick(self) -> None:
        """To be called after each pause."""
        now = time.monotonic()
        self.seconds += min(now - self._last, self._longest)
        self._last = now


class _Job:
    """This process's part in a job: it shows the others that it lives, and looks whether they do."""

    def __init__(self, place: ProcessInfo) -> None:
        from jax._src import distributed  # the store and the barriers have no public name

        self.place = place
        self.client: Any = distributed.global_state.client
        self.names = {place.index: f"process {os.getpid()} on {socket.gethostname()}"}
        self.last_words: Callable[[str], None] = lambda message: None
        self._counter = itertools.count()
        self._over, self._ended = threading.Event(), threading.Event()
        self._suspicious = False
        self._reached = 0.0  # when the leader last answered, by the clock of `_watch`
        self._clock = _Awake(BEAT_SECONDS)
        self.client.key_value_set(f"who/{place.index}", self.names[place.index])
        self.barrier()
        for key, name in self.client.key_value_dir_get("who/"):
            self.names[int(key.rsplit("/", 1)[1])] = name
        # Not daemons: `cli` then leaves at once when something failed, and does not wait for the others.
        self._threads = [
            threading.Thread(target=work, name="alexnet_jax.job") for work in (self._beat, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def key(self, what: str) -> str:
        """A name for something that all processes do in the same order, each time another."""
        return f"{what}/{next(self._counter)}"

    def barrier(self) -> None:
        """Returns when all processes have come here."""
        self.client.wait_at_barrier(self.key("barrier"), int(1000 * BARRIER_SECONDS))

    def name(self, index: int) -> str:
        """A process, for people."""
        return f"process {index} of {self.place.count} ({self.names.get(index, 'never seen')})"

    def tell(self, code: int, message: str) -> None:
        """Lets the others know that this process ends."""
        self._ended.set()
        with contextlib.suppress(Exception):
            self._announce(self.place.index, code, f"{self.name(self.place.index)} failed: {message}")

    def leave(self) -> None:
        """Ends the job in good order."""
        self.barrier()
        self._ended.set()
        self._over.set()
        for thread in self._threads:
            thread.join()
        jax.distributed.shutdown()

    def wait_for_verdict(self) -> None:
        """Called where something broke: if another process is dead, this one ends here by its verdict."""
        self._suspicious = True
        with contextlib.suppress(Exception):
            self.client.key_value_set(f"suspicion/{self.place.index}", "", allow_overwrite=True)
        time.sleep(SUSPECT_SECONDS + _READ_SECONDS + 2 * BEAT_SECONDS)

    def _announce(self, index: int, code: int, line: str) -> None:
        self.client.key_value_set(f"ended/{index}", json.dumps([code, line]), allow_overwrite=True)
        if self.place.index != _LEADER:
            return
        # The store goes with this process: the others must have read it before.
        deadline = time.monotonic() + _READ_SECONDS
        while time.monotonic() < deadline:
            keys = [key for what in ("ended/", "read/") for key, _ in self.client.key_value_dir_get(what)]
            if len({key.rsplit("/", 1)[1] for key in keys} - {str(_LEADER)}) == self.place.count - 1:
                return
            time.sleep(BEAT_SECONDS / 10)

    def _beat(self) -> None:
        # More processes beat less often, so that the leader has no more to do.
        pause = BEAT_SECONDS * max(1.0, self.place.count / 64)
        seen: dict[str, tuple[str, float]] = {}
        clock = _Awake(pause)
        for beat in itertools.count():
            try:
                self.client.key_value_set(f"beat/{self.place.index}", str(beat), allow_overwrite=True)
                for _, text in self.client.key_value_dir_get("ended/"):
                    if not self._ended.is_set():
                        self._end(*json.loads(text))
                if self.place.index == _LEADER:
                    self._suspicious |= bool(self.client.key_value_dir_get("suspicion/"))
                    self._judge(dict(self.client.key_value_dir_get("beat/")), seen, clock.seconds)
                self._reached = self._clock.seconds
            except Exception:  # the leader does not answer, of which `_watch` keeps count
                pass
            if self._over.wait(pause):
                return
            clock.tick()

    def _judge(self, beats: dict[str, str], seen: dict[str, tuple[str, float]], now: float) -> None:
        for index in range(1, self.place.count):
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
            if self.place.index != _LEADER and self._clock.seconds - self._reached > self._patience():
                self._end(1, f"{self.name(_LEADER)} died or can no longer be reached")

    def _patience(self) -> float:
        return SUSPECT_SECONDS if self._suspicious else DEAD_SECONDS

    def _end(self, code: int, line: str) -> None:
        """Ends this process because of another."""
        with contextlib.suppress(Exception):
            self.last_words(line)
        with contextlib.suppress(Exception):
            self.client.key_value_set(f"read/{self.place.index}", "", allow_overwrite=True)
        _say(f"error: {line}; {GO_ON}" if code == 1 else f"error: {line}")
        os._exit(code)


GO_ON = "all end here; start the same command again: it goes on from the last checkpoint"
_job: _Job | None = None
_stderr = sys.stderr.fileno() if hasattr(sys.stderr, "fileno") else 2


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(_stderr, f"\n{line}\n".encode())


@contextlib.contextmanager
def job(place: ProcessInfo | None, timeout_seconds: int = 300) -> Iterator[None]:
    """Joins the processes of a job for as long as the context lasts; does nothing for a process alone.

    To be entered before anything touches a device. Where another process dies, or leaves the context by an
    error, this one says which and ends, with exit code 1 or that of the error.

    Raises:
      Fault: the others were not there in time.
    """
    global _job, _stderr
    if place is None:
        yield
        return
    _stderr = os.dup(2)  # where a load is being kept quiet, a death is not
    with _start(place, timeout_seconds):
        _job = _Job(place)
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
def _start(place: ProcessInfo, timeout_seconds: int) -> Iterator[None]:
    """`jax.distributed.initialize`, with a line for the user in the place of its aborts."""
    where = place.coordinator or "where the launcher has it"
    missing = (
        f"process {place.index} of {place.count}: the other processes were not all there within "
        f"{timeout_seconds} s (process 0 is at {where}); look at their own messages, at --num_processes and "
        "--process_id of each, and whether the port is free and can be reached"
    )
    # JAX has a handler of its own for SIGTERM, which would take the place of `interrupt.Stop`'s.
    jax.config.update("jax_enable_preemption_service", False)
    logging.getLogger("jax._src.distributed").setLevel(logging.ERROR)
    undo = _on_abort(missing)
    try:
        if place.index != _LEADER and place.coordinator is not None:
            _reach(place.coordinator, timeout_seconds, missing)
        jax.distributed.initialize(
            coordinator_address=place.coordinator,
            num_processes=place.count,
            process_id=place.index,
            local_device_ids=list(place.devices),
            cluster_detection_method=place.launcher,
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
    """Waits until somebody listens at `host:port`, for JAX itself ends a process where nobody does."""
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
    """Has `line` as this process's last, and 1 as its exit code, where JAX aborts it; gives the undoing.

    JAX's own thread does so the moment that the connection to process 0 breaks. Python's handlers of signals
    come too late for that: they wait for the main thread.
    """

    @_HANDLER
    def handler(number: int) -> None:
        _say(f"error: {line}")
        os._exit(1)

    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    before = libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    _handlers.append(handler)  # C holds it, which Python does not know

    return lambda: libc.signal(signal.SIGABRT, before)


# --- Of one mind -------------------------------------------------------------------------------------------


def is_first() -> bool:
    """Whether this process is the one that writes logs and decides: the only one, or process 0."""
    return _job is None or _job.place.index == _LEADER


def label() -> str:
    """What to put before a line that only this process knows: empty where there is just one."""
    return "" if _job is None else f"process {_job.place.index}: "


def on_death(last_words: Callable[[str], None]) -> None:
    """Has process 0 call this, with a line that says what happened, before another's end ends it."""
    if _job is not None and is_first():
        _job.last_words = last_words


def barrier() -> None:
    """Returns when all processes have come here."""
    if _job is not None:
        _job.barrier()


def from_first(value: str) -> str:
    """Process 0's value, in all processes."""
    if _job is None:
        return value
    key = _job.key("first")
    if is_first():
        _job.client.key_value_set(key, value)
        return value
    return _job.client.blocking_key_value_get(key, int(1000 * BARRIER_SECONDS))


def all_of(good: bool) -> bool:
    """Whether it is so in all processes."""
    if _job is None:
        return good
    key = _job.key("all")
    if not good:
        _job.client.key_value_set(f"{key}/{_job.place.index}", "")
    _job.barrier()
    return not _job.client.key_value_dir_get(f"{key}/")


class DelayedMax:
    """The largest of the numbers that the processes give, call by call; all must call it alike.

    The answer is that to the call two before (0 at first), so that no one waits: it has been computed on the
    devices meanwhile, behind the steps that were under way. A process alone has its own number at once.
    """

    def __init__(self) -> None:
        self._answers: deque[jax.Array] = deque()
        if _job is None:
            return
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        mesh = jax.sharding.Mesh(np.asarray(devices), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
        self._split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._max = jax.jit(jax.numpy.max, out_shardings=whole)

    def __call__(self, number: int) -> int:
        if _job is None:
            return number
        mine = np.full(jax.local_device_count(), number, np.int32)
        given = jax.make_array_from_process_local_data(self._split, mine, (jax.device_count(),))
        self._answers.append(self._max(given))
        return int(self._answers.popleft()) if len(self._answers) > _CALLS_BEHIND else 0
