"""The CIFAR-10 nets of section 3.3 against float64 loops, their files' numbers, and a run."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax import UserError, augment, conv_local, create_model, load_pretrained, optimizer
from alexnet_jax import config as configs
from alexnet_jax.run import summary
from alexnet_jax.train import train
from alexnet_jax.weights import layouts, pretrained
from configs import conv_local_11pct, conv_local_13pct
from tests import reference, tiny
from tests.reference import relative_error


def local_loop(x, kernel):
    """Each output by a loop over places, window and filters."""
    batch, height, width, _ = x.shape
    window, outputs = kernel.shape[2], kernel.shape[5]
    y = np.zeros((batch, height, width, outputs))
    for i, j, m, n in np.ndindex(height, width, window, window):
        row, column = i + m - window // 2, j + n - window // 2
        if 0 <= row < height and 0 <= column < width:
            y[:, i, j] += x[:, row, column] @ kernel[i, j, m, n]
    return y


def local_gradients(x, kernel, g):
    """The gradients of `sum(g * local_loop(x, kernel))`, by the same loop."""
    dx, dkernel = np.zeros(x.shape), np.zeros(kernel.shape)
    height, width, window = kernel.shape[:3]
    for i, j, m, n in np.ndindex(height, width, window, window):
        row, column = i + m - window // 2, j + n - window // 2
        if 0 <= row < height and 0 <= column < width:
            dx[:, row, column] += g[:, i, j] @ kernel[i, j, m, n].T
            dkernel[i, j, m, n] = x[:, row, column].T @ g[:, i, j]
    return dx, dkernel


@pytest.mark.parametrize(
    ("height", "width", "window", "inputs", "outputs"),
    [(6, 6, 3, 4, 5), (4, 7, 3, 3, 2), (5, 3, 5, 2, 3), (1, 2, 3, 1, 1)],
)
def test_locally_connected_and_its_gradients(height, width, window, inputs, outputs):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, height, width, inputs))
    kernel = rng.standard_normal((height, width, window, window, inputs, outputs))
    g = rng.standard_normal((3, height, width, outputs))

    @jax.jit
    def both(x, kernel, g):
        y, back = jax.vjp(conv_local.locally_connected, x, kernel)
        return y, *back(g)

    expected = local_loop(x, kernel), *local_gradients(x, kernel, g)
    for own, other in zip(both(*(a.astype(np.float32) for a in (x, kernel, g))), expected, strict=True):
        assert relative_error(own, other) < 1e-5
    with jax.enable_x64(True):
        for own, other in zip(both(x, kernel, g), expected, strict=True):
            assert relative_error(own, other) < 1e-13


@pytest.mark.parametrize(("variant", "norm", "local3"), [
    ("conv-local-13pct", False, 32),
    ("conv-local-11pct", True, 64),
])  # fmt: skip
def test_the_nets_against_numpy(variant, norm, local3):
    model, rng = create_model(variant, 10), np.random.default_rng(1)
    shapes = {
        "conv1": ((5, 5, 3, 64), (64,)),
        "conv2": ((5, 5, 64, 64), (64,)),
        "local3": ((6, 6, 3, 3, 64, local3), (6, 6, local3)),
        "local4": ((6, 6, 3, 3, local3, 32), (6, 6, 32)),
        "fc10": ((1152, 10), (10,)),
    }
    params = {
        name: {"kernel": 0.05 * rng.standard_normal((1, *kernel)), "bias": rng.standard_normal((1, *bias))}
        for name, (kernel, bias) in shapes.items()
    }
    x = 20 * rng.standard_normal((2, 24, 24, 3))
    images = jnp.asarray(x, jnp.float32)
    initial = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, initial)

    def layer(name, y):
        kernel, bias = params[name]["kernel"][0], params[name]["bias"][0]
        if name.startswith("local"):
            return reference.relu(local_loop(y, kernel) + bias)
        return reference.relu(reference.convolution(y, kernel, bias, padding=2))

    def lrn(y):  # size 9, scale 0.001 divided by it
        return reference.local_response_norm(y, k=1.0, alpha=0.001 / 9, beta=0.75, size=9) if norm else y

    y = lrn(reference.max_pool(layer("conv1", x), 3, 2))
    y = reference.max_pool(lrn(layer("conv2", y)), 3, 2)
    y = layer("local4", layer("local3", y))
    assert y.shape == (2, 6, 6, 32)
    expected = y.reshape(2, -1) @ params["fc10"]["kernel"][0] + params["fc10"]["bias"][0]
    variables = {"params": jax.tree.map(lambda a: a.astype(np.float32), params)}
    got, seen = jax.jit(lambda v, x: model.apply(v, x, capture="activation4"))(variables, images)
    assert relative_error(got, expected) < 1e-4
    assert relative_error(seen["activation4"], y) < 1e-4


@pytest.mark.parametrize(("variant", "parameters", "multiply_accumulates"), [
    # conv1 4,864, conv2 102,464, local3 36 * (576 * 32 + 32), local4 36 * (288 * 32 + 32), fc10 11,530
    ("conv-local-13pct", 1_116_490, 576 * 75 * 64 + 144 * 1600 * 64 + 36 * (576 + 288) * 32 + 11_520),
    # local3 36 * (576 * 64 + 64), local4 36 * (576 * 32 + 32)
    ("conv-local-11pct", 2_112_970, 576 * 75 * 64 + 144 * 1600 * 64 + 36 * 576 * (64 + 32) + 11_520),
])  # fmt: skip
def test_counts_by_hand(variant, parameters, multiply_accumulates):
    counted = summary.summarise(create_model(variant, 10), 24)
    assert counted["total"]["parameters"] == parameters
    assert counted["total"]["multiply_accumulates"] == multiply_accumulates
    assert [layer["window"] for layer in counted["layers"]] == [[5, 5], [5, 5], [3, 3], [3, 3], None]


def test_first_weights():
    model = create_model("conv-local-11pct", 10)
    params = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 24, 24, 3)))["params"]
    stds = {"conv1": 0.0001, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc10": 0.01}
    assert params.keys() == stds.keys()
    for name, std in stds.items():
        kernel = np.asarray(params[name]["kernel"], np.float64)
        assert kernel.std() == pytest.approx(std, rel=5 / np.sqrt(2 * kernel.size)), name
        assert not np.any(params[name]["bias"])


def test_nine_views_by_hand():
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    mean = np.random.default_rng(1).uniform(0, 255, (32, 32, 3)).astype(np.float32)
    views = augment.views(jnp.asarray(images), 9, mean=jnp.asarray(mean), size=24)
    corners = [(0, 0), (0, 4), (0, 8), (4, 0), (4, 4), (4, 8), (8, 0), (8, 4), (8, 8)]
    expected = [(images - mean)[:, top : top + 24, left : left + 24] for top, left in corners]
    np.testing.assert_allclose(views, np.stack(expected), rtol=1e-6)
    # cuda-convnet: the central part of the mean image from every view (convdata.py:76,84).
    views = augment.views(jnp.asarray(images), 9, mean=jnp.asarray(mean), size=24, mean_crop="centre")
    expected = [images[:, i : i + 24, j : j + 24] - mean[4:28, 4:28] for i, j in corners]
    np.testing.assert_allclose(views, np.stack(expected), rtol=1e-6)


@pytest.mark.parametrize(("module", "fc_decay", "drops", "end"), [
    (conv_local_13pct, 0.004, (140, 150), 160),
    (conv_local_11pct, 0.01, (500, 510), 520),
])  # fmt: skip
def test_the_schedule_and_decay_of_the_files(module, fc_decay, drops, end):
    config = configs.resolve(module.get_config())
    assert (config.run.total_epochs, config.run.eval_views) == (end, 9)
    assert (config.data.batch_size, config.data.resize_size, config.data.image_size) == (128, 32, 24)
    rates = optimizer.make_rates(config.optimizer, lambda epoch: round(epoch))  # a step is an epoch
    for epoch, weights in [
        (0, 0.001), (drops[0] - 1, 0.001), (drops[0], 0.0001), (drops[1], 0.00001), (end - 1, 0.00001)
    ]:  # fmt: skip
        assert rates.weights(jnp.int32(epoch), jnp.int32(0)) == pytest.approx(weights, rel=1e-5)
        assert rates.biases(jnp.int32(epoch), jnp.int32(0)) == pytest.approx(0.002)
    update = optimizer.make(config.optimizer, rates)
    params: Any = {
        name: {"kernel": jnp.full((2,), 3.0), "bias": jnp.full((2,), 3.0)}
        for name in ("conv1", "conv2", "local3", "local4", "fc10")
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    change: Any
    change, _ = update.update(zeros, update.init(params), params, step=jnp.int32(0), drops=jnp.int32(0))
    decays = {"conv1": 0.0, "conv2": 0.0, "local3": 0.004, "local4": 0.004, "fc10": fc_decay}
    for name, decay in decays.items():
        np.testing.assert_allclose(change[name]["kernel"], -0.001 * decay * 3.0, rtol=1e-5)
        assert not np.any(change[name]["bias"])


def test_a_layer_that_does_not_exist_is_a_mistake():
    for key, value in (("layer_rates", (("conv3", 1.0, 0.1),)), ("layer_weight_decays", (("fc6", 0.0),))):
        with pytest.raises(UserError, match=f"optimizer.{key}=.*conv1, conv2, local3, local4, fc10"):
            configs.resolve(conv_local_11pct.get_config(), {f"optimizer.{key}": value})


def test_switches_of_other_nets_are_mistakes():
    with pytest.raises(UserError, match=r"model\.dropout: no such switch"):
        create_model("conv-local-11pct", 10, dropout=0.5)
    with pytest.raises(UserError, match="conv-local-11pct"):
        create_model("conv-local-11", 10)
    with pytest.raises(UserError, match="neither imported nor exported"):
        layouts.layer_shapes(create_model("conv-local-13pct", 10), 24)


@pytest.mark.slow
def test_a_run_trains_tests_in_nine_views_and_is_loaded_again(tmp_path):
    images = tiny.make_images(tmp_path / "images", train=8, test=2)
    config = configs.resolve(
        conv_local_13pct.get_config(),
        {
            "data.source": f"folder:{images}",
            "data.batch_size": 16,
            "mesh.data": 1,
            "augment.mean": "colour",  # a folder has no mean image
            "run.total_epochs": 2.0,
            "run.eval_every_epochs": 1.0,
            "run.save_every_epochs": 1.0,
            "optimizer.drop_epochs": (),
        },
    )
    assert train(config, tmp_path / "run") == "done"
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["eval"]["views"], status["eval"]["examples"]) == (9, 20)
    loaded = pretrained.read(tmp_path / "run")
    assert loaded.model == create_model("conv-local-13pct", 10)
    assert loaded.variables["params"]["local3"]["kernel"].shape == (1, 6, 6, 3, 3, 64, 32)
    logits = loaded.model.apply(loaded.variables, jnp.zeros((1, 24, 24, 3)))
    assert np.isfinite(float(optax.l2_loss(logits).sum()))
    assert load_pretrained(tmp_path / "run").model == loaded.model
    three = load_pretrained(tmp_path / "run", num_classes=3)
    assert len(three.predict(np.zeros((40, 40, 3), np.uint8), topk=9)) == 3
