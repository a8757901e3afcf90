"""LPIPS against the `lpips` package's own answers, recorded by tests/fixtures/record_lpips.py."""

import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import alexnet_jax
from alexnet_jax import UserError, perceptual
from tests import torch_pickle
from tests.fixtures import lpips_pairs, seeded

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def recorded():
    with np.load(FIXTURES / "lpips.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The seeded convolutions and linear weights, as files."""
    folder = tmp_path_factory.mktemp("weights")
    state = seeded.state_dict(seed=1, names=tuple(seeded.TORCHVISION)[:5])
    safetensors.numpy.save_file(state, folder / "convolutions.safetensors")
    linear = {f"lin{i}.model.1.weight": w[None, :, None, None] for i, w in enumerate(lpips_pairs.linear())}
    torch_pickle.write(folder / "alex.pth", linear)
    return folder / "convolutions.safetensors", folder / "alex.pth"


@pytest.fixture(scope="module")
def distance(files):
    return perceptual.load(*files)


def check(distance, pairs, recorded, kind):
    expected = recorded[f"{kind}_by_layer"]
    for (a, b), by_layer in zip(pairs, expected, strict=True):
        a, b = a[None], b[None]
        np.testing.assert_allclose(distance.by_layer(a, b)[0], by_layer, atol=1e-5, rtol=0)
        np.testing.assert_allclose(distance(a, b)[0], by_layer.sum(dtype=np.float64), atol=1e-5, rtol=0)
    maps = np.ravel(distance.maps(a, b))
    np.testing.assert_allclose(
        maps[seeded.places("map", maps.size)], recorded[f"{kind}_map"], atol=1e-5, rtol=0
    )
    gradient = np.ravel(jax.grad(lambda a: distance(a, b)[0])(a))
    wanted = recorded[f"{kind}_gradient"]
    found = gradient[seeded.places("gradient", gradient.size)]
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)


def test_seeded_weights_agree_with_lpips(distance, recorded):
    check(distance, lpips_pairs.noise(), recorded, "seeded")


def test_the_published_weights_agree_with_lpips_on_photographs(real_data, recorded):
    distance = perceptual.load(real_data / "torchvision_alexnet_features.npz")
    check(distance, lpips_pairs.photographs(real_data), recorded, "real")


def test_the_linear_weights_are_the_published_ones(files):
    """The sha256 of `weights/v0.1/alex.pth` in lpips 0.1.4."""
    digest = hashlib.sha256(perceptual.LINEAR.read_bytes()).hexdigest()
    assert digest == "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"
    loaded = alexnet_jax.perceptual.load(files[0])
    assert list(map(len, loaded.linear)) == [64, 192, 384, 256, 256]
    assert min(float(weight.min()) for weight in loaded.linear) == 0


def test_a_batch_is_its_pairs(distance):
    (a, b), _ = lpips_pairs.noise()
    together = distance(jnp.stack([a, a, b]), jnp.stack([b, a, a]))
    np.testing.assert_allclose(together, [distance(a[None], b[None])[0], 0, together[0]], atol=1e-6)
    assert together[0] > 1


def test_the_gradient_is_finite_where_no_relu_is_on(distance):
    """PyTorch's derivative of the root at 0 makes it NaN."""
    no_bias = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if path[-1].key == "bias" else x, distance.params
    )
    silent = distance.replace(params=no_bias)
    zero = jnp.broadcast_to(perceptual._SHIFT, (1, 40, 40, 3))  # 0 once it is scaled
    other = jnp.asarray(lpips_pairs.noise()[0][0][None, :40, :40])
    value, gradient = jax.value_and_grad(lambda a: silent(a, other)[0])(zero)
    assert value > 0
    np.testing.assert_array_equal(gradient, np.zeros_like(zero))


def test_it_is_a_loss_inside_a_jitted_step(distance):
    """Gradient descent from noise towards an image."""
    (start, target), _ = lpips_pairs.noise()
    start, target = start[None], target[None]

    @jax.jit
    def step(x):
        value, gradient = jax.value_and_grad(lambda x: distance(x, target)[0])(x)
        return value, x - 0.05 * gradient / jnp.max(jnp.abs(gradient))

    values, x = [], start
    for _ in range(5):
        value, x = step(x)
        values.append(float(value))
    assert values == sorted(values, reverse=True) and values[-1] < 0.9 * values[0]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((1, 64, 64, 3), (2, 64, 64, 3), r"others: float32\[2, 64, 64, 3\], but both must be floats"),
        ((64, 64, 3), (64, 64, 3), r"images: float32\[64, 64, 3\], but both must be floats \[B, H, W, 3\]"),
        ((1, 64, 64, 4), (1, 64, 64, 4), r"images: float32\[1, 64, 64, 4\], but both must be floats"),
        ((1, 30, 64, 3), (1, 30, 64, 3), r"the images of 30 x 64 are too small .* at least 31 x 31"),
    ],
)
def test_wrong_shapes(distance, a, b, message):
    with pytest.raises(UserError, match=message):
        distance(np.zeros(a, np.float32), np.zeros(b, np.float32))


def test_pixels_are_refused_with_the_way_to_scale_them(distance):
    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    with pytest.raises(UserError, match=r"images: uint8\[1, 64, 64, 3\].*pixels / 127.5 - 1"):
        distance(pixels, pixels)
    grey, white = np.zeros((1, 64, 64, 3), np.float32), np.full((1, 64, 64, 3), 255, np.float32)
    with pytest.raises(UserError, match=r"others: numbers up to 255, but .*pixels / 127.5 - 1"):
        distance(grey, jnp.asarray(white))
    with pytest.raises(UserError, match="images: numbers up to 255, but"):
        jax.grad(lambda others: distance.maps(white, others).sum())(grey)
    assert distance(grey, 1.2 * (grey + 1)) > 0  # a little beyond 1, as a net that draws images may be


def test_paths_are_refused_in_a_line(distance):
    with pytest.raises(UserError, match=r"images: a str, but both must be floats \[B, H, W, 3\]"):
        distance("a.jpg", "b.jpg")


def test_wrong_files(files, tmp_path):
    with pytest.raises(UserError, match=r"nowhere.pth: no such file; give a file like .*alex.pth"):
        perceptual.load(files[0], "nowhere.pth")
    (tmp_path / "cut.pth").write_bytes(perceptual.LINEAR.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut.pth: a damaged or truncated"):
        perceptual.load(files[0], tmp_path / "cut.pth")
    torch_pickle.write(tmp_path / "other.pth", {"lin0.model.1.weight": np.ones((1, 64, 1, 1), np.float32)})
    with pytest.raises(UserError, match=r"other.pth: no lin1.model.1.weight in it"):
        perceptual.load(files[0], tmp_path / "other.pth")
    vgg = {
        f"lin{i}.model.1.weight": np.ones((1, width, 1, 1), np.float32)
        for i, width in enumerate((64, 128, 256, 512, 512))
    }
    torch_pickle.write(tmp_path / "vgg.pth", vgg)
    with pytest.raises(
        UserError, match=r"has \(64, 192, 384, 256, 256\) filters, but .*vgg.pth needs \(64, 128"
    ):
        perceptual.load(files[0], tmp_path / "vgg.pth")
