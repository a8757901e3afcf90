"""What runs beside the steps: how far ahead the host may run, the wait for input, lines of metrics."""

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

FREED_SECONDS = 0.0005  # until a finished step's memory is free again, on a CPU
FLAT_WITHIN, FLAT_STEPS = 0.01, 1000  # a loss this near to ln(classes), for so many steps, is worth a warning


class Diverged(Exception):
    """The loss or a parameter is no longer finite."""


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether every number in `tree` is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens after `step`."""
    return step > 0 and step % every == 0


class InFlight:
    """Limits how far the host runs ahead: two steps wait while one runs, so no device waits for the host.

    On a CPU it does not run ahead at all: there is nothing to gain, and a step takes its memory when it is
    dispatched. The paper's net at batch 128 took 10.4 GB with two steps ahead, at 38 to 52 images/s because
    of the new pages, and 3.3 GB at 65 images/s with none.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._on_cpu = mesh.devices.flat[0].platform == "cpu"
        self._most = 0 if self._on_cpu else 2
        self._results: collections.deque[Any] = collections.deque()

    def make_room(self) -> None:
        """Waits, before a step is dispatched, until few enough are under way."""
        while len(self._results) > self._most:
            jax.block_until_ready(self._results.popleft())
            if self._on_cpu:
                time.sleep(FREED_SECONDS)

    def add(self, result: Any) -> None:
        """Takes a result of the step just dispatched."""
        self._results.append(result)

    def is_idle(self) -> bool:
        """Whether the devices have finished everything dispatched."""
        return all(leaf.is_ready() for leaf in jax.tree.leaves(list(self._results)))


class TrainingBatches(Iterator[DeviceBatch]):
    """Batches on the mesh; unreadable images are named in the log.

    `wait_seconds` adds up the time of fetching those batches that found the devices idle: an upper bound of
    the devices' wait for input.
    """

    def __init__(
        self,
        batches: Iterator[HostBatch],
        mesh: Mesh,
        source: Source,
        log: logs.Log,
        in_flight: InFlight,
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


class Meter:
    """Turns the steps' metrics into lines of the log, once a later step is under way or at `flush`."""

    def __init__(
        self,
        config: configs.Config,
        source: Source,
        log: logs.Log,
        batches: TrainingBatches,
        step: int,
        total_steps: int,
    ):
        self._config, self._source, self._log, self._batches = config, source, log, batches
        self._total_steps = total_steps
        self._saved, self._flat_steps, self._compiled = time.monotonic(), 0, False
        self._agreed = processes.DelayedMax()
        self._pending: Callable[[], None] | None = None
        self.restart(step)

    def minutes_are_over(self) -> bool:
        """Whether `run.save_every_minutes` have passed; if so, they start anew."""
        minutes = self._config.run.save_every_minutes
        if minutes is None or not self._agreed(int(time.monotonic() - self._saved >= 60 * minutes)):
            return False
        self._saved = time.monotonic()
        return True

    def restart(self, step: int) -> None:
        """Restarts the clock after something that is not a training step; `step` steps are done."""
        self._since, self._since_step = time.monotonic(), step
        self._batches.wait_seconds = 0.0

    def after_step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Must be called after each step is dispatched."""
        if not self._compiled:  # the first step includes compilation
            jax.block_until_ready(metrics)
            self._compiled = True
            self._log.restart_clock(step)
            self.restart(step)
        self.flush()
        if is_due(step, self._config.run.log_every_steps) or step == self._total_steps:
            self._pending = functools.partial(self._write, step, metrics)

    def flush(self) -> None:
        """Writes the line that is pending, if any."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending()

    def _write(self, step: int, metrics: dict[str, jax.Array]) -> None:
        values = {f"train/{key}": float(value) for key, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["train/loss"]):
            raise Diverged(f"the loss is {values['train/loss']} at step {step}")
        batch_size = self._config.data.batch_size
        if steps_done := step - self._since_step:
            seconds = time.monotonic() - self._since
            values["train/images_per_second"] = steps_done * batch_size / seconds
            values["train/input_wait_seconds"] = self._batches.wait_seconds
        self._log.metrics(step, step * batch_size / len(self._source), values)
        self._warn_if_flat(step, values["train/loss"])
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
        """Names the usual causes, once, when the loss stays at that of uniform guessing."""
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
