"""The update rule against a loop in float64 NumPy; schedules as tables; the plateau rule by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax import config as configs
from alexnet_jax import optimizer
from alexnet_jax.optimizer import Rates
from alexnet_jax.run.record import PlateauState
from configs import default

SHAPES = {"conv1": {"kernel": (2, 3, 4), "bias": (2, 4)}, "fc8": {"kernel": (2, 5, 3), "bias": (2, 3)}}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {
        layer: {k: rng.standard_normal(shape).astype(np.float32) for k, shape in leaves.items()}
        for layer, leaves in SHAPES.items()
    }


def rate_tables(steps):
    """Two drops of the weights' rate, one of the biases', and conv1 on its own and frozen at the end."""
    weights = [0.01 if s < 3 else 0.001 for s in range(steps)]
    biases = [0.02 if s < 5 else 0.002 for s in range(steps)]
    own = [None if s < 4 else 0.00001 if s < 6 else 0.0 for s in range(steps)]
    return {
        ("conv1", "kernel"): [w if o is None else o for w, o in zip(weights, own, strict=True)],
        ("conv1", "bias"): [b if o is None else o for b, o in zip(biases, own, strict=True)],
        ("fc8", "kernel"): weights,
        ("fc8", "bias"): biases,
    }


def test_the_update_rule_over_ten_steps():
    rates = Rates(
        weights=optimizer.step_decay(0.01, 0.1, (3,)),
        biases=optimizer.step_decay(0.02, 0.1, (5,)),
        events=(("conv1", 4, 0.00001), ("conv1", 6, 0.0)),
    )
    rule = optimizer.sgd_2012(rates)
    params = jax.tree.map(jnp.asarray, draw(0))
    state = rule.init(params)
    w = {place: np.asarray(draw(0)[place[0]][place[1]], np.float64) for place in rate_tables(1)}
    v = {place: np.zeros_like(value) for place, value in w.items()}

    @jax.jit
    def update(gradients, state, params, step):
        updates, state = rule.update(gradients, state, params, step=step, drops=jnp.int32(0))
        return optax.apply_updates(params, updates), state

    for step in range(10):
        gradients = draw(step + 1)
        params, state = update(gradients, state, params, step)
        for (layer, kind), table in rate_tables(10).items():
            place, rate, gradient = (layer, kind), table[step], gradients[layer][kind].astype(np.float64)
            if rate > 0:  # where it is 0 the parameter is frozen and v rests
                decay = 0.0005 if kind == "kernel" else 0.0
                v[place] = 0.9 * v[place] - decay * rate * w[place] - rate * gradient
                w[place] = w[place] + v[place]
            velocity = optax.tree_utils.tree_get(state, "trace")[layer][kind]
            np.testing.assert_allclose(velocity, v[place], rtol=2e-6, atol=1e-8, err_msg=f"{place} {step}")
            np.testing.assert_allclose(params[layer][kind], w[place], rtol=1e-6, err_msg=f"{place} {step}")


def test_one_step_by_hand():
    """w = 2, v = 1, g = 3, rate 0.1, decay 0.5: v = 0.9 - 0.5 * 0.1 * 2 - 0.1 * 3 = 0.5, w = 2.5."""
    rates = Rates(optimizer.constant(0.1), optimizer.constant(0.2))
    rule = optimizer.sgd_2012(rates, weight_decay=0.5)
    params = {"fc6": {"kernel": jnp.full(1, 2.0), "bias": jnp.full(1, 2.0)}}
    gradients = {"fc6": {"kernel": jnp.full(1, 3.0), "bias": jnp.full(1, 3.0)}}
    state = optax.tree_utils.tree_set(
        rule.init(params), trace={"fc6": {"kernel": jnp.full(1, 1.0), "bias": jnp.full(1, 1.0)}}
    )
    updates, _ = rule.update(gradients, state, params, step=jnp.int32(0), drops=jnp.int32(0))
    assert updates["fc6"]["kernel"][0] == pytest.approx(0.5)
    assert updates["fc6"]["bias"][0] == pytest.approx(0.9 - 0.2 * 3)  # twice the rate, no decay


def test_a_drop_of_the_rate_leaves_v_alone():
    """Without a gradient v shrinks by 0.9; a rule that scales after momentum would cut the step by 10."""
    schedule = optimizer.step_decay(0.1, 0.1, (1,))
    rule = optimizer.sgd_2012(Rates(schedule, schedule), weight_decay=0.0)
    params = {"fc6": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}}
    first, state = rule.update(params, rule.init(params), params, step=jnp.int32(0), drops=jnp.int32(0))
    none = jax.tree.map(jnp.zeros_like, params)
    second, _ = rule.update(none, state, params, step=jnp.int32(1), drops=jnp.int32(0))
    assert first["fc6"]["kernel"][0] == pytest.approx(-0.1)
    assert second["fc6"]["kernel"][0] == pytest.approx(-0.09)


def test_which_rate_holds_for_which_parameter():
    events = (("conv1.kernel", 5, 3.0), ("*.bias", 6, 4.0), ("conv1", 7, 0.0))
    rates = Rates(optimizer.constant(1.0), optimizer.constant(2.0), events)
    expected = {  # at steps 4 to 7
        ("conv1", "kernel"): (1.0, 3.0, 3.0, 0.0),
        ("conv1", "bias"): (2.0, 2.0, 4.0, 0.0),
        ("fc8", "kernel"): (1.0, 1.0, 1.0, 1.0),
        ("fc8", "bias"): (2.0, 2.0, 4.0, 4.0),
        ("*", "kernel"): (1.0, 1.0, 1.0, 1.0),  # what the log shows
        ("*", "bias"): (2.0, 2.0, 4.0, 4.0),
    }
    for (layer, kind), values in expected.items():
        found = [float(rates.of(layer, kind)(jnp.int32(step), jnp.int32(0))) for step in (4, 5, 6, 7)]
        assert tuple(found) == values, (layer, kind)


def test_a_layer_keeps_its_own_rate_when_a_pattern_comes_later():
    """A freeze or another rate of one layer outlives `*.bias`, which still holds until then and elsewhere."""
    section = configs.resolve(default.get_config()).optimizer
    changes = (("*.bias", 4.0, 5.0), ("conv1", 5.0, 0.0), ("*.bias", 6.0, 4.0), ("fc8.bias", 6.0, 3.0))
    expected = {  # in epochs 3 to 6
        ("conv1", "kernel"): (0.01, 0.01, 0.0, 0.0),
        ("conv1", "bias"): (0.02, 5.0, 0.0, 0.0),
        ("fc8", "kernel"): (0.01, 0.01, 0.01, 0.01),
        ("fc8", "bias"): (0.02, 5.0, 5.0, 3.0),
        ("conv2", "bias"): (0.02, 5.0, 5.0, 4.0),
    }
    for order in (changes, changes[::-1]):  # of the same epochs: the order of the tuple makes no difference
        section = dataclasses.replace(section, schedule="constant", layer_rates=order)
        rates = optimizer.make_rates(section, round)
        for (layer, kind), values in expected.items():
            schedule = rates.of(layer, kind)
            found = [float(schedule(jnp.int32(step), jnp.int32(0))) for step in (3, 4, 5, 6)]
            assert found == pytest.approx(values), (order, layer, kind)


def test_constant_and_plateau_schedules():
    for step in (0, 10, 10**6):
        for drops in range(4):
            at = jnp.int32(step), jnp.int32(drops)
            assert optimizer.constant(0.01)(*at) == pytest.approx(0.01)
            assert optimizer.step_decay(0.01, 0.1, ())(*at) == pytest.approx(0.01)
            assert optimizer.plateau(0.01, 0.1)(*at) == pytest.approx(0.01 / 10**drops, rel=1e-6)


def plateau_rule(**keys):
    return dataclasses.replace(configs.resolve(default.get_config()).optimizer, schedule="plateau", **keys)


def follow(rule, errors):
    """(drops, finished) after each evaluation."""
    state, seen = PlateauState(), []
    for error in errors:
        state = state.after_evaluation(rule, error)
        seen.append((state.drops, state.finished))
    return seen


GOING, NAN = False, float("nan")


@pytest.mark.parametrize(
    ("rule", "errors", "expected"),
    [
        pytest.param(
            plateau_rule(patience_evals=2, max_drops=3),
            [90, 80, 80, 81, 79, 85, 79.5, 79, 79, 79, 78, 79, 78, 77],
            # Two evaluations no better than 80 drop the rate, 79 is a gain, then pairs without one.
            [(0, GOING)] * 3 + [(1, GOING)] * 3 + [(2, GOING)] * 2 + [(3, GOING)] * 4 + [(3, True)] * 2,
            id="the paper: three drops, then the end, from which nothing returns",
        ),
        pytest.param(
            plateau_rule(patience_evals=1, max_drops=1),
            [50, 50, 50],
            [(0, GOING), (1, GOING), (1, True)],
            id="the same error is no gain",
        ),
        pytest.param(
            plateau_rule(patience_evals=3, max_drops=1),
            [50, 51, 51, 49, 50, 50, 50],
            [(0, GOING)] * 6 + [(1, GOING)],
            id="a gain starts the patience anew",
        ),
        pytest.param(
            plateau_rule(patience_evals=1, max_drops=0),
            [50, 49, 49],
            [(0, GOING), (0, GOING), (0, True)],
            id="without drops it only stops early",
        ),
        pytest.param(
            plateau_rule(patience_evals=1, max_drops=2),
            [NAN, 90, NAN],
            [(1, GOING), (1, GOING), (2, GOING)],
            id="NaN is no gain",
        ),
    ],
)
def test_plateau_rule(rule, errors, expected):
    assert follow(rule, errors) == expected


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("constant", (0.01, 0.02)), ("epochs", (0.001, 0.002)), ("plateau", (0.0001, 0.0002))],
)
def test_each_schedule_that_a_config_may_name(schedule, rates):
    """At epoch 5, one epoch after the only drop by epochs, with two drops by the plateau rule."""
    section = configs.resolve(default.get_config(), {"optimizer.schedule": schedule}).optimizer
    params = {"conv2": {"kernel": jnp.zeros(()), "bias": jnp.zeros(())}}
    gradients = jax.tree.map(jnp.ones_like, params)
    for follows in (True, False):
        section = dataclasses.replace(section, bias_rate_drops=follows)
        rule = optimizer.make(section, optimizer.make_rates(section, lambda epoch: round(100 * epoch)))
        at = {"step": jnp.int32(500), "drops": jnp.int32(2)}
        updates = rule.update(gradients, rule.init(params), params, **at)[0]["conv2"]
        expected = rates if follows else (rates[0], 0.02)
        assert (-updates["kernel"], -updates["bias"]) == pytest.approx(expected, rel=1e-5)
