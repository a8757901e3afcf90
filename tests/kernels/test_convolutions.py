"""Convolutions and products, with their gradients, against float64 NumPy; the library that XLA chooses.

`tests/test_layers.py` checks the numbers of each operation and its gradient.
"""

import argparse
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import columns, layers
from alexnet_jax.kernels import blocks
from alexnet_jax.variants import create_model
from benchmarks import ours
from tests import reference
from tests.reference import relative_error


@pytest.fixture(scope="module")
def by_hand():
    """Of a convolution: stride and padding, inputs, kernel, the outputs' gradient and the kernel's."""
    shape, size = (7, 17, 23, 2), {"stride": 4, "padding": 1}
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal(shape), rng.standard_normal((11, 11, 2, 3))
    y = reference.convolution(x, kernel, np.zeros(3), **size, ceil=True)
    g = rng.standard_normal(y.shape)
    gradient = np.zeros(kernel.shape)
    for place in np.ndindex(*kernel.shape):  # linear in the kernel: one number at a time
        alone = np.zeros(kernel.shape)
        alone[place] = 1
        gradient[place] = np.sum(g * reference.convolution(x, alone, np.zeros(3), **size, ceil=True))
    return size, x, kernel, g, gradient


def test_conv1s_kernel_gradient(by_hand):
    size, x, kernel, g, expected = by_hand
    convolve = functools.partial(layers.convolution, **size)
    x, g = x.astype(np.float32), g.astype(np.float32)
    gradient = jax.jit(lambda kernel: jax.vjp(convolve, x, kernel)[1](g)[1])(kernel.astype(np.float32))
    assert relative_error(gradient, expected) < 1e-5


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


@pytest.mark.parametrize("filters", [17, 24, 32, 47])
@pytest.mark.parametrize(("side", "padding", "ceil"), [(56, 0, True), (50, 2, False), (112, 0, True)])
def test_narrow_conv1_is_xla_s_convolution(filters, side, padding, ceil):
    rng = np.random.default_rng(filters)
    x = rng.standard_normal((2, side, side, 3)).astype(np.float32)
    kernel = rng.standard_normal((11, 11, 3, filters)).astype(np.float32)
    convolve = functools.partial(layers.convolution, stride=4, padding=padding, ceil=ceil)
    size = layers.output_size(side, window=11, stride=4, padding=padding, ceil=ceil)
    edge = (padding, (size - 1) * 4 + 11 - side - padding)

    def plain(x, kernel):
        return blocks.xla_convolution(x, kernel, (4, 4), (edge, edge))

    y = jax.jit(convolve)(x, kernel)
    assert y.shape == (2, size, size, filters)
    wide = [a.astype(np.float64) for a in (x, kernel)]
    expected = reference.convolution(*wide, np.zeros(filters), stride=4, padding=padding, ceil=ceil)
    assert relative_error(y, expected) < 1e-5
    g = rng.standard_normal(y.shape).astype(np.float32)

    def with_gradients(function):
        return jax.jit(lambda x, k, g: (jax.vjp(function, x, k)[0], *jax.vjp(function, x, k)[1](g)))(
            x, kernel, g
        )

    for own, other in zip(with_gradients(convolve), with_gradients(plain), strict=True):
        assert relative_error(own, other) < 1e-5
    with jax.enable_x64(True):
        doubles = [jnp.asarray(a, jnp.float64) for a in (x, kernel)]
        assert relative_error(jax.jit(convolve)(*doubles), expected) < 1e-13


def test_narrow_conv1_in_half_precision_accumulates_in_float32():
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in ((2, 56, 56, 3), (11, 11, 3, 24))
    )
    convolve = functools.partial(layers.convolution, stride=4)
    y = jax.jit(convolve)(x, kernel)
    assert y.dtype == jnp.bfloat16
    full = jax.jit(convolve)(x.astype(jnp.float32), kernel.astype(jnp.float32))
    assert relative_error(np.asarray(y, np.float32), full) < 2**-8


def with_convolutions(text: str, calls: str) -> list[str]:
    """Computations of a compiled program that have a convolution and that lines like `calls` call."""
    bodies = {body[1]: body[0] for body in re.finditer(r"^%([\w.-]+) \(.*?^}", text, re.M | re.S)}
    return [name for name in re.findall(calls, text) if " convolution(" in bodies[name]]


def program_of(work: str, micro_batches: int = 1, devices: int = 1) -> str:
    given = argparse.Namespace(work=work, batch=2 * devices, image_size=64, micro_batches=micro_batches)
    net = {"widths": (24, 32, 48, 32, 32, 32), "fc_widths": (64, 64), "num_classes": 10}
    mesh = columns.make_mesh(devices=jax.devices()[:devices])
    program, arguments = ours.make_program(given, create_model("paper", **net), mesh)
    text = program.lower(*arguments).compile().as_text()
    assert " convolution(" in text
    return text


@pytest.mark.parametrize("work", ["train", "forward"])
def test_no_convolution_of_the_net_runs_on_ynnpack(work):
    """Neither of a training step, with all gradients, nor of a forward pass; in any width."""
    on_ynnpack = r"%\S*ynn_fusion\S* = .*calls=%([\w.-]+)"
    convolve = functools.partial(layers.convolution, padding=1)
    if not with_convolutions(compiled_text(convolve, (2, 13, 13, 64), (3, 3, 64, 128)), on_ynnpack):
        pytest.skip(f"jax {jax.__version__} has no YNNPACK to choose instead")
    assert with_convolutions(program_of(work), on_ynnpack) == []


def test_no_convolution_of_a_step_is_in_a_loop():
    """With micro-batches, too: on a CPU the gradients of convolutions take a hundred times as long there."""
    in_a_loop = r" while\(.*body=%([\w.-]+)"

    def looped(x, kernel):
        def add(total, image):
            return total + jax.lax.conv(image, kernel, (1, 1), "SAME").sum(), None

        return jax.lax.scan(add, 0.0, x)

    assert with_convolutions(compiled_text(looped, (3, 2, 4, 9, 9), (8, 4, 3, 3)), in_a_loop)
    assert with_convolutions(program_of("train", micro_batches=2), in_a_loop) == []


@pytest.mark.parametrize("devices", [1, 2])
def test_every_convolution_of_a_step_has_the_order_of_axes_that_xla_is_fast_in(devices):
    """On several devices, too: XLA puts axes into that order, but not inside a choice made at run time."""
    text = program_of("train", devices=devices)
    assert set(re.findall(r" convolution\(.*dim_labels=([\w>-]+)", text)) == {"b01f_01io->b01f"}
    assert " conditional(" not in text


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
