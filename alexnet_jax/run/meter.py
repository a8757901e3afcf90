"""Logs the metrics of training steps; ends a run that diverges or whose images cannot be read."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alexnet_jax import config as configs
from alexnet_jax.data.batches import too_many_bad
from alexnet_jax.data.sources import Source
from alexnet_jax.run import logs, processes
from alexnet_jax.run.pace import EveryMinutes, TrainingBatches, is_due

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
            raise too_many_bad(data, bad, f"{images} images")

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
