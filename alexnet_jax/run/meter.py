"""Limits how far the host runs ahead of the devices, times the input and logs metrics."""

import collections
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from alexnet_jax import config as configs
from alexnet_jax.common.errors import UserError
from alexnet_jax.data.batches import DeviceBatch, HostBatch, bad_images, on_device
from alexnet_jax.data.sources import Source
from alexnet_jax.run import logs, processes

FREED_SECONDS = 0.0005  # time a CPU takes to free a finished step's memory
FLAT_WITHIN, FLAT_STEPS = 0.01, 1000  # warn if the loss stays within 1 % of ln(classes) for 1000 steps


class Diverged(Exception):
    """The loss or a parameter is no longer finite."""


def check_finite(params: Any, step: int) -> None:
    """Raises `Diverged` if a parameter is not finite."""
    if not _all_finite(params):
        raise Diverged(f"a parameter is not finite at step {step}")


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def is_due(step: int, every: int) -> bool:
    """Whether something done every `every` steps is due after `step`."""
    return step > 0 and step % every == 0


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
        self, batches: Iterator[HostBatch], mesh: Mesh, source: Source, log: logs.Log, in_flight: InFlight
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


class Meter:
    """Logs the metrics of a step once the next step is in flight, or at `flush`.

    Args:
      step: steps done so far.
      learning_rates: gives the rates of weights and biases in the step that led to a given one.
    """

    def __init__(
        self,
        config: configs.Config,
        source: Source,
        log: logs.Log,
        batches: TrainingBatches,
        step: int,
        total_steps: int,
        learning_rates: Callable[[int], tuple[float, float]],
    ):
        self._config, self._source, self._log, self._batches = config, source, log, batches
        self._total_steps, self._learning_rates = total_steps, learning_rates
        self._flat_steps, self._compiled = 0, False
        self.minutes_are_over = EveryMinutes(config.run.save_every_minutes, processes.DelayedMax())
        self._pending: Callable[[], None] | None = None
        self.restart(step)

    def restart(self, step: int) -> None:
        """Restarts the throughput clock, e.g. after an evaluation; `step` steps are done."""
        self._since, self._since_step = time.monotonic(), step
        self._batches.wait_seconds = 0.0

    def after_step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Call after dispatching each step."""
        if not self._compiled:  # the first step includes compilation
            jax.block_until_ready(metrics)
            self._compiled = True
            self._log.restart_clock(step)
            self.restart(step)
        self.flush()
        if is_due(step, self._config.run.log_every_steps) or step == self._total_steps:
            self._pending = functools.partial(self._write, step, metrics)

    def flush(self) -> None:
        """Writes the pending metrics, if any."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending()

    def _write(self, step: int, metrics: dict[str, jax.Array]) -> None:
        values = {f"train/{key}": float(value) for key, value in jax.device_get(metrics).items()}
        if not math.isfinite(loss := values["train/loss"]):
            raise Diverged(f"the loss is {loss} at step {step}")
        values["train/learning_rate"], values["train/learning_rate_biases"] = self._learning_rates(step)
        batch_size = self._config.data.batch_size
        if steps_done := step - self._since_step:
            seconds = time.monotonic() - self._since
            values["train/images_per_second"] = steps_done * batch_size / seconds
            values["train/input_wait_seconds"] = self._batches.wait_seconds
        self._log.metrics(step, step * batch_size / len(self._source), values)
        self._warn_if_flat(step, loss)
        self.restart(step)
        self._check_bad_images(int(values["train/bad_images"]), step * batch_size)

    def _check_bad_images(self, bad: int, images: int) -> None:
        """Raises `UserError` if too many of the images seen so far could not be read."""
        data = self._config.data
        if bad > data.max_bad_fraction * max(images, min(len(self._source), 10_000)):
            raise UserError(
                f"data.source={data.source}: {bad} of {images} images could not be read, more than "
                f"data.max_bad_fraction={data.max_bad_fraction}; fix the files named above, or raise it"
            )

    def _warn_if_flat(self, step: int, loss: float) -> None:
        """Warns once, with the usual causes, when the loss stays at chance level."""
        chance = math.log(self._source.num_classes)
        flat = abs(loss - chance) < FLAT_WITHIN * chance
        before = self._flat_steps
        self._flat_steps = before + self._config.run.log_every_steps if flat else 0
        if before < FLAT_STEPS <= self._flat_steps:
            self._log.say(
                f"warning: step {step}: for {self._flat_steps} steps the loss has stayed at "
                f"ln({self._source.num_classes}) = {chance:.2f}. Usual causes: inputs of unit variance "
                "where the init expects 0-255; 0.01 as the std of conv3 to conv5 (model.init_scheme=original "
                "helps); a learning rate too low or too high; labels that do not belong to the images"
            )
