"""Fast gradients and products on CPUs against float64 NumPy, and the library that XLA chooses for them.

`tests/test_layers.py` checks the numbers of each operation and its gradient.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import layers
from alexnet_jax.kernels import cpu
from tests import reference
from tests.reference import relative_error


@pytest.mark.parametrize("images", [1, 2, 3, 7])
def test_kernel_gradients_by_groups_of_images(images, monkeypatch):
    """Seven images in groups; the last group is not full."""
    shape, size = (7, 17, 23, 2), {"stride": 4, "padding": 1}
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal(shape), rng.standard_normal((11, 11, 2, 3))
    y = reference.convolution(x, kernel, np.zeros(3), **size, ceil=True)
    g = rng.standard_normal(y.shape)
    monkeypatch.setattr(cpu, "CACHED_BYTES", images * 4 * (x[0].size + g[0].size))
    convolve = functools.partial(layers.convolution, **size)
    x, g = x.astype(np.float32), g.astype(np.float32)
    gradient = jax.jit(lambda kernel: jax.vjp(convolve, x, kernel)[1](g)[1])(kernel.astype(np.float32))
    expected = np.zeros(kernel.shape)
    for place in np.ndindex(*kernel.shape):  # linear in the kernel: one number at a time
        alone = np.zeros(kernel.shape)
        alone[place] = 1
        expected[place] = np.sum(g * reference.convolution(x, alone, np.zeros(3), **size, ceil=True))
    assert relative_error(gradient, expected) < 1e-5


@pytest.mark.parametrize(("batch", "image_bytes", "images"), [
    (128, 1_764_160, 2),  # conv1 of the paper's net
    (128, 505_440, 8),
    (32, 1_764_160, 2),
    (7, 2**20, 4),  # a prime number of images: the last group is padded
    (4, 2**30, 1),
    (4, 1, 4),
])  # fmt: skip
def test_groups_of_images_fit_the_cache_and_are_full(batch, image_bytes, images):
    assert cpu.images_at_once(batch, image_bytes) == images


def test_gradients_in_a_loop_are_those_outside():
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal((6, 9, 8, n)).astype(np.float32) for n in (3, 4))
    kernel = rng.standard_normal((5, 5, 3, 4)).astype(np.float32)

    def gradients(x, g):
        return jax.vjp(functools.partial(layers.convolution, padding=2), x, kernel)[1](g)

    def part(total, both):
        x_gradient, kernel_gradient = gradients(*both)
        return total + kernel_gradient, x_gradient

    def looped(x, g):
        return jax.lax.scan(
            part, jnp.zeros(kernel.shape), (x.reshape(3, 2, 9, 8, 3), g.reshape(3, 2, 9, 8, 4))
        )

    kernel_gradient, x_gradient = jax.jit(looped)(x, g)
    plain = jax.vjp(lambda x, k: reference_convolution(x, k, 2), x, kernel)[1](g)
    assert relative_error(x_gradient.reshape(x.shape), plain[0]) < 1e-5
    assert relative_error(kernel_gradient, plain[1]) < 1e-5


def reference_convolution(x, kernel, padding):
    edges = ((padding, padding),) * 2
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), edges, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def compiled_text(function, *shapes: tuple[int, ...]) -> str:
    return jax.jit(function).lower(*(np.ones(shape, np.float32) for shape in shapes)).compile().as_text()


@pytest.mark.parametrize(("stride", "padding"), [(4, 0), (4, 2)], ids=["paper", "torchvision"])
def test_conv1_runs_on_eigen_in_a_training_step(stride, padding):
    shapes = (2, 224, 224, 3), (11, 11, 3, 64)
    convolve = functools.partial(layers.convolution, stride=stride, padding=padding)
    if "ynn" not in compiled_text(convolve, *shapes):
        pytest.skip(f"jax {jax.__version__} has no YNNPACK to choose instead")
    text = compiled_text(lambda x, kernel: jax.vjp(convolve, x, kernel)[0], *shapes)
    assert "convolution(" in text and "ynn" not in text


def test_the_gradient_of_few_inputs_runs_on_eigen():
    """conv2's 48 inputs; with 128 the same gradient runs on YNNPACK."""

    def input_gradient(x, kernel, g):
        return jax.vjp(functools.partial(layers.convolution, padding=2), x, kernel)[1](g)[0]

    def text(inputs):
        return compiled_text(input_gradient, (2, 27, 27, inputs), (5, 5, inputs, 128), (2, 27, 27, 128))

    if "ynn" not in text(128):
        pytest.skip(f"jax {jax.__version__} has no YNNPACK to choose instead")
    assert "convolution(" in text(48) and "ynn" not in text(48)


def test_gradients_in_half_precision_are_those_in_float32_rounded():
    rng = np.random.default_rng(0)
    half = [
        jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
        for shape in ((4, 9, 8, 3), (3, 3, 3, 4), (4, 9, 8, 4))
    ]

    def gradients(x, kernel, g):
        return jax.vjp(functools.partial(layers.convolution, padding=1), x, kernel)[1](g)

    full = jax.jit(gradients)(*(a.astype(jnp.float32) for a in half))
    for own, expected in zip(jax.jit(gradients)(*half), full, strict=True):
        assert own.dtype == jnp.bfloat16
        assert relative_error(np.asarray(own, np.float32), expected) < 2**-7


@pytest.mark.parametrize("columns", [1, 2])
def test_fully_connected_layers_and_their_gradients(columns):
    rng = np.random.default_rng(0)
    x, kernel, g = (rng.standard_normal((columns, *shape)) for shape in ((5, 7), (7, 3), (5, 3)))

    def both(x, kernel, g):
        y, pullback = jax.vjp(lambda x, kernel: layers.products(x, kernel, jnp.float32), x, kernel)
        return y, *pullback(g)

    expected = x @ kernel, g @ kernel.swapaxes(1, 2), x.swapaxes(1, 2) @ g
    for own, other in zip(
        jax.jit(both)(*(a.astype(np.float32) for a in (x, kernel, g))), expected, strict=True
    ):
        assert relative_error(own, other) < 1e-6
    half = [jnp.asarray(a, jnp.bfloat16) for a in (x, kernel)]
    for own, other in zip(jax.jit(both)(*half, jnp.asarray(g, jnp.float32)), expected, strict=True):
        assert relative_error(np.asarray(own, np.float32), other) < 2**-6
    x_gradient, kernel_gradient = jax.jit(both)(*half, jnp.asarray(g, jnp.float32))[1:]
    assert x_gradient.dtype == kernel_gradient.dtype == jnp.bfloat16
