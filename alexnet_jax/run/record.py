"""What a run remembers beside its device state, and how its checkpoints are saved."""

import contextlib
import dataclasses
import pathlib
from typing import Any

from alexnet_jax.common.errors import Fault
from alexnet_jax.optimizer import PlateauState
from alexnet_jax.run import checkpoint, logs
from alexnet_jax.run.meter import Diverged, all_finite


@dataclasses.dataclass
class Record:
    """Saved with each checkpoint.

    Attributes:
      evaluated_step: step of the last evaluation.
      evaluation: its result, as in `evaluate.Result`.
      best_top1_error: lowest in %, over all evaluations, and its step.
      images: training images at the start of the run.
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
        """Takes the result of the evaluation at `step`."""
        self.evaluated_step, self.evaluation = step, evaluation
        if self.best_top1_error is None or evaluation["top1_error"] < self.best_top1_error:
            self.best_top1_error, self.best_step = evaluation["top1_error"], step


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
    """Starts to save, or saves to the end if it is the `last` time.

    Before the last time a full disk is only a warning: earlier checkpoints are still there, and a later save
    may succeed.

    Args:
      state: a `TrainState`; its parameters must be finite.

    Raises:
      Diverged: a parameter is not finite.
      Fault: the last checkpoint could not be written.
    """
    if not all_finite(state.params):
        raise Diverged(f"a parameter is not finite at step {step}")
    log.sync()

    def write() -> None:
        checkpoints.save(step, state, record.to_json(), record.best_step)
        if last:
            checkpoints.wait()

    for part in (checkpoints.wait, write):  # this save is tried even if the one before failed
        try:
            part()
        except checkpoint.SaveError as reason:
            message = f"{workdir}: a checkpoint could not be written ({reason}); {last_good(checkpoints)}"
            if last and part is write:
                raise Fault(f"{message}; make room and start the same command again") from reason
            log.say(f"warning: {message}; training goes on")


def last_good(checkpoints: checkpoint.Checkpoints) -> str:
    """Says which checkpoint the run can go on from."""
    with contextlib.suppress(checkpoint.SaveError):  # then it is the one before
        checkpoints.wait()
    if checkpoints.saved_step is None:
        return "there is no checkpoint before it"
    return f"the last good checkpoint is of step {checkpoints.saved_step}"
