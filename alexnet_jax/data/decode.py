"""Decodes an image to its central square of pixels, as in section 2 of the paper.

The shorter side is resized to S with antialiasing and the central S x S is cut out. Nothing here is random.
A bad image is None, not an exception: one bad file in a million must not stop a week of training.
"""

import functools
import importlib
import io
import struct
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from alexnet_jax.common.errors import UserError


def _optional(name: str) -> Any:
    """A compiled module; None, and Pillow is used instead, if it is missing or built for another NumPy."""
    try:
        return importlib.import_module(name)
    except (ImportError, ValueError, RuntimeError):
        return None


simd = _optional("cykooz_resizer")
simplejpeg = _optional("simplejpeg")

# The largest photograph of ILSVRC has 61 million pixels; decoding a larger image would take gigabytes.
MAX_PIXELS = 100_000_000

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # two tags of TIFF, and a value of the second
_resizers = threading.local()  # one per thread, as a resizer holds buffers

# What Pillow raises on damaged data, as found by cutting and changing files (`NotImplementedError` for kinds
# of TIFF, DDS and BLP files that it cannot read), and what `Image.open` expects of its plugins.
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, NotImplementedError, Image.DecompressionBombError),
    *(IndexError, KeyError, TypeError, EOFError, OverflowError, struct.error),
)
_DECODERS = {"PIL", *sys.stdlib_module_names}


@functools.cache
def set_up() -> None:
    """Sets up Pillow and imports its plugins; call it before threads that decode start.

    Threads should import nothing: while TFDS is imported, etils makes relative imports fail in all threads.
    """
    Image.init()
    # Pillow warns about odd metadata and large images, and ImageNet has both.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # Makes Pillow keep pixel memory instead of returning it to the system: threads that allocate fresh pages
    # for every image wait for each other in the kernel (two threads: 1,120 images/s without, 1,800 with).
    Image.core.set_blocks_max(64)


def decode_square(data: bytes, size: int) -> np.ndarray | None:
    """Decodes an image of any common format to its central square.

    Every mode becomes RGB: grey is repeated, transparency dropped, numbers of more than 8 bits reduced to 8,
    CMYK converted. Only an animation's first frame is read. EXIF's orientation is not applied, as in 2012.

    Args:
      data: the encoded image.
      size: S, the side of the square in pixels; smaller images are enlarged.

    Returns:
      uint8 `[S, S, 3]`, or None if `data` is not a complete image of at most `MAX_PIXELS` pixels.
    """
    set_up()
    if (pixels := _decode_jpeg(data, size)) is not None:
        return _resize(pixels, size)
    return decode(data, lambda image: central_square(image, size))


def _decode_jpeg(data: bytes, size: int) -> np.ndarray | None:
    """The pixels of a complete JPEG of moderate size; None for any other image, which is left to Pillow.

    Both use libjpeg-turbo and return the same pixels. simplejpeg decodes from memory to memory, which saves
    a tenth of the time for a photograph and more for a small square.
    """
    if simplejpeg is None:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        large = min(width, height) >= 4 * size or width * height > 2**24  # Pillow needs less memory for these
        if large or colours not in ("YCbCr", "Gray"):
            return None
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except ValueError:  # not a JPEG, or a damaged one
        return None


def decode(data: bytes, square: Callable[[Image.Image], np.ndarray]) -> np.ndarray | None:
    """Applies `square` to an encoded image; None if it is not a complete image of allowed size.

    Only what decoders raise on damaged data makes a bad image; `MemoryError` and failed imports are raised.
    """
    set_up()
    try:
        with Image.open(io.BytesIO(data)) as image:
            return square(image) if image.width * image.height <= MAX_PIXELS else None
    except UserError:  # from `as_rgb`
        return None
    except _DAMAGED as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _DECODERS:
            raise  # not the data's fault: a relative import that etils refuses, say
        return None


def central_square(image: Image.Image, size: int) -> np.ndarray:
    """The central square of an opened image, resized to uint8 `[size, size, 3]`."""
    # Decoding a large JPEG at 1/2, 1/4 or 1/8 of its size is cheaper and bounds the memory. Keep at least
    # twice `size`, so that the final filter still determines the antialiasing.
    if min(image.size) >= 4 * size:
        image.draft("RGB", _scaled(image.size, 2 * size))
    return _resize(np.asarray(as_rgb(image)), size)


def as_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode to 8-bit RGB; transparency is dropped.

    Raises:
      UserError: the numbers of a mode of more than 8 bits have no known scale.
    """
    image.load()
    if image.mode[0] in "IF":
        image = Image.fromarray(_grey_levels(image))
    elif image.mode.endswith("a"):  # colours multiplied by the opacity
        image = image.convert(image.mode.upper())
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_levels(image: Image.Image) -> np.ndarray:
    """Grey integers or floats, `[H, W]`, as uint8 with white as 255, also where TIFF has white as 0.

    Pillow scales PGM and JPEG 2000 to 16 bits; TIFF may state 12. Of other images the largest number decides:
    floats up to 1 are fractions of white, numbers up to 255 grey levels, up to 4,095 12 bits, else 16 bits.
    """
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    low, high = values.min(), values.max()
    if not 0 <= low <= high < 2**16:  # nor NaN
        raise UserError(f"pixels of {low:g} to {high:g}; the scales known are 0 to 1, 255, 4095 and 65535")
    if image.format in ("PPM", "JPEG2000") and image.mode != "F":
        values = values // 256
    elif high > 255 or tags.get(_BITS_PER_SAMPLE) == (12,):
        values = values // (256 if high > 4095 else 16)
    elif image.mode == "F":
        values = np.round(values * (255 if high <= 1 else 1))
    levels = values.astype(np.uint8)
    return 255 - levels if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else levels


def _resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """The central square of uint8 `[H, W, 3]`, resized to `[size, size, 3]` with antialiasing."""
    height, width, _ = pixels.shape
    if (width, height) == (size, size):
        return pixels
    # Resizing this box of the image does both resize and crop.
    scaled_width, scaled_height = _scaled((width, height), size)
    x_scale, y_scale = width / scaled_width, height / scaled_height
    x, y = (scaled_width - size) // 2, (scaled_height - size) // 2
    left, top = x * x_scale, y * y_scale
    # Rounding may leave the box slightly larger than the image, which the resizers refuse.
    right, bottom = min((x + size) * x_scale, width), min((y + size) * y_scale, height)
    if simd is None:
        image, box = Image.fromarray(pixels), (left, top, right, bottom)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))
    # Five times as fast as Pillow's filter, within 0.2 grey levels of it.
    if not hasattr(_resizers, "own"):
        _resizers.own = simd.Resizer()
    image = simd.ImageData(width, height, simd.PixelType.U8x3, pixels.tobytes())
    square = simd.ImageData(size, size, simd.PixelType.U8x3)
    bilinear = simd.ResizeAlg.convolution(simd.FilterType.bilinear)
    box = simd.CropBox(left, top, right - left, bottom - top)
    _resizers.own.resize(image, square, simd.ResizeOptions(bilinear, False, box))
    return np.frombuffer(square.get_buffer(), np.uint8).reshape(size, size, 3)


def _scaled(width_height: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height after resizing the shorter side to `size`."""
    width, height = width_height
    shorter = min(width_height)
    return round(width * size / shorter), round(height * size / shorter)
