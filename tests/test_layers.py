"""Each operation and its gradient against float64 NumPy, window by window."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import layers
from tests import reference
from tests.reference import relative_error

LRN = {"k": 2.0, "alpha": 1e-4, "beta": 0.75, "size": 5}
MAP_NORM = {"k": 1.0, "alpha": 0.001 / 25, "beta": 0.75, "size": 5}

# (size, window, stride, padding): how many windows with ceil and without.
SIZES = {
    (224, 11, 4, 0): (55, 54),  # conv1 of the paper: the last window hangs over by 3
    (227, 11, 4, 0): (55, 55),
    (224, 11, 4, 2): (56, 55),  # torchvision pads by 2
    (55, 3, 2, 0): (27, 27),
    (56, 3, 2, 0): (28, 27),
    (27, 3, 2, 0): (13, 13),
    (13, 3, 2, 0): (6, 6),
    (54, 2, 2, 0): (27, 27),
    (55, 2, 2, 0): (28, 27),
    (27, 5, 1, 2): (27, 27),
    (13, 3, 1, 1): (13, 13),
    (3, 3, 2, 0): (1, 1),
    (4, 3, 2, 0): (2, 1),
}


@pytest.mark.parametrize(("axis", "counts"), SIZES.items())
def test_number_of_windows(axis, counts):
    size, window, stride, padding = axis
    for ceil, count in zip((True, False), counts, strict=True):
        own = layers.output_size(size, window=window, stride=stride, padding=padding, ceil=ceil)
        assert own == count == len(reference.starts(size, window, stride, padding, ceil))


def test_no_window_fits():
    assert layers.output_size(10, window=11, stride=4) == 0
    assert (
        layers.output_size(10, window=11, stride=4, padding=1) == 2
    )  # 12 places: one window and an overhang
    assert layers.output_size(10, window=11, stride=4, padding=1, ceil=False) == 1


# Shapes [B, H, W, I], kernel window and outputs, and how the windows lie.
CONVOLUTIONS = [
    ((1, 224, 224, 3), 11, 17, 4, 0, True),  # conv1: 55 x 55
    ((2, 27, 27, 6), 5, 18, 1, 2, True),
    ((2, 13, 13, 5), 3, 4, 1, 1, True),
    ((3, 17, 23, 2), 11, 3, 4, 0, True),  # overhang of 2 and of none
    ((3, 17, 23, 2), 11, 3, 4, 0, False),  # the last rows are seen by no window
    ((2, 16, 19, 3), 11, 4, 4, 2, True),
    ((2, 16, 19, 3), 11, 4, 4, 2, False),
    ((1, 99, 102, 3), 11, 17, 4, 2, True),
    ((1, 99, 102, 3), 11, 17, 4, 2, False),
    ((1, 106, 99, 3), 11, 17, 4, 0, False),  # two rows that no window sees
    ((1, 11, 11, 1), 11, 1, 4, 0, True),  # a single window
    ((2, 9, 8, 3), 3, 4, 1, 0, True),
    ((2, 9, 8, 3), 4, 5, 1, 1, True),  # an even window
    ((1, 40, 6, 17), 3, 4, 1, 3, True),
    ((2, 5, 6, 3), 3, 4, 1, 3, True),  # more padding than the window reaches: the gradient's is negative
]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("shape", "window", "outputs", "stride", "padding", "ceil"), CONVOLUTIONS)
def test_convolution_and_its_gradients(shape, window, outputs, stride, padding, ceil, device, monkeypatch):
    if device == "cuda":
        monkeypatch.setattr(jax.lax, "platform_dependent", as_on_nvidia)
    rng = np.random.default_rng(0)
    x = (100 * rng.standard_normal(shape)).astype(np.float32)
    kernel = rng.standard_normal((window, window, shape[-1], outputs)).astype(np.float32)
    size = {"stride": stride, "padding": padding, "ceil": ceil}
    expected = reference.convolution(x, kernel, np.zeros(outputs), **size)
    convolve = functools.partial(layers.convolution, **size)
    assert relative_error(jax.jit(convolve)(x, kernel), expected) < 1e-5

    # A convolution is linear in each argument: <g, conv(dx, k)> = <dx, gradient> for any direction dx.
    g = rng.standard_normal(expected.shape).astype(np.float32)

    def result_and_gradients(x, kernel, g):
        y, back = jax.vjp(convolve, x, kernel)
        return y, back(g)

    y, gradients = jax.jit(result_and_gradients)(x, kernel, g)
    assert relative_error(y, expected) < 1e-5
    for place, (own, gradient) in enumerate(zip((x, kernel), gradients, strict=True)):
        assert gradient.shape == own.shape
        for _ in range(3):
            direction = rng.standard_normal(own.shape)
            moved = (direction, kernel) if place == 0 else (x, direction)
            slope = np.sum(g * reference.convolution(*moved, np.zeros(outputs), **size))
            scale = np.linalg.norm(direction) * np.linalg.norm(gradient)
            assert np.sum(direction * np.asarray(gradient)) == pytest.approx(slope, abs=1e-6 * scale)


def as_on_nvidia(*arguments, default, cuda=None, **others):
    """What `lax.platform_dependent` chooses there; these ways run on any device."""
    return (cuda or default)(*arguments)


def test_conv1_on_nvidia_is_a_convolution_of_blocks():
    x, kernel = jnp.zeros((2, 224, 224, 3)), jnp.zeros((11, 11, 3, 96))
    traced = jax.jit(functools.partial(layers.convolution, stride=4)).trace(x, kernel)
    blocks = "(tensor<2x57x57x48xf32>, tensor<3x3x48x96xf32>) -> tensor<2x55x55x96xf32>"
    texts = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")}
    assert [name for name, text in texts.items() if blocks in text] == ["cuda"]


def test_gradient_of_a_bias_in_bfloat16_is_summed_in_float32():
    rng = np.random.default_rng(0)
    y, g = (jnp.asarray(rng.standard_normal((8, 55, 55, 3)), jnp.bfloat16) for _ in range(2))
    bias = jnp.asarray([0.1, -2.0, 1.0], jnp.float32)
    sums, back = jax.vjp(layers.add_bias, y, bias)
    assert sums.dtype == jnp.bfloat16
    np.testing.assert_array_equal(sums, (y + bias.astype(jnp.bfloat16)))
    y_gradient, bias_gradient = back(g)
    np.testing.assert_array_equal(y_gradient, g)
    assert bias_gradient.dtype == jnp.float32
    expected = np.asarray(g, np.float64).sum((0, 1, 2))
    np.testing.assert_allclose(bias_gradient, expected, rtol=1e-5)


def test_convolution_does_not_flip_its_kernel():
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, 1, 2, 0] = 1.0
    kernel = np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1)
    # Window (i, j) meets the one at (1 - i, 2 - j) of its own places.
    assert layers.convolution(x, kernel)[0, :, :, 0].tolist() == [[5.0, 4.0], [2.0, 1.0]]


@functools.partial(jax.jit, static_argnums=0)
def value_and_pullback(f, x, g):
    """`f(x)` and the gradient of <g, f(x)>."""
    y, pullback = jax.vjp(f, x)
    return y, pullback(g)[0]


def complex_step(f, x, g):
    """Gradient of <g, f(x)> to the last digit of float64: Im f(x + ih) / h has no difference to cancel."""
    out = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        moved = x.astype(np.complex128)
        moved[place] += 1e-100j
        out[place] = np.sum(g * f(moved).imag) / 1e-100
    return out


NORMS = {
    "lrn": (layers.local_response_norm, reference.local_response_norm, LRN),
    "lrn of run 145": (layers.local_response_norm, reference.local_response_norm, {**LRN, "alpha": 2e-5}),
    "lrn, strong, another power": (
        layers.local_response_norm,
        reference.local_response_norm,
        {"k": 1.5, "alpha": 0.02, "beta": 0.6, "size": 3},
    ),
    "map_norm": (layers.within_map_norm, reference.within_map_norm, MAP_NORM),
    "map_norm, strong": (
        layers.within_map_norm,
        reference.within_map_norm,
        {"k": 1.0, "alpha": 0.01, "beta": 0.75, "size": 3},
    ),
}


# Also fewer places than the window has.
@pytest.mark.parametrize("shape", [(2, 7, 5, 9), (1, 1, 1, 1), (1, 3, 2, 4)])
@pytest.mark.parametrize("name", NORMS)
def test_norm_and_its_gradient(name, shape):
    own, naive, options = NORMS[name]
    own, naive = functools.partial(own, **options), functools.partial(naive, **options)
    rng = np.random.default_rng(1)
    for scale in (1e-3, 1.0, 100.0, 1e4):
        x = (scale * rng.standard_normal(shape)).astype(np.float32)
        g = rng.standard_normal(shape).astype(np.float32)
        x.reshape(-1)[1::3] = 0.0  # ReLU makes many
        y, gradient = value_and_pullback(own, x, g)
        np.testing.assert_allclose(y, naive(x), rtol=1e-5)
        assert relative_error(gradient, complex_step(naive, x, g)) < 1e-5


def test_norms_at_the_size_of_the_net():
    x = (100 * np.random.default_rng(2).standard_normal((2, 27, 27, 48))).astype(np.float32)
    for own, naive, options in (NORMS["lrn"], NORMS["map_norm"]):
        y = jax.jit(functools.partial(own, **options))(x)
        np.testing.assert_allclose(y, naive(x, **options), rtol=1e-5)


def test_lrn_by_hand():
    """k = 2, n = 5, alpha = 1e-4: all ones times 100 give 100 / (2 + terms) ** 0.75 with 3, 4 or 5 terms."""
    x = jnp.full((1, 1, 1, 6), 100.0)
    terms = np.array([3, 4, 5, 5, 4, 3])
    np.testing.assert_allclose(
        layers.local_response_norm(x, **LRN)[0, 0, 0], 100 / (2.0 + terms) ** 0.75, rtol=1e-6
    )


def test_norms_of_zeros_are_zeros_with_the_gradient_of_a_plain_division():
    x = jnp.zeros((1, 4, 4, 8))
    for own, options in ((layers.local_response_norm, LRN), (layers.within_map_norm, MAP_NORM)):
        y, pullback = jax.vjp(functools.partial(own, **options), x)
        assert not np.any(y)
        np.testing.assert_allclose(pullback(jnp.ones_like(x))[0], options["k"] ** -0.75, rtol=1e-6)


POOLS = [
    ((2, 55, 55, 3), 3, 2, True),
    ((2, 13, 13, 4), 3, 2, True),
    ((2, 14, 9, 3), 3, 2, True),  # 14 rows: the last window hangs over by one
    ((2, 14, 9, 3), 3, 2, False),  # 14 rows: no window sees the last
    ((2, 9, 8, 3), 2, 2, True),
    ((2, 9, 8, 3), 2, 2, False),
    ((1, 3, 4, 2), 3, 2, True),
    ((1, 3, 3, 1), 3, 2, True),
    ((2, 10, 11, 3), 3, 1, True),
    ((1, 12, 13, 2), 4, 3, True),
    ((2, 11, 9, 2), 4, 2, False),
    ((2, 11, 8, 2), 2, 3, True),  # inputs between the windows
]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("ties", ["first", "all"])
@pytest.mark.parametrize(("shape", "window", "stride", "ceil"), POOLS)
def test_max_pool_and_its_gradient(shape, window, stride, ceil, ties, device, monkeypatch):
    if device == "cuda":
        monkeypatch.setattr(jax.lax, "platform_dependent", as_on_nvidia)
    rng = np.random.default_rng(3)
    pool = functools.partial(layers.max_pool, window=window, stride=stride, ceil=ceil, ties=ties)
    for values in (
        rng.standard_normal(shape),
        rng.integers(0, 3, shape),  # most windows hold their maximum several times
        np.zeros(shape),
        -1.0 - rng.random(shape),  # an overhang that counted as 0 would win
        1e30 * rng.standard_normal(shape),
    ):
        x = values.astype(np.float32)
        expected = reference.max_pool(x, window, stride, ceil)
        # Integers: their sums are exact, which shows the place each part went to.
        g = rng.integers(1, 100, expected.shape).astype(np.float32)
        y, gradient = value_and_pullback(pool, x, g)
        np.testing.assert_array_equal(y, expected)
        if ties == "first":
            expected = reference.max_pool_gradient(x, g, window, stride, ceil)
        else:
            expected = reference.local_max_undo(x, g, expected, window, stride)
        np.testing.assert_array_equal(gradient, expected)


def test_ties_send_the_gradient_to_the_first_maximum_or_to_all():
    x = jnp.asarray([[0.0, 5.0, 5.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).reshape(1, 3, 3, 1)
    for ties, expected in (
        ("first", [[0.0, 7.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        ("all", [[0.0, 7.0, 7.0], [7.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    ):
        gradient = jax.grad(lambda v, ties=ties: 7.0 * layers.max_pool(v, 3, 2, ties=ties).sum())(x)
        assert gradient[0, :, :, 0].tolist() == expected


def test_random_shapes():
    """Odd shapes and scales, drawn with a seed."""
    rng = np.random.default_rng(4)
    for _ in range(5):
        shape = (int(rng.integers(1, 3)), *(int(n) for n in rng.integers(3, 16, 2)), int(rng.integers(1, 12)))
        x = (10.0 ** rng.uniform(-3, 3) * rng.standard_normal(shape)).astype(np.float32)
        pooled = jax.jit(layers.max_pool, static_argnums=(1, 2))(x, 3, 2)
        np.testing.assert_array_equal(pooled, reference.max_pool(x, 3, 2))
        for own, naive, options in (NORMS["lrn"], NORMS["map_norm"]):
            y = jax.jit(functools.partial(own, **options))(x)
            np.testing.assert_allclose(y, naive(x, **options), rtol=1e-5)
