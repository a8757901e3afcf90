"""Host-side state of a run (evaluations, plateau rule), and saving it with the device state."""

import contextlib
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from alexnet_jax.common.errors import Fault
from alexnet_jax.optimizer import PlateauState, Rates
from alexnet_jax.run import checkpoint, logs
from alexnet_jax.run.meter import Diverged, all_finite


@dataclasses.dataclass
class Record:
    """Host-side state, saved with each checkpoint.

    Attributes:
      evaluated_step: step of the last evaluation.
      evaluation: the result of that evaluation, with the fields of `evaluate.Result`.
      best_top1_error, best_step: lowest top-1 error so far in %, and the step that reached it.
      images: number of training images at the start of the run.
      plateau: state of the plateau rule.
    """

    evaluated_step: int = 0
    evaluation: dict[str, Any] | None = None
    best_top1_error: float | None = None
    best_step: int | None = None
    images: int = 0
    plateau: PlateauState = dataclasses.field(default_factory=PlateauState)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Record":
        return cls(**{**values, "plateau": PlateauState(**values["plateau"])})

    def add_evaluation(self, step: int, evaluation: dict[str, Any]) -> None:
        """Records an evaluation and updates the best top-1 error."""
        self.evaluated_step, self.evaluation = step, evaluation
        if self.best_top1_error is None or evaluation["top1_error"] < self.best_top1_error:
            self.best_top1_error, self.best_step = evaluation["top1_error"], step

    def learning_rates(self, rates: Rates, step: int) -> tuple[float, float]:
        """The rates of weights and biases in the step that led to `step`, of layers without their own.

        Computed on the CPU: on an accelerator it would wait for the steps in flight.
        """
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            at = jnp.int32(step - 1), jnp.int32(self.plateau.drops)
            return float(rates.of("*", "kernel")(*at)), float(rates.of("*", "bias")(*at))


def save(
    checkpoints: checkpoint.Checkpoints,
    log: logs.Log,
    workdir: pathlib.Path,
    step: int,
    state: Any,
    record: Record,
    *,
    last: bool,
) -> None:
    """Starts saving a checkpoint in the background; with `last`, waits until it is on disk.

    A failed save is only a warning: earlier checkpoints exist, and a later save may succeed. It ends the run
    if it is the last save or the second in a row to fail.

    Args:
      state: a `TrainState`; its parameters must be finite.

    Raises:
      Diverged: a parameter is not finite.
      Fault: the last checkpoint, or the second in a row, could not be written.
    """
    if not all_finite(state.params):
        raise Diverged(f"a parameter is not finite at step {step}")
    log.sync()

    def write() -> None:
        checkpoints.save(step, state, record.to_json(), record.best_step)
        if last:
            checkpoints.wait()

    for part in (checkpoints.wait, write):  # try this save even if the previous one failed
        try:
            part()
        except checkpoint.SaveError as reason:
            message = f"{workdir}: a checkpoint could not be written ({reason}); {last_good(checkpoints)}"
            if (last and part is write) or checkpoints.failed_saves > 1:
                raise Fault(f"{message}; make room and start the same command again") from reason
            log.say(f"warning: {message}; training goes on")


def last_good(checkpoints: checkpoint.Checkpoints) -> str:
    """A phrase for messages: the newest checkpoint from which the run can resume."""
    with contextlib.suppress(checkpoint.SaveError):  # then the previous checkpoint counts
        checkpoints.wait()
    if checkpoints.saved_step is None:
        return "there is no checkpoint before it"
    return f"the last good checkpoint is of step {checkpoints.saved_step}"
