"""Every mode of Pillow gives the grey levels of a documented rule, written here in float64; none is black.

keras#10437 and pillow#3159: TIFFs of floats and of 32-bit integers were decoded to black squares of weight 1.
"""

import colorsys
import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageMode

from alexnet_jax.common.errors import UserError
from alexnet_jax.data import decode
from alexnet_jax.data.preprocess import Preprocess

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

SIDE = 8
RAMP = np.linspace(0.1, 0.9, SIDE * SIDE).reshape(SIDE, SIDE)  # from dark to light
BYTES = np.round(255 * RAMP).astype(np.uint8)
NUMBERS = np.stack([BYTES, BYTES.T, BYTES[::-1], BYTES.T[::-1]], axis=-1)  # [S, S, 4]
PALETTE = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)


def grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(levels, np.float64)[..., None], 3, axis=-1)


def pixel_by_pixel(function, numbers: np.ndarray) -> np.ndarray:
    return np.apply_along_axis(lambda pixel: function(*pixel.astype(np.float64)), -1, numbers)


def from_cmyk(c, m, y, k):
    return [(255 - k) * (1 - ink / 255) for ink in (c, m, y)]


def from_hsv(h, s, v):
    return [255 * x for x in colorsys.hsv_to_rgb(h / 255, s / 255, v / 255)]


def from_ycbcr(y, cb, cr):
    """ITU-R BT.601 over the full range, as in JFIF."""
    cb, cr = cb - 128, cr - 128
    return np.clip([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], 0, 255)


def from_lab(lightness, a, b):
    """CIELAB (D50, a and b as signed bytes) to sRGB, by the CIE's formula and sRGB's D50 matrix."""
    a, b = (x - 256 if x > 127 else x for x in (a, b))
    fy = (lightness / 255 * 100 + 16) / 116
    f = np.array([fy + a / 500, fy, fy - b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1, 0.8249]
    linear = np.clip(
        np.array(
            [
                [3.1338561, -1.6168667, -0.4906146],
                [-0.9787684, 1.9161415, 0.0334540],
                [0.0719453, -0.2289914, 1.4052427],
            ]
        )
        @ xyz,
        0,
        1,
    )
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def raw(mode: str, values: np.ndarray) -> Image.Image:
    """An image of `mode` from its numbers."""
    height, width = values.shape[:2]
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(values).tobytes())


def with_palette(mode: str) -> Image.Image:
    image = Image.fromarray(BYTES)
    image.putpalette(PALETTE.tobytes())
    return image.convert(mode)


OPAQUE = np.full_like(BYTES, 200)
SIXTEEN = np.round(65535 * RAMP).astype(np.uint16)
LABS = np.stack([BYTES, BYTES // 6, BYTES // 5], axis=-1)
PREMULTIPLIED = np.dstack([*(NUMBERS[..., i] // 2 for i in range(3)), OPAQUE])

# mode: (image, expected RGB in float64, levels of difference allowed)
MODES = {
    "1": (Image.fromarray(BYTES > 128), grey(255 * (BYTES > 128)), 0),
    "L": (Image.fromarray(BYTES), grey(BYTES), 0),
    "LA": (raw("LA", NUMBERS[..., :2]), grey(BYTES), 0),
    "La": (raw("La", np.dstack([BYTES // 2, OPAQUE])), grey(BYTES // 2 * (255 / 200)), 1),
    "P": (with_palette("P"), PALETTE[BYTES], 0),
    "PA": (with_palette("PA"), PALETTE[BYTES], 0),
    "RGB": (raw("RGB", NUMBERS[..., :3]), NUMBERS[..., :3], 0),
    "RGBX": (raw("RGBX", NUMBERS), NUMBERS[..., :3], 0),
    "RGBA": (raw("RGBA", NUMBERS), NUMBERS[..., :3], 0),
    "RGBa": (raw("RGBa", PREMULTIPLIED), PREMULTIPLIED[..., :3] * (255 / 200), 1),
    "CMYK": (raw("CMYK", NUMBERS), pixel_by_pixel(from_cmyk, NUMBERS), 1),
    "YCbCr": (raw("YCbCr", NUMBERS[..., :3]), pixel_by_pixel(from_ycbcr, NUMBERS[..., :3]), 1),
    "HSV": (raw("HSV", NUMBERS[..., :3]), pixel_by_pixel(from_hsv, NUMBERS[..., :3]), 2),
    "LAB": (raw("LAB", LABS), pixel_by_pixel(from_lab, LABS), 2),
    "I;16": (raw("I;16", SIXTEEN), grey(SIXTEEN // 256), 0),
    "I;16L": (raw("I;16L", SIXTEEN.astype("<u2")), grey(SIXTEEN // 256), 0),
    "I;16B": (raw("I;16B", SIXTEEN.astype(">u2")), grey(SIXTEEN // 256), 0),
    "I;16N": (raw("I;16N", SIXTEEN), grey(SIXTEEN // 256), 0),
    "I": (raw("I", BYTES.astype(np.int32)), grey(BYTES), 0),
    "F": (raw("F", RAMP.astype(np.float32)), grey(np.round(255 * RAMP)), 0),
}


def test_the_table_has_all_modes():
    """A mode that a later Pillow adds has to be thought about."""
    assert set(Image.MODES) <= set(MODES)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_gives_its_grey_levels(mode):
    image, expected, tolerance = MODES[mode]
    assert image.mode == mode and len(ImageMode.getmode(mode).bands) >= 1
    found = np.asarray(decode.as_rgb(image.copy()))
    assert found.dtype == np.uint8 and found.shape == (SIDE, SIDE, 3)
    assert np.abs(found - np.asarray(expected, np.float64)).max() <= tolerance
    assert found.max() > 100  # not black
    for resize in ("central", "torchvision", "squash"):
        square = Preprocess(SIDE, SIDE, resize).stored(image.copy())
        np.testing.assert_array_equal(square, found)


FORMATS = ("TIFF", "PNG", "PPM", "JPEG2000", "IM", "TGA", "PSD", "BMP", "PCX", "SGI", "GIF")


@pytest.mark.parametrize("kind", FORMATS)
def test_files_of_every_mode_that_a_format_stores(kind):
    """The same levels from files without losses, by all three rules of resizing."""
    stored = set()
    for mode, (image, expected, tolerance) in MODES.items():
        if mode == "I" and kind in ("PNG", "PPM"):  # stored as 16 bits
            continue
        data = io.BytesIO()
        try:
            image.save(data, kind, **({"irreversible": False} if kind == "JPEG2000" else {}))
            same = Image.open(data).mode == mode
        except (OSError, ValueError, KeyError):  # the format has no such mode
            continue
        if same:
            stored.add(mode)
            for resize in ("central", "squash"):
                found = Preprocess(SIDE, SIDE, resize).decode(data.getvalue())
                assert found is not None, mode
                assert np.abs(found - np.asarray(expected, np.float64)).max() <= tolerance, mode
    if kind == "TIFF":
        assert stored >= {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I;16B", "I", "F"}


def tiff(values: np.ndarray, bits: int | None = None, photometric: int = 1) -> bytes:
    """A grey TIFF of any type of number, by its specification; of 12 bits, two are in three bytes."""
    height, width = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    if bits == 12:
        pairs = values.astype(int).reshape(-1, 2)
        data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    tags = {256: width, 257: height, 258: bits or 8 * values.itemsize, 259: 1, 262: photometric, 277: 1}
    tags |= {278: height, 279: len(data), 339: kind, 273: 8 + 2 + 12 * 10 + 4}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


@pytest.mark.parametrize(
    ("values", "bits", "expected"),
    [
        (RAMP.astype("<f4"), None, np.round(255 * RAMP)),  # fractions of white
        ((255 * RAMP).astype("<f4"), None, np.round(255 * RAMP)),  # grey levels
        ((65535 * RAMP).astype("<f4"), None, np.floor(65535 * RAMP / 256)),  # 16 bits
        (BYTES.astype("<i4"), None, BYTES),
        (BYTES.astype("<u4"), None, BYTES),
        (SIXTEEN.astype("<i4"), None, SIXTEEN // 256),
        (SIXTEEN.astype("<u4"), None, SIXTEEN // 256),
        (SIXTEEN, None, SIXTEEN // 256),
        (BYTES.astype("<u2"), None, BYTES),
        (np.round(1023 * RAMP).astype("<u2"), None, np.round(1023 * RAMP) // 16),
        (np.round(4095 * RAMP).astype("<u2"), None, np.round(4095 * RAMP) // 16),
        (np.round(4095 * RAMP).astype("<i4"), None, np.round(4095 * RAMP) // 16),
        (np.round(5000 * RAMP).astype("<u2"), None, np.round(5000 * RAMP) // 256),
        (np.full((SIDE, SIDE), 255, "<u2"), None, np.full((SIDE, SIDE), 255)),
        (np.full((SIDE, SIDE), 256, "<u2"), None, np.full((SIDE, SIDE), 16)),
        (np.full((SIDE, SIDE), 4095, "<u2"), None, np.full((SIDE, SIDE), 255)),
        (np.full((SIDE, SIDE), 4096, "<u2"), None, np.full((SIDE, SIDE), 16)),
        (np.round(200 * RAMP).astype("<u2"), 12, np.round(200 * RAMP) // 16),  # dark: 12 bits are 12 bits
        ((SIXTEEN // 2).astype("<i2"), None, SIXTEEN // 2 // 256),
        (BYTES.astype("<i2"), None, BYTES),
        (np.round(4095 * RAMP).astype("<u2"), 12, np.round(4095 * RAMP) // 16),
        (BYTES, None, BYTES),
    ],
    ids=lambda value: f"{value.dtype} to {value.max():g}" if isinstance(value, np.ndarray) else str(value),
)
def test_tiffs_of_all_numbers(values, bits, expected):
    found = decode.decode_square(tiff(values, bits), SIDE)
    assert found is not None
    np.testing.assert_array_equal(found, grey(expected))


@pytest.mark.parametrize(
    "values",
    [
        BYTES,
        BYTES.astype("<u2"),
        np.round(4095 * RAMP).astype("<u2"),
        SIXTEEN,
        RAMP.astype("<f4"),
        (65535 * RAMP).astype("<f4"),
    ],
    ids=lambda values: f"{values.dtype} to {values.max():g}",
)
def test_a_tiff_whose_zero_is_white_is_the_negative_of_one_whose_zero_is_black(values):
    white = float(next(most for most in (1, 255, 4095, 65535) if values.max() <= most))
    expected = 255 * (1 - values.astype(np.float64) / white)
    found = decode.decode_square(tiff(values, photometric=0), SIDE)
    assert found is not None
    assert np.abs(found - grey(expected)).max() <= 1
    black_is_zero = decode.decode_square(tiff(values), SIDE)
    assert black_is_zero is not None
    np.testing.assert_array_equal(found, 255 - black_is_zero)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_small_numbers_in_16_bits_are_grey_levels(mode):
    image = raw(mode, BYTES.astype(">u2" if mode == "I;16B" else "<u2"))
    np.testing.assert_array_equal(np.asarray(decode.as_rgb(image)), grey(BYTES))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_files_with_small_numbers_in_16_bits(kind):
    data = io.BytesIO()
    Image.fromarray(BYTES.astype(np.uint16)).save(data, kind)
    for resize in ("central", "squash"):
        np.testing.assert_array_equal(Preprocess(SIDE, SIDE, resize).decode(data.getvalue()), grey(BYTES))


def test_jpeg_2000_is_scaled_by_its_own_precision():
    """Its 16 bits are of the format, so a dark image stays dark, as a PGM does."""
    data = io.BytesIO()
    Image.fromarray(np.round(2000 * RAMP).astype(np.uint16)).save(data, "JPEG2000", irreversible=False)
    np.testing.assert_array_equal(
        decode.decode_square(data.getvalue(), SIDE), grey(np.round(2000 * RAMP) // 256)
    )


@pytest.mark.parametrize(("numbers", "kind"), [
    ([-0.5, 0.5], "<f4"), ([0, 1e5], "<f4"), ([0, np.inf], "<f4"), ([np.nan, 1], "<f4"),
    ([-np.inf, 0], "<f4"),
    ([-1, 1], "<i4"), ([0, 2**16], "<i4"), ([0, 2**32 - 1], "<u4"), ([-1, 9], "<i2"),
])  # fmt: skip
def test_numbers_of_no_known_scale_are_a_bad_image(numbers, kind):
    values = np.resize(np.array(numbers).astype(kind), (SIDE, SIDE))
    assert decode.decode_square(tiff(values), SIDE) is None
    assert Preprocess(SIDE, SIDE, "squash").decode(tiff(values)) is None
    with pytest.raises(UserError, match="the scales known are 0 to 1, 255, 4095 and 65535"):
        Preprocess(SIDE, SIDE).stored(raw("F", values.astype(np.float32)))


def test_a_mode_that_pillow_cannot_read_is_a_bad_image():
    """Doubles, and floats of three colours."""
    assert decode.decode_square(tiff(RAMP.astype("<f8")), SIDE) is None
    colours = b"PF\n8 8\n-1.0\n" + np.repeat(RAMP.astype("<f4"), 3).tobytes()
    assert decode.decode_square(colours, SIDE) is None


@pytest.mark.parametrize("most", [300, 1023, 4095, 65535])
@pytest.mark.parametrize("form", ["P2", "P5"])
def test_pgm_is_scaled_by_its_own_maximum(form, most):
    """By netpbm's specification; a dark one of 16 bits stays dark."""
    for scale in (1, 1 / 300):
        values = np.round(scale * most * RAMP).astype(int)
        head = f"{form} {SIDE} {SIDE} {most}\n".encode()
        body = " ".join(map(str, values.ravel())).encode()
        data = head + (values.astype(">u2").tobytes() if form == "P5" else body)
        found = decode.decode_square(data, SIDE)
        assert found is not None
        assert np.abs(found - grey(values / most * 255)).max() <= 1


def test_a_float_pfm():
    data = io.BytesIO()
    Image.fromarray(RAMP.astype(np.float32)).save(data, "PPM")
    assert data.getvalue().startswith(b"Pf")
    found = decode.decode_square(data.getvalue(), SIDE)
    assert found is not None
    np.testing.assert_array_equal(found, grey(np.round(255 * RAMP)))
