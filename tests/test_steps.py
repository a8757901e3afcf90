"""Losses, errors and sums of the steps against NumPy and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import augment, columns, create_model, evaluate, optimizer, steps
from alexnet_jax import config as configs
from alexnet_jax.data.preprocess import Preprocess
from alexnet_jax.data.statistics import ILSVRC
from alexnet_jax.run import inputs, pace
from configs import default
from tests.reference import random_params, relative_error, softmax

SIZE, STORED, CLASSES = 67, 73, 12
MEAN = ILSVRC.mean_colour
PREPROCESS = Preprocess(resize_size=STORED, crop_size=SIZE, mean=MEAN)
MODEL = create_model(num_classes=CLASSES, widths=(4, 4, 4, 4, 4, 4), fc_widths=(8, 8))


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    return random_params(jax.tree.map(lambda leaf: leaf.shape, shapes), seed=1)


def test_cross_entropy_is_the_sum_over_examples_with_weight():
    rng = np.random.default_rng(0)
    logits = (10 * rng.standard_normal((6, 5))).astype(np.float32)
    labels = rng.integers(0, 5, 6).astype(np.int32)
    losses = -np.log(softmax(logits.astype(np.float64))[np.arange(6), labels])
    ones = np.ones(6, np.float32)
    assert steps.cross_entropy(logits, labels, ones) == pytest.approx(losses.sum(), rel=1e-6)

    weights = np.array([1, 0, 1, 1, 0, 1], np.float32)
    expected = losses[weights > 0].sum()
    assert steps.cross_entropy(logits, labels, weights) == pytest.approx(expected, rel=1e-6)
    other = np.where(weights[:, None] > 0, logits, 1e6).astype(np.float32)
    assert steps.cross_entropy(other, labels, weights) == pytest.approx(expected, rel=1e-6)
    gradient = jax.grad(steps.cross_entropy)(logits, labels, weights)
    assert not np.any(gradient[weights == 0])
    assert steps.cross_entropy(logits, labels, 0 * ones) == 0.0


def test_cross_entropy_of_an_undecided_net_is_the_log_of_the_classes():
    loss = steps.cross_entropy(jnp.zeros((3, 1000)), jnp.arange(3), jnp.ones(3))
    assert loss == pytest.approx(3 * 6.907755, rel=1e-6)


def test_cross_entropy_of_large_logits():
    """No overflow: 3e4 against 0 costs 3e4."""
    logits = jnp.asarray([[3e4, 0.0], [3e4, 0.0]])
    assert steps.cross_entropy(logits, jnp.asarray([0, 1]), jnp.ones(2)) == pytest.approx(3e4)


class Result:
    """Something that a device computes, and whether anyone waited for it."""

    def __init__(self):
        self.waited = False

    def block_until_ready(self):
        self.waited = True
        return self

    def is_ready(self):
        return self.waited


@pytest.mark.parametrize(("platform", "most"), [("cpu", 0), ("gpu", 2), ("tpu", 2)])
def test_the_host_runs_so_many_steps_ahead(platform, most):
    device = type("Device", (), {"platform": platform})
    in_flight = pace.InFlight(type("Mesh", (), {"devices": np.array([device])}))
    assert in_flight.is_idle()
    results = [Result() for _ in range(5)]
    for number, result in enumerate(results, 1):
        in_flight.make_room()
        in_flight.add(result)
        assert not in_flight.is_idle()
        assert [r.waited for r in results[:number]] == [i < number - 1 - most for i in range(number)]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("scores", "label", "k", "expected"),
    [
        ([1, 2, 3, 4], 3, 1, 0),
        ([1, 2, 3, 4], 2, 1, 1),
        ([1, 2, 3, 4], 2, 2, 0),
        ([1, 2, 3, 4], 0, 3, 1),
        ([1, 2, 3, 4], 0, 4, 0),  # k takes in all classes
        ([1, 2, 3, 4], 0, 5, 0),  # and more than all
        ([4, 4, 1, 1], 0, 1, 1),  # a tie for the first place
        ([4, 4, 1, 1], 0, 2, 0),
        ([5, 4, 4, 4], 1, 3, 1),  # the last of three on a par may be fourth
        ([0, 0, 0, 0], 2, 1, 1),  # the same of every class is never right
        ([0, 0, 0, 0], 2, 3, 1),
        ([NAN, NAN, NAN, NAN], 0, 1, 1),
        ([NAN, NAN, NAN, NAN], 0, 5, 1),
        ([1, NAN, 0, 0], 0, 1, 1),  # NaN of another class counts as ahead
        ([1, NAN, 0, 0], 0, 2, 0),
        ([NAN, 1, 0, 0], 0, 4, 1),
        ([-INF, -INF, 0, -1], 2, 1, 0),
        ([INF, 0, 0, 0], 0, 1, 0),
    ],
)
def test_wrong(scores, label, k, expected):
    result = steps.topk_errors(jnp.asarray([scores], jnp.float32), jnp.asarray([label]), k)
    assert result.tolist() == [expected]
    assert result.dtype == jnp.float32


def test_wrong_against_sorting():
    rng = np.random.default_rng(1)
    scores, labels = rng.standard_normal((200, 30)).astype(np.float32), rng.integers(0, 30, 200)
    for k in (1, 5):
        best = np.argsort(-scores, axis=1)[:, :k]
        expected = [label not in row for label, row in zip(labels, best, strict=True)]
        assert steps.topk_errors(scores, labels, k).tolist() == expected


def batch_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (count, STORED, STORED, 3), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, count).astype(np.int32),
        "weight": np.ones(count, np.float32),
    }


def boxes(views):
    margin = STORED - SIZE
    if views == 1:
        return [(margin // 2, margin // 2, False)]
    places = [(0, 0), (0, margin), (margin, 0), (margin, margin), (margin // 2, margin // 2)]
    return [(top, left, flip) for flip in (False, True) for top, left in places]


def expected_sums(params, batch, views):
    """Probabilities averaged over the views in float64, then judged by sorting."""
    apply = jax.jit(lambda x: MODEL.apply({"params": params}, x))
    probabilities = np.zeros((len(batch["label"]), CLASSES))
    for top, left, flip in boxes(views):
        patch = batch["image"][:, top : top + SIZE, left : left + SIZE].astype(np.float32) - MEAN
        logits = np.asarray(apply(patch[:, :, ::-1] if flip else patch), np.float64)
        probabilities += softmax(logits) / views
    counted = batch["weight"] > 0
    rows = np.arange(len(counted))
    rank = np.argsort(np.argsort(-probabilities, axis=1), axis=1)[rows, batch["label"]]
    return {
        "loss": -np.log(probabilities[rows, batch["label"]])[counted].sum(),
        "top1_errors": (rank >= 1)[counted].sum(),
        "top5_errors": (rank >= 5)[counted].sum(),
        "examples": counted.sum(),
    }


@pytest.mark.parametrize("views", [1, 10])
def test_evaluation_sums(params, views):
    eval_step = evaluate.make_eval_step(MODEL, columns.make_mesh(2, 2), PREPROCESS, views)
    batch = batch_of(16)
    whole = eval_step(params, batch)
    expected = expected_sums(params, batch, views)
    assert 0 < expected["top5_errors"] < expected["top1_errors"] < 16
    for name, value in expected.items():
        assert float(whole[name]) == pytest.approx(value, rel=1e-5), name

    # Placeholders do not count, and parts of the batch add up to the whole.
    masks = [np.arange(16) % 3 == i for i in range(3)]
    parts = [eval_step(params, {**batch, "weight": mask.astype(np.float32)}) for mask in masks]
    assert [int(part["examples"]) for part in parts] == [6, 5, 5]
    for name, value in expected.items():
        assert sum(float(part[name]) for part in parts) == pytest.approx(value, rel=1e-5), name


def test_ten_views_average_probabilities_not_logits(params):
    """The two differ here, so that the test above can tell them apart."""
    batch = batch_of(16)
    apply = jax.jit(lambda x: MODEL.apply({"params": params}, x))
    views = np.asarray(augment.views(batch["image"], 10, mean=MEAN, size=SIZE))
    logits = np.stack([np.asarray(apply(view), np.float64) for view in views])
    of_logits = -np.log(softmax(logits.mean(axis=0))[np.arange(16), batch["label"]]).sum()
    assert abs(of_logits - expected_sums(params, batch, 10)["loss"]) > 0.01


def test_ten_view_loss_where_probabilities_underflow(params):
    """A net that is sure of the wrong class: exp(-1000) is 0 in float32, the loss is not infinite."""
    sure = jax.tree.map(np.zeros_like, params)
    sure["fc8"]["bias"][0, 1] = 1000.0  # class 1
    sure["fc8"]["bias"][0, 2] = 500.0
    batch = {**batch_of(8), "label": np.array([1, 2, 0, 0, 1, 1, 1, 1], np.int32)}
    eval_step = evaluate.make_eval_step(MODEL, columns.make_mesh(1, 1), PREPROCESS, 10)
    sums = {name: float(value) for name, value in eval_step(sure, batch).items()}
    assert sums["loss"] == pytest.approx(0 + 500 + 2 * 1000, rel=1e-6)
    assert sums["top1_errors"] == 3
    assert sums["top5_errors"] == 2  # the third place is shared by ten classes; class 2 is second


VIEW = inputs.training_view(
    configs.resolve(default.get_config()).augment, PREPROCESS, ILSVRC, steps_at=lambda epochs: 0
)


def random_view(images, key, example_ids, step):
    assert step.dtype == jnp.int32
    return VIEW(images, key, example_ids, step)


FROZEN = optimizer.sgd_2012(optimizer.Rates(optimizer.constant(0.0), optimizer.constant(0.0)))


@functools.cache
def step_of(seed, log_every):
    mesh = columns.make_mesh(1, 1)
    return steps.make_train_step(MODEL, FROZEN, mesh, random_view, seed=seed, log_every=log_every), mesh


def run(params, batch, *, seed, count, log_every=1):
    """The last state and each step's metrics, of a net that never changes."""
    step, mesh = step_of(seed, log_every)
    state, seen = jax.device_put(steps.fresh_state(params, FROZEN), steps.state_shardings(mesh)), []
    for _ in range(count):
        state, metrics = step(state, batch)
        seen.append({name: float(value) for name, value in metrics.items()})
    return state, seen


def test_train_step_metrics_and_what_is_random(params):
    """The loss is that of the views and masks of (seed, step), and neither is drawn twice."""
    batch = {**batch_of(8), "weight": np.array([1, 1, 1, 1, 1, 1, 0, 0], np.float32)}
    state, seen = run(params, batch, seed=3, count=2)
    assert (state.step, state.bad_images) == (2, 4)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    losses = [metrics["loss"] for metrics in seen]
    assert losses[0] != losses[1]
    assert run(params, batch, seed=4, count=1)[1][0]["loss"] not in losses
    assert run(params, batch, seed=3, count=1)[1] == seen[:1]

    @jax.jit
    def logits_of(step):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 1), step)
        view_key, dropout_key = jax.random.split(key)
        x = random_view(batch["image"], view_key, jnp.arange(8), step=step)
        return MODEL.apply({"params": params}, x, train=True, rngs={"dropout": dropout_key})

    for step in range(2):
        logits, labels = np.asarray(logits_of(jnp.int32(step)), np.float64)[:6], batch["label"][:6]
        expected = {
            "loss": -np.log(softmax(logits)[np.arange(6), labels]).mean(),
            "top1_error": 100 * np.mean(logits.argmax(axis=1) != labels),
            "bad_images": 2 * (step + 1),
        }
        assert seen[step] == pytest.approx(expected, rel=1e-5)


def test_metrics_are_means_since_the_last_log(params):
    """Every 3 steps: means of 1, 2 and 3 losses, then anew."""
    _, single = run(params, batch_of(8), seed=3, count=5, log_every=1)
    _, seen = run(params, batch_of(8), seed=3, count=5, log_every=3)
    for name in ("loss", "top1_error"):
        values = [metrics[name] for metrics in single]
        expected = [np.mean(values[3 * (i // 3) : i + 1]) for i in range(5)]
        assert [metrics[name] for metrics in seen] == pytest.approx(expected, rel=1e-6)
    assert len({metrics["loss"] for metrics in single}) == 5


def test_the_mean_image_is_subtracted_at_evaluation(params):
    """A picture that is its own mean gives the logits of an all-zero input, whatever the patch."""
    image = batch_of(1)["image"]
    preprocess = Preprocess(resize_size=STORED, crop_size=SIZE, mean=image[0].astype(np.float32))
    eval_step = evaluate.make_eval_step(MODEL, columns.make_mesh(1, 1), preprocess, 10)
    sums = eval_step(
        params, {"image": image, "label": np.array([4], np.int32), "weight": np.ones(1, np.float32)}
    )
    logits = MODEL.apply({"params": params}, jnp.zeros((1, SIZE, SIZE, 3)))
    assert relative_error(sums["loss"], -np.log(softmax(np.asarray(logits, np.float64))[0, 4])) < 1e-5
