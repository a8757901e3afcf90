"""What the device does to an image, against NumPy given the same draws, and the statistics of the draws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import augment
from alexnet_jax import config as configs
from alexnet_jax.data.statistics import ILSVRC
from configs import default

STORED, SIZE = 40, 33  # a margin of 7, odd, so that the centre is not symmetric
MEAN_IMAGE = np.random.default_rng(9).uniform(90, 130, (STORED, STORED, 3)).astype(np.float32)
COLOURS = {"sqrt_eigenvalues": ILSVRC.pca_sqrt_eigenvalues, "eigenvectors": ILSVRC.pca_eigenvectors}


def images_of(count, size=STORED):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def augment_of(*, mean=MEAN_IMAGE, std=1.0, mean_crop="centre", until=None, **keys):
    """The default config's `Augment` with these keys of its section."""
    section = dataclasses.replace(configs.resolve(default.get_config()).augment, **keys)
    return augment.Augment(
        section, SIZE, jnp.asarray(mean), std=std, mean_crop=mean_crop, colour_until_step=until, **COLOURS
    )


def release_2012(image, top, left, flip, mean):
    """convdata_jpeg.py: `__trim_borders` crops and mirrors (:243-246), then `subtract_mean` takes the border
    off the mean image (:95) and that one array off every picture (:209-211); here [H, W, C] and float64."""
    border = (STORED - SIZE) // 2
    pic = image[top : top + SIZE, left : left + SIZE].astype(np.float64)
    if flip:
        pic = pic[:, ::-1]
    return pic - mean[border : border + SIZE, border : border + SIZE]


def caffe_transform(datum, h_off, w_off, do_mirror, mean):
    """data_transformer.cpp:98-115: pixel by pixel, the mean under the datum's own pixel."""
    top = np.empty((SIZE, SIZE, 3))
    for h in range(SIZE):
        for w in range(SIZE):
            to = SIZE - 1 - w if do_mirror else w
            top[h, to] = datum[h_off + h, w_off + w].astype(np.float64) - mean[h_off + h, w_off + w]
    return top


RULES = {"centre": release_2012, "same": caffe_transform}


@functools.cache
def views_of(mean="image_mean", **options):
    means = {"colour_mean": ILSVRC.mean_colour, "image_mean": MEAN_IMAGE}
    return jax.jit(functools.partial(augment_of(mean=means[mean], **options), step=jnp.int32(7)))


def drawn(key, ids, run_length=1, **options):
    """Offsets and flips that `Augment` draws from `key`."""
    view_key, _ = jax.random.split(key)
    offsets, flips = augment.random_views(
        view_key, jnp.asarray(ids) // run_length, STORED - SIZE, **{"crop": True, "mirror": True, **options}
    )
    return np.asarray(offsets), np.asarray(flips)


@pytest.mark.parametrize("run_length", [1, 4])
@pytest.mark.parametrize(("crop", "mirror"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("mean", ["centre", "same", "colour"])
def test_crop_mirror_and_mean(mean, crop, mirror, run_length):
    key, images, ids = jax.random.key(3), images_of(16), np.arange(16)
    means = {"mean": "colour_mean"} if mean == "colour" else {"mean_crop": mean}
    views = views_of(**means, crop=crop, mirror=mirror, run_length=run_length, colour="none")(
        images, key, ids
    )
    offsets, flips = drawn(key, ids, run_length, crop=crop, mirror=mirror)
    image_mean = np.broadcast_to(ILSVRC.mean_colour, MEAN_IMAGE.shape) if mean == "colour" else MEAN_IMAGE
    rule = RULES.get(mean, release_2012)
    assert views.shape == (16, SIZE, SIZE, 3)
    assert views.dtype == jnp.float32
    for i in range(16):
        expected = rule(images[i], *offsets[i], flips[i], image_mean)
        np.testing.assert_allclose(views[i], expected, atol=1e-4)
    if crop:
        assert len(np.unique(offsets, axis=0)) > 2
    else:
        assert np.all(offsets == 3)
    assert set(flips.tolist()) == ({True, False} if mirror else {False})


def test_offsets_are_uniform_over_the_whole_margin():
    """0 to 32 inclusive for 256 and 224: 33 places on each axis, 1089 together; chi-square within 5 sigma."""
    count = 33 * 33 * 40
    offsets, flips = augment.random_views(jax.random.key(0), jnp.arange(count), 32, crop=True, mirror=True)
    places = np.asarray(offsets[:, 0]) * 33 + np.asarray(offsets[:, 1])
    assert (offsets.min(), offsets.max()) == (0, 32)
    seen = np.bincount(places, minlength=33 * 33)
    chi_square = np.sum((seen - 40.0) ** 2 / 40.0)
    assert abs(chi_square - 1088) < 5 * np.sqrt(2 * 1088)
    assert abs(np.mean(flips) - 0.5) < 5 * 0.5 / np.sqrt(count)
    # Flips do not depend on offsets.
    assert abs(np.corrcoef(flips, offsets[:, 0])[0, 1]) < 5 / np.sqrt(count)


def test_a_run_of_32_shares_crop_and_flip_but_not_colour():
    ids = np.arange(128)
    offsets, flips = drawn(jax.random.key(1), ids, run_length=32)
    views = np.concatenate([offsets, flips[:, None]], axis=1).reshape(4, 32, 3)
    assert np.all(views == views[:, :1])
    assert len(np.unique(views[:, 0], axis=0)) == 4
    # The same picture in all places: only the colour still differs.
    images = np.broadcast_to(images_of(1), (128, STORED, STORED, 3))
    out = np.asarray(views_of(run_length=32, colour="original")(images, jax.random.key(1), ids))
    first, second = out[0], out[1]
    difference = first - second
    np.testing.assert_allclose(difference, np.broadcast_to(difference[0, 0], difference.shape), atol=1e-4)
    assert np.abs(difference).min() > 0.01


@pytest.mark.parametrize(
    ("formula", "scales"),
    [
        ("original", [19.7208, 37.0939, 121.7801]),
        ("paper", [19.7208**2 / 255, 37.0939**2 / 255, 121.7801**2 / 255]),
    ],
)
def test_colour_shift_has_the_covariance_of_the_formula(formula, scales):
    """E [s s^T] = P diag((0.1 * scale_i)^2) P^T, with the components p_i as columns of P."""
    count = 200_000
    shifts = np.asarray(
        augment.colour_shift(jax.random.key(5), jnp.arange(count), formula=formula, **COLOURS), np.float64
    )
    components = np.array(
        [[0.41796, -0.71258, -0.56351], [-0.81698, -0.02354, -0.57618], [0.39731, 0.70120, -0.59200]]
    )
    # Along the components the shifts are independent normal draws: each variance within 5 standard errors.
    along = shifts @ np.linalg.inv(components).T / (0.1 * np.array(scales))
    np.testing.assert_allclose(along.mean(axis=0), 0, atol=5 / np.sqrt(count))
    np.testing.assert_allclose(np.cov(along.T), np.eye(3), atol=5 * np.sqrt(2 / count))
    assert np.mean(along**4, axis=0) == pytest.approx(3.0, abs=5 * np.sqrt(96 / count))
    expected = components @ np.diag((0.1 * np.array(scales)) ** 2) @ components.T
    np.testing.assert_allclose(np.cov(shifts.T), expected, atol=0.02 * expected.max())


def test_colour_shift_moves_red_green_and_blue_of_an_image_alike():
    """The first component alone has red and blue against green: rows of the eigenvectors are R, G, B."""
    shift = augment.colour_shift(
        jax.random.key(0),
        jnp.arange(50),
        jnp.asarray([10.0, 0.0, 0.0]),
        jnp.asarray(ILSVRC.pca_eigenvectors),
        formula="original",
    )
    np.testing.assert_allclose(shift[:, 1] / shift[:, 0], -0.81698 / 0.41796, rtol=1e-5)
    np.testing.assert_allclose(shift[:, 2] / shift[:, 0], 0.39731 / 0.41796, rtol=1e-5)


def test_colour_in_the_view():
    """`paper` adds the shift; `original` adds its own and divides by 1.1; off gives the plain view."""
    key, images, ids = jax.random.key(8), images_of(6), np.arange(6)
    plain = np.asarray(views_of(colour="none")(images, key, ids))
    _, colour_key = jax.random.split(key)
    for formula, divisor in (("paper", 1.0), ("original", 1.1)):
        shift = np.asarray(augment.colour_shift(colour_key, jnp.asarray(ids), formula=formula, **COLOURS))
        for until in (None, 8):  # the step is 7
            on = views_of(colour=formula, until=until)(images, key, ids)
            np.testing.assert_allclose(on, (plain + shift[:, None, None, :]) / divisor, atol=1e-3)
        np.testing.assert_array_equal(views_of(colour=formula, until=7)(images, key, ids), plain)


@pytest.mark.parametrize("run_length", [1, 3])
def test_views_do_not_depend_on_how_the_batch_is_split(run_length):
    key, images, ids = jax.random.key(2), images_of(12), np.arange(12)
    views = views_of(run_length=run_length)
    whole = np.asarray(views(images, key, ids))
    for place in (0, 4, 8):
        part = views(images[place : place + 4], key, ids[place : place + 4])
        np.testing.assert_allclose(part, whole[place : place + 4], atol=1e-4)  # the last bits of the colour
    order = np.random.default_rng(1).permutation(12)
    np.testing.assert_allclose(views(images[order], key, ids[order]), whole[order], atol=1e-4)
    assert np.abs(views(images, jax.random.key(3), ids) - whole).max() > 10  # the key matters


def position_image(size):
    """Each pixel says where it is: red its row, green its column."""
    rows, cols = np.mgrid[:size, :size]
    return np.stack([rows, cols, np.zeros_like(rows)], axis=-1).astype(np.uint8)


def test_ten_views_of_256():
    views = augment.views(position_image(256)[None], 10, mean=jnp.zeros(3), size=224)
    assert views.shape == (10, 1, 224, 224, 3)
    for i, (top, left) in enumerate([(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]):
        for view, cols in ((views[i, 0], np.arange(224)), (views[i + 5, 0], np.arange(224)[::-1])):
            np.testing.assert_array_equal(
                view[:, :, 0], np.broadcast_to(top + np.arange(224)[:, None], (224, 224))
            )
            np.testing.assert_array_equal(view[:, :, 1], np.broadcast_to(left + cols, (224, 224)))


@pytest.mark.parametrize("mean_crop", RULES)
@pytest.mark.parametrize("mean", [MEAN_IMAGE, ILSVRC.mean_colour], ids=["image", "colour"])
def test_centre_and_ten_views_subtract_the_mean(mean, mean_crop):
    images = images_of(2)
    image_mean = np.broadcast_to(mean, MEAN_IMAGE.shape)
    places = [(0, 0), (0, 7), (7, 0), (7, 7), (3, 3)]
    views = augment.views(images, 10, mean=mean, size=SIZE, mean_crop=mean_crop)
    for i, (top, left) in enumerate(places):
        for n in range(2):
            plain, mirrored = (RULES[mean_crop](images[n], top, left, flip, image_mean) for flip in (0, 1))
            np.testing.assert_allclose(views[i, n], plain, atol=1e-4)
            np.testing.assert_allclose(views[i + 5, n], mirrored, atol=1e-4)
    centre = augment.views(images, 1, mean=mean, size=SIZE, mean_crop=mean_crop)
    np.testing.assert_allclose(centre[0], views[4], atol=1e-4)


def test_std_divides_in_the_end():
    key, images, ids, std = (
        jax.random.key(8),
        images_of(4),
        np.arange(4),
        np.array([50.0, 60.0, 70.0], np.float32),
    )
    for colour in ("none", "original"):
        plain = views_of(colour=colour)(images, key, ids)
        divided = jax.jit(augment_of(colour=colour, std=std))(images, key, ids, 7)
        np.testing.assert_allclose(divided, plain / std, rtol=1e-5, atol=1e-6)
    for number in (1, 10):
        view = functools.partial(augment.views, images, number)
        plain = np.asarray(view(mean=MEAN_IMAGE, size=SIZE))
        np.testing.assert_allclose(view(mean=MEAN_IMAGE, size=SIZE, std=std), plain / std, rtol=1e-6)


def test_resize_size_is_the_crop_size():
    """No margin: the whole picture, and all five patches of the ten views are the same."""
    images = images_of(3, SIZE)
    draw = augment_of(mean=jnp.zeros(3), mirror=False, colour="none")
    view = draw(images, jax.random.key(0), jnp.arange(3), jnp.int32(0))
    np.testing.assert_array_equal(view, images)
    views = augment.views(images, 10, mean=jnp.zeros(3), size=SIZE)
    for i in range(5):
        np.testing.assert_array_equal(views[i], images)
        np.testing.assert_array_equal(views[5 + i], images[:, :, ::-1])
