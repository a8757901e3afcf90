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


def _optional(name: str) -> Any:
    """An optional compiled module; None if it is missing, and Pillow is used instead."""
    try:
        return importlib.import_module(name)
    except (ImportError, ValueError, RuntimeError):  # the last two: built for another NumPy version
        return None


simd = _optional("cykooz_resizer")
simplejpeg = _optional("simplejpeg")

# The largest photograph of ILSVRC has 61 million pixels. A larger image is a mistake or an attack, and
# decoding it would take gigabytes.
MAX_PIXELS = 100_000_000

_FILTER_REACH = 5  # pixels the filter reads beyond a box when downscaling by less than 4, plus one
_per_thread = threading.local()  # a resizer holds buffers, so each thread has its own


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

    Threads should import nothing: while TFDS is imported, etils has relative imports fail in all threads.
    """
    Image.init()
    # Pillow warns about odd metadata and large images, and ImageNet has both.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # Makes Pillow keep pixel memory instead of returning it to the system: threads that allocate fresh pages
    # for every image wait for each other in the kernel (two threads: 1,120 images/s without, 1,800 with).
    Image.core.set_blocks_max(64)


def decode_square(data: bytes, size: int) -> np.ndarray | None:
    """Decodes an image of any common format to its central square.

    Every mode becomes RGB: grey is repeated, transparency dropped, 16 bits reduced to 8, CMYK converted. Only
    the first frame of an animation is read. EXIF's orientation tag is not applied, as in 2012.

    Args:
      data: the encoded image.
      size: S, the side of the square in pixels; smaller images are enlarged.

    Returns:
      uint8 `[S, S, 3]`, or None if `data` is not a complete image of at most `MAX_PIXELS` pixels.
    """
    set_up()
    square = _decode_jpeg(data, size) if simplejpeg else None
    return decode(data, lambda image: central_square(image, size)) if square is None else square


def _decode_jpeg(data: bytes, size: int) -> np.ndarray | None:
    """The square of a complete JPEG of moderate size; None for any other image, which is left to Pillow.

    Both use libjpeg-turbo and return the same pixels. simplejpeg decodes from memory to memory, which saves
    a tenth of the time for a photograph and more for a small square.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        large = min(width, height) >= 4 * size or width * height > 2**24  # Pillow needs less memory for these
        if large or colours not in ("YCbCr", "Gray"):
            return None
        pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except ValueError:  # not a JPEG, or a damaged one
        return None
    if (width, height) == (size, size):
        return pixels
    if simd is None:
        return central_square(Image.fromarray(pixels), size)
    box = _central_box((width, height), size)
    x, y = (max(0, int(edge) - _FILTER_REACH) for edge in box[:2])
    # Copy only what the filter reads.
    part = pixels[y : int(box[3]) + _FILTER_REACH, x : int(box[2]) + _FILTER_REACH]
    photograph = simd.ImageData(part.shape[1], part.shape[0], simd.PixelType.U8x3, part.tobytes())
    square = simd.ImageData(size, size, simd.PixelType.U8x3)
    box = (box[0] - x, box[1] - y, box[2] - x, box[3] - y)
    _resizer().resize(photograph, square, _resize_options(photograph, box))
    return np.frombuffer(square.get_buffer(), np.uint8).reshape(size, size, 3)


def decode(data: bytes, square: Callable[[Image.Image], np.ndarray]) -> np.ndarray | None:
    """Applies `square` to an encoded image; None if it is not a complete image of allowed size.

    Only what decoders raise on damaged data makes a bad image: other errors, such as `MemoryError` and an
    import that fails, are raised.
    """
    set_up()
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            return square(image)
    except _DAMAGED as error:
        _raise_unless_damaged(error)
        return None


def _raise_unless_damaged(error: BaseException) -> None:
    """Raises an error that does not come from a decoder: a relative import that etils refuses, say."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_globals.get("__name__", "").partition(".")[0] not in _DECODERS:
        raise error


def central_square(image: Image.Image, size: int) -> np.ndarray:
    """The central square of an opened image, resized to uint8 `[size, size, 3]`."""
    # Decoding a large JPEG at 1/2, 1/4 or 1/8 of its size is cheaper and bounds the memory. Keep at least
    # twice `size`, so that the final filter still determines the antialiasing.
    if min(image.size) >= 4 * size:
        image.draft("RGB", _scaled(image.size, 2 * size))
    image = as_rgb(image)
    if image.size == (size, size):
        return np.asarray(image)
    box = _central_box(image.size, size)
    if simd is None:
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))
    square = Image.new("RGB", (size, size))
    _resizer().resize_pil(image, square, _resize_options(image, box))
    return np.asarray(square)


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _central_box(width_height: tuple[int, int], size: int) -> Box:
    """The part of an image that becomes its square: resizing this box does both resize and crop."""
    width, height = _scaled(width_height, size)
    left, top = (width - size) // 2, (height - size) // 2
    x, y = width_height[0] / width, width_height[1] / height
    return left * x, top * y, (left + size) * x, (top + size) * y


def _resizer() -> Any:
    """This thread's SIMD resizer: five times as fast as Pillow's filter, within 0.2 grey levels of it."""
    if not hasattr(_per_thread, "resizer"):
        _per_thread.resizer = simd.Resizer()
    return _per_thread.resizer


def _resize_options(image: Any, box: Box) -> Any:
    """The SIMD resizer's options for the part `box` of an image with `width` and `height`."""
    left, top, right, bottom = box
    # Rounding may leave the box slightly larger than the image, which the resizer refuses.
    part = simd.CropBox(
        left, top, min(right - left, image.width - left), min(bottom - top, image.height - top)
    )
    return simd.ResizeOptions(simd.ResizeAlg.convolution(simd.FilterType.bilinear), False, part)


def as_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode to 8-bit RGB."""
    image.load()
    if image.mode.startswith("I"):  # 16 bits; convert() would clip them to 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(width_height: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height after resizing the shorter side to `size`."""
    width, height = width_height
    if width <= height:
        return size, max(size, round(height * size / width))
    return max(size, round(width * size / height)), size
