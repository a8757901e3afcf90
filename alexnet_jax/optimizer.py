"""The 2012 update rule and its schedules, on optax.

    v = 0.9 v - 0.0005 * rate * w - rate * gradient
    w = w + v

Section 5 of the paper. As in run 145, weight decay applies to the weights alone, and the biases have twice
the rate of the weights.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from alexnet_jax import config as configs

Array = jax.Array

# (step, drops so far) -> learning rate; only the plateau rule counts drops.
Schedule = Callable[[Array, Array], Array]


def constant(rate: float) -> Schedule:
    return lambda step, drops: jnp.asarray(rate, jnp.float32)


def plateau(rate: float, factor: float) -> Schedule:
    """The rate times `factor` for each drop so far (section 5 divides by 10)."""
    return lambda step, drops: rate * jnp.float32(factor) ** drops.astype(jnp.float32)


def piecewise(schedule: Schedule, events: Iterable[tuple[int, float]]) -> Schedule:
    """`schedule` until the first of `events`, `(step, rate)` by step; then the rate of the latest event."""

    def changed(step: Array, drops: Array) -> Array:
        rate = schedule(step, drops)
        for start, new in events:
            rate = jnp.where(step >= start, jnp.float32(new), rate)
        return rate

    return changed


def step_decay(rate: float, factor: float, drop_steps: Iterable[int]) -> Schedule:
    """Multiplies the rate by `factor` at each of `drop_steps`, as done by hand in `layer-params-145`."""
    drops = enumerate(sorted(drop_steps), 1)
    return piecewise(constant(rate), [(step, rate * factor**count) for count, step in drops])


@dataclasses.dataclass(frozen=True)
class Rates:
    """The learning rates: the schedules of weights and biases, and what single layers have instead.

    Attributes:
      events: `(pattern, step, rate)` by step: `optimizer.layer_rates` with steps for epochs.
    """

    weights: Schedule
    biases: Schedule
    events: tuple[tuple[str, int, float], ...] = ()

    def of(self, layer: str, kind: str) -> Schedule:
        """The schedule of a layer's `kernel` or `bias`; layer `*` stands for those without own events."""
        group = self.biases if kind == "bias" else self.weights
        return piecewise(group, configs.events_of(self.events, layer, kind))


def momentum_by_rates(rates: Rates, momentum: float) -> optax.GradientTransformationExtraArgs:
    """`v = momentum * v - rate * gradient`, with a rate per parameter; the update is v.

    As in 2012, the gradient is scaled before it enters the momentum, so lowering the rate does not change v;
    most libraries scale afterwards. A rate of 0 freezes the parameter and its v, where the rule alone would
    let it coast for some steps (weights.cu:148 skips such updates, too).
    """

    def update(updates: Any, state: Any, _: Any = None, *, step: Array, drops: Array, **__: Any) -> Any:
        def rate_of(path: Any, gradient: Array) -> Array:
            layer, kind = (part.key for part in path[-2:])
            return rates.of(layer, kind)(step, drops).astype(gradient.dtype)

        def move(rate: Array, gradient: Array, v: Array) -> Array:
            return jnp.where(rate > 0, momentum * v - rate * gradient, v)

        now = jax.tree_util.tree_map_with_path(rate_of, updates)
        trace = jax.tree.map(move, now, updates, state.trace)
        return jax.tree.map(lambda rate, v: jnp.where(rate > 0, v, 0), now, trace), optax.TraceState(trace)

    init = optax.trace(momentum).init  # v is 0
    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore  (it takes more than optax says)


def sgd_2012(
    rates: Rates,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0005,
    layer_weight_decays: tuple[tuple[str, float], ...] = (),
) -> optax.GradientTransformationExtraArgs:
    """The update rule above. Its `update` takes `step=` and `drops=`; its state is the momentum v.

    Args:
      layer_weight_decays: `(layer, weight decay)` of layers with another decay than the rest.
    """
    own = dict(layer_weight_decays)

    def weights_with(decay: float) -> Callable[[Any], Any]:
        """A mask of the weights that have this decay."""

        def is_decayed(path: Any, _: Any) -> bool:
            *layers, leaf = (part.key for part in path)
            own_decay = next((own[name] for name in layers if name in own), weight_decay)
            return leaf != "bias" and own_decay == decay

        return functools.partial(jax.tree_util.tree_map_with_path, is_decayed)

    decays = dict.fromkeys((weight_decay, *own.values()))
    terms = [optax.add_decayed_weights(decay, mask=weights_with(decay)) for decay in decays]
    return optax.chain(*terms, momentum_by_rates(rates, momentum))


def make_rates(config: configs.OptimizerConfig, steps_at: Callable[[float], int]) -> Rates:
    """The config's schedules for weights, biases and single layers.

    Args:
      steps_at: converts epochs to the step at which they are complete.
    """

    def schedule(rate: float) -> Schedule:
        if config.schedule == "plateau":
            return plateau(rate, config.drop_factor)
        if config.schedule == "epochs":
            return step_decay(rate, config.drop_factor, map(steps_at, config.drop_epochs))
        return constant(rate)

    bias_rate = config.bias_rate_factor * config.learning_rate
    biases = schedule(bias_rate) if config.bias_rate_drops else constant(bias_rate)
    by_epoch = sorted(config.layer_rates, key=lambda event: event[1])
    events = tuple((name, steps_at(epoch), rate) for name, epoch, rate in by_epoch)
    return Rates(weights=schedule(config.learning_rate), biases=biases, events=events)


def make(config: configs.OptimizerConfig, rates: Rates) -> optax.GradientTransformationExtraArgs:
    """The config's update rule, with the rates of `make_rates`."""
    decays = {"weight_decay": config.weight_decay, "layer_weight_decays": config.layer_weight_decays}
    return sgd_2012(rates, momentum=config.momentum, **decays)
