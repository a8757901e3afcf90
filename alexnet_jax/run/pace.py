"""The pace of the loop: how far the host runs ahead of the devices, how long they wait, and what is due."""

import collections
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from alexnet_jax.data.batches import DeviceBatch, bad_images, on_device
from alexnet_jax.data.pipeline import Batch
from alexnet_jax.data.sources import Source
from alexnet_jax.run import logs

FREED_SECONDS = 0.0005  # time a CPU takes to free a finished step's memory


class InFlight:
    """Limits how far the host runs ahead: two steps are queued while one runs, so devices never idle.

    On a CPU the host does not run ahead: there is nothing to gain, and a step allocates its memory when it is
    dispatched. With two steps queued the paper's net at batch 128 took 10.4 GB and ran at 38 to 52 images/s,
    slowed by page faults; with none it took 3.3 GB at 65 images/s.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._on_cpu = mesh.devices.flat[0].platform == "cpu"
        self._most = 0 if self._on_cpu else 2
        self._results: collections.deque[Any] = collections.deque()

    def make_room(self) -> None:
        """Call before dispatching a step: waits until few enough are in flight."""
        while len(self._results) > self._most:
            jax.block_until_ready(self._results.popleft())
            if self._on_cpu:
                time.sleep(FREED_SECONDS)

    def add(self, result: Any) -> None:
        """Adds an output of the step just dispatched."""
        self._results.append(result)

    def is_idle(self) -> bool:
        """Whether the devices have finished all dispatched steps."""
        return all(leaf.is_ready() for leaf in jax.tree.leaves(list(self._results)))


class TrainingBatches(Iterator[DeviceBatch]):
    """Batches on the mesh; logs the names of unreadable images.

    `wait_seconds` sums the fetch times of batches that were ready only after the devices had gone idle: an
    upper bound on how long the devices waited for input.
    """

    def __init__(
        self, batches: Iterator[Batch], mesh: Mesh, source: Source, log: logs.Log, in_flight: InFlight
    ):
        self._source, self._log, self._in_flight = source, log, in_flight
        self._named: set[int] = set()
        self._batches = on_device(batches, mesh)
        self.wait_seconds = 0.0

    def __next__(self) -> DeviceBatch:
        started = time.monotonic()
        host, batch = next(self._batches)
        if self._in_flight.is_idle():
            self.wait_seconds += time.monotonic() - started
        for line in bad_images(host, self._source, self._named):
            self._log.say_own(line)
        return batch


def is_due(step: int, every: int) -> bool:
    """Whether something done every `every` steps is due after `step`."""
    return step > 0 and step % every == 0


class EveryMinutes:
    """Call it at each step; it is True once in each period, at the same step in all processes.

    Args:
      minutes: the period; None for never.
      agreed: the maximum over the processes, perhaps of an earlier call (`processes.DelayedMax`).
    """

    def __init__(self, minutes: float | None, agreed: Callable[[int], int]):
        self._minutes, self._agreed = minutes, agreed
        self._started, self._periods = time.monotonic(), 0

    def __call__(self) -> bool:
        if self._minutes is None:
            return False
        # The number of periods, not whether one is over: answers that are late would say so several times.
        before, elapsed = self._periods, time.monotonic() - self._started
        self._periods = max(before, self._agreed(int(elapsed / (60 * self._minutes))))
        return self._periods > before
