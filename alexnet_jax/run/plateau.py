"""The rule for lowering the learning rate, which the authors did by hand (`optimizer.schedule=plateau`)."""

import dataclasses

from alexnet_jax import config as configs


@dataclasses.dataclass(frozen=True)
class PlateauState:
    """What the rule remembers of the evaluations so far.

    "Divide the learning rate by 10 when the validation error rate stopped improving": the authors did so
    three times and then stopped training (section 5).

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
