"""The low-resolution input of run 141 against float64 loops over the released code's definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import UserError, create_model, low_resolution
from alexnet_jax.run import summary
from tests import reference
from tests.reference import relative_error

RUN_141 = {"low_resolution": True, "conv6": True, "widths": (64, 256, 384, 384, 256, 256)}
SMALL = {"low_resolution": True, "widths": (8, 12, 16, 16, 12, 12), "fc_widths": (24, 20)}


def blur_loop(images):
    """blur0 and nails0: each pixel that stays is a sum over 9 x 9, of which zeros lie beyond the edges."""
    batch, size, _, channels = images.shape
    weights = np.exp(-((np.arange(9) - 4) ** 2) / (2.0 * 4.0**2))
    weights /= weights.sum()
    outputs = (size + 4 - 1) // 4  # layer.py:422
    start = (size - 4 * (outputs - 1)) // 2  # layer.py:423
    out = np.zeros((batch, outputs, outputs, channels))
    for i, j, m, n in np.ndindex(outputs, outputs, 9, 9):
        row, column = start + 4 * i + m - 4, start + 4 * j + n - 4
        if 0 <= row < size and 0 <= column < size:
            out[:, i, j] += weights[m] * weights[n] * images[:, row, column]
    return out


def both_loop(low, x, kernel):
    """conv2a's two sums (layers-141.cfg:79-92): 5 x 5 at stride 2 without padding, 5 x 5 with padding 2."""
    y = reference.convolution(x, kernel[:, :, : x.shape[3]], np.zeros(kernel.shape[3]), padding=2)
    for i, j, m, n in np.ndindex(*y.shape[1:3], 5, 5):
        if 2 * i + m < low.shape[1] and 2 * j + n < low.shape[2]:
            y[:, i, j] += low[:, 2 * i + m, 2 * j + n] @ kernel[m, n, x.shape[3] :]
    return y


def both_gradients(low, x, kernel, g):
    """The gradients of `sum(g * both_loop(low, x, kernel))` with respect to all three."""
    dlow, dx, dkernel = np.zeros(low.shape), np.zeros(x.shape), np.zeros(kernel.shape)
    inputs = x.shape[3]
    for i, j, m, n in np.ndindex(*g.shape[1:3], 5, 5):
        row, column = i + m - 2, j + n - 2
        if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
            dx[:, row, column] += g[:, i, j] @ kernel[m, n, :inputs].T
            dkernel[m, n, :inputs] += x[:, row, column].T @ g[:, i, j]
        row, column = 2 * i + m, 2 * j + n
        if row < low.shape[1] and column < low.shape[2]:
            dlow[:, row, column] += g[:, i, j] @ kernel[m, n, inputs:].T
            dkernel[m, n, inputs:] += low[:, row, column].T @ g[:, i, j]
    return dlow, dx, dkernel


@pytest.mark.parametrize("size", [224, 67, 62, 61, 9, 5])
def test_blur_and_stride(size):
    x = 60 * np.random.default_rng(size).standard_normal((2, size, size, 3))
    expected = blur_loop(x)
    assert relative_error(jax.jit(low_resolution.blurred)(x.astype(np.float32)), expected) < 1e-6
    with jax.enable_x64(True):
        assert relative_error(np.asarray(low_resolution.blurred(jnp.asarray(x))), expected) < 1e-14


def test_a_point_by_hand():
    """One white pixel at (2, 6), which stays as (0, 1): each neighbour four pixels on has exp(-1/2) of it."""
    image = np.zeros((1, 224, 224, 1), np.float32)
    image[0, 2, 6, 0] = 1.0
    low = np.asarray(low_resolution.blurred(jnp.asarray(image)))[0, :, :, 0]
    assert low.shape == (56, 56)
    centre = 1 / (1 + 2 * sum(np.exp(-(d**2) / 32) for d in (1, 2, 3, 4))) ** 2
    expected = centre * np.outer([1, np.exp(-0.5)], [np.exp(-0.5), 1, np.exp(-0.5)])
    np.testing.assert_allclose(low[:2, :3], expected, rtol=1e-6)
    assert np.count_nonzero(low) == 6


def test_bfloat16_is_summed_in_float32():
    x = jnp.asarray(60 * np.random.default_rng(0).standard_normal((2, 67, 67, 3)), jnp.bfloat16)
    exact = low_resolution.blurred(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(low_resolution.blurred(x), exact)


@pytest.mark.parametrize(("side", "low_side", "filters"), [
    (6, 14, 5),  # the last window hangs over the edge by a pixel, as in the net
    (6, 15, 100),
    (7, 16, 20),
    (7, 19, 3),  # the low-resolution image is cut
])  # fmt: skip
def test_both_convolutions_and_their_gradients(side, low_side, filters):
    rng = np.random.default_rng(0)
    low, x = rng.standard_normal((3, low_side, low_side, 3)), rng.standard_normal((3, side, side, 4))
    kernel, g = rng.standard_normal((5, 5, 7, filters)), rng.standard_normal((3, side, side, filters))
    convolve = functools.partial(low_resolution.layers.convolution, padding=2)

    @jax.jit
    def both(low, x, kernel, g):
        y, back = jax.vjp(functools.partial(low_resolution.convolution, convolve), low, x, kernel)
        return y, *back(g)

    arrays = low, x, kernel, g
    expected = both_loop(low, x, kernel), *both_gradients(*arrays)
    for own, other in zip(both(*(a.astype(np.float32) for a in arrays)), expected, strict=True):
        assert relative_error(own, other) < 1e-5
    with jax.enable_x64(True):
        for own, other in zip(both(*arrays), expected, strict=True):
            assert relative_error(own, other) < 1e-13


@pytest.mark.parametrize("size", [67, 60])
def test_conv2_of_the_net_against_numpy(size):
    model = create_model("original", 10, **SMALL)
    images = (60 * np.random.default_rng(1).standard_normal((2, size, size, 3))).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(images))["params"]
    params = reference.random_params(jax.tree.map(lambda leaf: leaf.shape, shapes), seed=0)
    apply = jax.jit(functools.partial(model.apply, capture=("pool1", "activation1", "conv2")))
    _, seen = apply({"params": params}, images)
    low = blur_loop(images.astype(np.float64))
    columns = np.split(np.asarray(seen["activation1"], np.float64), 2, axis=-1)
    expected = [
        both_loop(low, x, kernel.astype(np.float64)) + bias
        for x, kernel, bias in zip(columns, params["conv2"]["kernel"], params["conv2"]["bias"], strict=True)
    ]
    assert relative_error(seen["conv2"], np.concatenate(expected, axis=-1)) < 1e-5


def test_the_released_net_s_counts_by_hand():
    """layers-141.cfg, its two columns; of conv2, 75 weights of a filter read the image and 800 the column."""
    counted = summary.summarise(create_model("original", **RUN_141), 224)
    parameters = {layer["name"]: layer["parameters"] for layer in counted["layers"]}
    assert parameters == {
        "conv1": 2 * 32 * (11 * 11 * 3 + 1),
        "conv2": 2 * 128 * (75 + 800 + 1),
        "conv3": 2 * 192 * (9 * 256 + 1),
        "conv4": 2 * 192 * (9 * 192 + 1),
        "conv5": 2 * 128 * (9 * 192 + 1),
        "conv6": 2 * 128 * (9 * 256 + 1),
        "fc6": 2 * 2048 * (9216 + 1),
        "fc7": 2 * 2048 * (4096 + 1),
        "fc8": 1000 * (4096 + 1),
    }
    assert counted["total"]["parameters"] == 61_460_456
    conv2 = counted["layers"][1]
    assert conv2["multiply_accumulates"] == 27 * 27 * 256 * (75 + 800)
    assert conv2["input"] == "own column and blurred image"


def test_a_net_without_conv2_has_no_second_input_of_it():
    with pytest.raises(UserError, match=r"model\.low_resolution=True: .*removed_layers"):
        create_model("original", low_resolution=True, removed_layers=("conv2",))
