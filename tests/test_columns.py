"""The two-column layout gives the same numbers on one device, on two and on four.

Two devices add in another order than one, so float32 results differ in their last digits: each array may
deviate by 1e-5 of its own largest entry.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from alexnet_jax import columns, create_model, optimizer, steps
from alexnet_jax import config as configs
from alexnet_jax.common.errors import UserError
from alexnet_jax.data.preprocess import Preprocess
from alexnet_jax.data.statistics import ILSVRC
from alexnet_jax.run import inputs
from configs import default
from tests.reference import random_params, relative_error

STORED, SIZE, BATCH, CLASSES = 80, 67, 8, 10
STEPS = 5
MESHES = [(1, 1), (1, 2), (2, 2), (2, 1)]  # (data, column)
SMALL = {"num_classes": CLASSES, "widths": (16, 24, 24, 24, 16, 16), "fc_widths": (32, 32)}
NETS = {
    "paper": create_model("paper", **SMALL),
    "original": create_model("original", **SMALL),
    "independent columns": create_model("paper", cross_column_layers=(), **SMALL),
    "norm across columns": create_model("caffe", **SMALL),
    "conv6, odd classes": create_model("paper", conv6=True, **{**SMALL, "num_classes": 9}),
    "low resolution": create_model("original", low_resolution=True, **SMALL),
}


PREPROCESS = Preprocess(STORED, SIZE, mean=ILSVRC.mean_colour)
VIEW = inputs.training_view(
    configs.resolve(default.get_config()).augment, PREPROCESS, ILSVRC, steps_at=lambda epochs: 0
)


def view(images, key, example_ids, step=0):
    return VIEW(images, key, example_ids, step)


def batch_of(seed):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (BATCH, STORED, STORED, 3), dtype=np.uint8),
        "label": rng.integers(0, 9, BATCH).astype(np.int32),
        "weight": np.array([1, 1, 0, 1, 1, 1, 1, 1], np.float32),
    }


def params_of(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    params = random_params(jax.tree.map(lambda leaf: leaf.shape, shapes), seed=0)
    params["fc8"]["kernel"] /= 10  # keeps the softmax from saturating
    return params


def loss_and_gradients(forward, params):
    batch, key = batch_of(0), jax.random.key(7)

    def loss_of(params):
        logits = forward(params, batch["image"], key, jnp.arange(BATCH))
        return steps.cross_entropy(logits, batch["label"], batch["weight"]) / batch["weight"].sum()

    return jax.jit(jax.value_and_grad(loss_of))(params)


def single_device(model):
    """The module by itself: no `shard_map`, no exchange over devices."""

    def forward(params, images, key, example_ids):
        view_key, dropout_key = jax.random.split(key)
        x = view(images, view_key, example_ids)
        return model.apply({"params": params}, x, train=True, rngs={"dropout": dropout_key})

    return forward


@pytest.mark.parametrize(
    ("name", "meshes"),
    [
        ("paper", [(1, 1), (2, 2)]),  # the other meshes in the steps below, too
        pytest.param("paper", [(1, 2), (2, 1)], marks=pytest.mark.slow),
        pytest.param("original", MESHES, marks=pytest.mark.slow),
        pytest.param("independent columns", MESHES[1:], marks=pytest.mark.slow),
        pytest.param("norm across columns", MESHES[1:], marks=pytest.mark.slow),
        ("conv6, odd classes", MESHES[1:2]),
        pytest.param("low resolution", [(1, 2)], marks=pytest.mark.slow),
        ("low resolution", [(2, 2)]),
    ],
)
def test_loss_and_every_gradient_agree(name, meshes):
    """Dropout, crops, mirrors and colour noise included."""
    model, params = NETS[name], params_of(NETS[name])
    expected_loss, expected = jax.device_get(loss_and_gradients(single_device(model), params))
    assert 0.5 < expected_loss < 100
    for mesh in meshes:
        forward = steps.forward_on_mesh(model, columns.make_mesh(*mesh), view, train=True)
        loss, gradients = loss_and_gradients(forward, params)
        assert loss == pytest.approx(float(expected_loss), rel=1e-5), mesh
        errors = jax.tree.map(relative_error, gradients, expected)
        assert max(jax.tree.leaves(errors)) < 1e-5, (mesh, errors)


@functools.cache
def train(name, shape, micro_batches=1):
    """Losses, top-1 errors, parameters and momentum of `STEPS` steps on a mesh, each on its own batch."""
    mesh = columns.make_mesh(*shape)
    rates = optimizer.Rates(optimizer.step_decay(1e-4, 0.1, (3,)), optimizer.constant(2e-4))
    rule = optimizer.sgd_2012(rates)
    params = params_of(NETS[name])
    state = jax.device_put(steps.fresh_state(params, rule), steps.state_shardings(mesh))
    step = steps.make_train_step(
        NETS[name], rule, mesh, view, seed=0, log_every=1, micro_batches=micro_batches
    )
    seen = []
    for i in range(STEPS):
        state, metrics = step(state, jax.device_put(batch_of(i), steps.batch_sharding(mesh)))
        seen.append((float(metrics["loss"]), float(metrics["top1_error"])))
    assert state.step == STEPS
    return np.array(seen), jax.device_get((state.params, state.opt_state))


@pytest.mark.parametrize("name", ["paper", pytest.param("original", marks=pytest.mark.slow)])
def test_five_training_steps_agree(name):
    expected_metrics, expected = train(name, (1, 1))
    assert np.ptp(expected_metrics[:, 0]) > 0.1
    moved = jax.tree.map(relative_error, expected[0], params_of(NETS[name]))
    assert all(layer["kernel"] > 1e-4 for layer in moved.values()), moved
    for mesh in MESHES[1:]:
        metrics, state = train(name, mesh)
        np.testing.assert_allclose(metrics, expected_metrics, rtol=1e-5, err_msg=str(mesh))
        errors = jax.tree.map(relative_error, state, expected)
        assert max(jax.tree.leaves(errors)) < 1e-5, (mesh, errors)


def test_each_device_holds_one_column():
    """The bytes of parameters and momentum on a device halve with two columns, and do not with more data."""
    model = NETS["paper"]
    rule = optimizer.sgd_2012(optimizer.Rates(optimizer.constant(0.01), optimizer.constant(0.02)))
    params = params_of(model)
    state = steps.fresh_state(params, rule)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))

    def held(mesh):
        placed = jax.device_put(state, steps.state_shardings(mesh))
        return {
            sum(
                leaf.addressable_data(i).nbytes for leaf in jax.tree.leaves((placed.params, placed.opt_state))
            )
            for i in range(mesh.size)
        }

    assert held(columns.make_mesh(1, 1)) == held(columns.make_mesh(2, 1)) == {2 * total}
    assert held(columns.make_mesh(1, 2)) == held(columns.make_mesh(2, 2)) == {total}


def test_a_fresh_state_has_the_same_bits_on_any_mesh():
    model = create_model("paper", num_classes=3, widths=(2, 2, 2, 2, 2, 2), fc_widths=(4, 4))
    rule = optimizer.sgd_2012(optimizer.Rates(optimizer.constant(0.01), optimizer.constant(0.02)))
    mesh = columns.make_mesh(2, 2)
    one = steps.init_state(model, rule, SIZE, 5, columns.make_mesh(1, 1))
    four = steps.init_state(model, rule, SIZE, 5, mesh)
    jax.tree.map(np.testing.assert_array_equal, one, four)
    assert four.params["fc6"]["kernel"].sharding == NamedSharding(mesh, columns.PARAMETERS)


def test_exchange_puts_the_channels_of_all_columns_in_order():
    a, b = jnp.arange(6.0).reshape(2, 3), 10 + jnp.arange(6.0).reshape(2, 3)
    expected = np.concatenate([a, b], axis=-1)
    for x in columns.exchange([a, b]):
        np.testing.assert_array_equal(x, expected)

    both = jnp.stack([a, b])  # the leading axis is the column
    exchanged = columns.on_mesh(
        lambda own: columns.exchange([own[0]], columns.COLUMN)[0][None],
        columns.make_mesh(1, 2),
        columns.PARAMETERS,
        columns.PARAMETERS,
    )(both)
    np.testing.assert_array_equal(exchanged, np.stack([expected, expected]))


@pytest.mark.parametrize(
    ("data", "column", "shape"),
    [(-1, 1, (8, 1)), (-1, 2, (4, 2)), (2, -1, (2, 4)), (1, 2, (1, 2)), (3, 2, (3, 2)), (-1, 3, (2, 3))],
)
def test_make_mesh_of_eight_devices(data, column, shape):
    mesh = columns.make_mesh(data, column)
    assert dict(mesh.shape) == {"data": shape[0], "column": shape[1]}
    assert mesh.devices.ravel().tolist() == jax.devices()[: shape[0] * shape[1]]


@pytest.mark.parametrize(
    ("data", "column", "words"),
    [
        (0, 1, ["mesh.data=0"]),
        (1, -2, ["mesh.column=-2"]),
        (-1, -1, ["mesh.data", "mesh.column", "both -1"]),
        (8, 2, ["mesh.data=8", "mesh.column=2", "16 devices", "there are 8"]),
        (-1, 9, ["mesh.column=9", "there are 8"]),
    ],
)
def test_impossible_meshes(data, column, words):
    with pytest.raises(UserError) as error:
        columns.make_mesh(data, column)
    for word in words:
        assert word in str(error.value)


def test_columns_that_do_not_fit_the_mesh():
    with pytest.raises(UserError, match=r"mesh.column=2: does not divide the 1 column"):
        steps.forward_on_mesh(create_model("torchvision"), columns.make_mesh(1, 2), view, train=True)


@pytest.mark.parametrize("mesh", [pytest.param((1, 1), marks=pytest.mark.slow), (2, 2)])
def test_micro_batches_give_the_step_of_the_full_batch(mesh):
    expected_metrics, expected = train("paper", (1, 1))
    metrics, state = train("paper", mesh, micro_batches=2)
    np.testing.assert_allclose(metrics, expected_metrics, rtol=1e-5)
    errors = jax.tree.map(relative_error, state[0], expected[0])
    assert max(jax.tree.leaves(errors)) < 1e-5, errors
