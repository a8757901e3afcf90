"""Host-side state of a run: evaluations and plateau rule."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from alexnet_jax import config as configs
from alexnet_jax.optimizer import Rates


@dataclasses.dataclass(frozen=True)
class PlateauState:
    """What the rule that lowers the rate (`optimizer.schedule=plateau`) remembers of the evaluations.

    "Divide the learning rate by 10 when the validation error rate stopped improving": the authors did so by
    hand three times and then stopped training (section 5).

    Attributes:
      best_error: lowest top-1 error so far, in %.
      evals_since_best: evaluations without a new best, since the best or the last drop.
      drops: drops of the rate so far.
      finished: whether training is over.
    """

    best_error: float = float("inf")
    evals_since_best: int = 0
    drops: int = 0
    finished: bool = False

    def after_evaluation(self, config: configs.OptimizerConfig, error: float) -> "PlateauState":
        """The state after an evaluation with top-1 error `error` in %."""
        if error < self.best_error:
            return dataclasses.replace(self, best_error=error, evals_since_best=0)
        waited = self.evals_since_best + 1
        if waited < config.patience_evals:
            return dataclasses.replace(self, evals_since_best=waited)
        if self.drops >= config.max_drops:
            return dataclasses.replace(self, evals_since_best=waited, finished=True)
        return dataclasses.replace(self, evals_since_best=0, drops=self.drops + 1)


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
