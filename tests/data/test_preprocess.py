"""Preprocessing: sizes, crops, means, and the types of image it accepts."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.common.errors import UserError
from alexnet_jax.data import decode
from alexnet_jax.data.preprocess import CAFFE, TORCHVISION, Preprocess


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_form_of_an_image_gives_the_same(tmp_path):
    array = picture(300, 280)
    (tmp_path / "a.png").write_bytes(png(array))
    forms = [array, Image.fromarray(array), png(array), tmp_path / "a.png", str(tmp_path / "a.png")]
    for preprocess in (TORCHVISION, CAFFE, Preprocess()):
        first, *others = (preprocess(form) for form in forms)
        assert first.shape == (preprocess.crop_size, preprocess.crop_size, 3) and first.dtype == np.float32
        for other in others:
            np.testing.assert_array_equal(first, other)


def test_central_is_the_input_pipelines_rule():
    data = png(picture(300, 280))
    np.testing.assert_array_equal(Preprocess().decode(data), decode.decode_square(data, 256))


def test_torchvisions_arithmetic():
    """The central 224 x 224 of 256 x 256, scaled to [0, 1], minus the mean, over the standard deviation."""
    array = picture(256, 256)
    expected = array[16:240, 16:240] / 255
    expected = (expected - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(TORCHVISION(array), expected, atol=1e-5)


@pytest.mark.parametrize("width, height", [(500, 375), (333, 500), (257, 256), (100, 1000)])
def test_torchvisions_rounding(width, height):
    """Shorter side to 256 and the longer rounded down; the crop rounded to the nearest, halves to even."""
    array = picture(width, height)
    scale = 256 / min(width, height)
    resized = Image.fromarray(array).resize(
        (int(width * scale + 1e-9), int(height * scale + 1e-9)), Image.Resampling.BILINEAR
    )
    left, top = round((resized.width - 224) / 2), round((resized.height - 224) / 2)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    np.testing.assert_array_equal(TORCHVISION.stored(array)[16:240, 16:240], expected)


def test_caffe_squashes_and_subtracts_its_mean():
    array = np.zeros((100, 400, 3), np.uint8)
    array[:, 200:] = 200  # the middle of the picture stays the middle
    x = CAFFE(array)
    assert x.shape == (227, 227, 3)
    np.testing.assert_allclose(x[100, 0], -CAFFE.mean)
    np.testing.assert_allclose(x[100, -1], 200 - CAFFE.mean)
    np.testing.assert_allclose(CAFFE.mean, [122.67891, 116.66877, 104.00699], atol=1e-4)  # RGB, not BGR


def test_ten_views_are_normalised_alike():
    stored = picture(256, 256)[None]
    views = np.asarray(TORCHVISION.views(stored, 10))
    assert views.shape == (10, 1, 224, 224, 3)
    np.testing.assert_allclose(views[4], TORCHVISION.view(stored), rtol=1e-6)
    np.testing.assert_array_equal(views[9], views[4][:, :, ::-1])


@pytest.mark.parametrize("mean", [np.arange(3.0), np.random.default_rng(0).uniform(0, 255, (64, 64, 3))])
def test_json_keeps_every_bit(mean):
    std = np.array([1, 2, 3], np.float32) / 3
    before = Preprocess(64, 56, "central", mean.astype(np.float32), std, "centre")
    after = Preprocess.from_json(json.loads(json.dumps(before.to_json())))
    np.testing.assert_array_equal(after.mean, before.mean)
    np.testing.assert_array_equal(after.std, before.std)
    assert (after.resize_size, after.crop_size, after.resize) == (64, 56, "central")
    assert after.mean_crop == "centre"


@pytest.mark.parametrize("mean_crop", ["centre", "same"])
def test_a_mean_image_is_cut_as_its_net_wants(mean_crop):
    """Corner view and its mirror; resized for training, the rule stays."""
    mean = np.random.default_rng(0).uniform(0, 255, (64, 64, 3)).astype(np.float32)
    preprocess = Preprocess(64, 56, mean=mean, mean_crop=mean_crop).resized(64, 56)
    image = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), np.uint8)
    views = preprocess.views(image, 10)
    corner = mean[4:60, 4:60] if mean_crop == "centre" else mean[8:, 8:]
    mirrored = corner if mean_crop == "centre" else corner[:, ::-1]
    np.testing.assert_allclose(views[3, 0], image[0, 8:, 8:] - corner, atol=1e-4)
    np.testing.assert_allclose(views[8, 0], image[0, 8:, 8:][:, ::-1] - mirrored, atol=1e-4)
    np.testing.assert_allclose(preprocess.view(image)[0], image[0, 4:60, 4:60] - mean[4:60, 4:60], atol=1e-4)


def test_a_mean_image_follows_the_size():
    gradient = np.broadcast_to(np.arange(64, dtype=np.float32)[:, None, None], (64, 64, 3))
    resized = Preprocess(64, 56, mean=gradient).resized(32, 28)
    assert resized.mean.shape == (32, 32, 3) and resized.crop_size == 28
    np.testing.assert_allclose(resized.mean[10, 0], 20.5, atol=1e-4)


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"resize": "stretch"}, "resize='stretch'"),
        ({"mean_crop": "center"}, "mean_crop='center': choose one of centre, same"),
        ({"crop_size": 257}, "crop_size=257: must be 1 to 256"),
        ({"mean": np.zeros((10, 10, 3))}, r"shape is \[10, 10, 3\]"),
    ],
)
def test_impossible_settings_are_refused(arguments, match):
    with pytest.raises(UserError, match=match):
        Preprocess(**arguments)


@pytest.mark.parametrize("preprocess", [TORCHVISION, CAFFE, Preprocess()])
def test_bad_images_are_one_clear_line(tmp_path, preprocess):
    with pytest.raises(UserError, match=r"nowhere.jpg: cannot be read"):
        preprocess(tmp_path / "nowhere.jpg")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\); give image files"):
        preprocess(tmp_path)
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(UserError, match=r"phone.heic: not a complete image .* save HEIC as JPEG"):
        preprocess(tmp_path / "phone.heic")
    with pytest.raises(UserError, match="not a complete image"):
        preprocess(png(picture(300, 280))[:1000])
    assert preprocess.decode(b"") is None
    with pytest.raises(UserError, match="uint8"):
        preprocess(np.zeros((10, 10, 3), np.float32))
