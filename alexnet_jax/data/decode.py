"""One encoded image to one square of pixels, as section 2 of the paper has it.

The shorter side is brought to S with antialiasing and the central S x S cut out. Nothing here is random,
and what cannot be decoded is None, never an exception: one bad file in a million must not stop a week's
training.
"""

import importlib
import io
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image


def _optional(name: str) -> Any:
    """A compiled module that some machines have no wheels of, or None; Pillow does the same without it."""
    try:
        return importlib.import_module(name)
    except (ImportError, ValueError, RuntimeError):  # the latter two of one built for another NumPy
        return None


simd = _optional("cykooz_resizer")
simplejpeg = _optional("simplejpeg")

# The largest photograph of ILSVRC has 61 million pixels. An image beyond this is a mistake or an attack, and
# decoding it would take gigabytes.
MAX_PIXELS = 100_000_000

# Remarks on odd metadata and large images; ImageNet has its share of both.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Pixel memory goes back to Pillow, not to the system: threads that fetch fresh pages for every image wait
# for each other in the kernel (with two threads, 1,120 images/s decoded by Pillow without this, 1,800 with).
Image.core.set_blocks_max(64)
_REACH = 5  # pixels, of a filter that makes images less than four times smaller; and one for rounding
_own = threading.local()  # a resizer has buffers of its own, so each thread has a resizer


def decode_square(data: bytes, size: int) -> np.ndarray | None:
    """Decodes an image of any common format to its central square.

    Any mode is brought to RGB: grey is repeated, transparency is dropped, 16 bits become 8, CMYK is
    converted, an animation gives its first frame. The orientation tag of EXIF is not applied, as it was not
    in 2012.

    Args:
      data: the encoded image.
      size: S, the side of the square in pixels; smaller images are enlarged.

    Returns:
      uint8 `[S, S, 3]`, or None where `data` is not a whole image of at most `MAX_PIXELS` pixels.
    """
    square = _photograph(data, size) if simplejpeg else None
    return decode(data, lambda image: central_square(image, size)) if square is None else square


def _photograph(data: bytes, size: int) -> np.ndarray | None:
    """The square of a whole JPEG that is not much larger; None of any other image, for Pillow to decide.

    The library that decodes is the same, libjpeg-turbo, and so are the pixels; but it goes straight from and
    to memory, which saves a tenth of a photograph's time and more of a small square's.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        large = min(width, height) >= 4 * size or width * height > 2**24  # Pillow needs less memory for these
        if large or colours not in ("YCbCr", "Gray"):
            return None
        pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
        if (width, height) == (size, size):
            return pixels
        if simd is None:
            return central_square(Image.fromarray(pixels), size)
        box = _central_box((width, height), size)
        x, y = (max(0, int(edge) - _REACH) for edge in box[:2])
        part = pixels[y : int(box[3]) + _REACH, x : int(box[2]) + _REACH]  # the rest need not be copied
        photograph = simd.ImageData(part.shape[1], part.shape[0], simd.PixelType.U8x3, part.tobytes())
        square = simd.ImageData(size, size, simd.PixelType.U8x3)
        box = (box[0] - x, box[1] - y, box[2] - x, box[3] - y)
        _resizer().resize(photograph, square, _cut(photograph, box))
        return np.frombuffer(square.get_buffer(), np.uint8).reshape(size, size, 3)
    except Exception:  # not a JPEG, or anything at all is wrong with it
        return None


def decode(data: bytes, square: Callable[[Image.Image], np.ndarray]) -> np.ndarray | None:
    """What `square` makes of an encoded image, or None where it is not a whole image of allowed size."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            return square(image)
    except Exception:  # Pillow's decoders raise nearly everything on broken data
        return None


def central_square(image: Image.Image, size: int) -> np.ndarray:
    """The central square of an opened image, brought to `size`, as uint8 `[size, size, 3]`."""
    # A large JPEG is decoded at a half, a quarter or an eighth, which is cheaper and bounds the memory;
    # never to less than twice the size, so that the antialiasing remains that of one filter.
    if min(image.size) >= 4 * size:
        image.draft("RGB", _scaled(image.size, 2 * size))
    image = as_rgb(image)
    if image.size == (size, size):
        return np.asarray(image)
    return np.asarray(resized(image, size, _central_box(image.size, size)))


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _central_box(image_size: tuple[int, int], size: int) -> Box:
    """The part of an image that becomes its square, so that resizing and cutting are one.

    Only the square is computed, at the places where a resized whole would have had it.
    """
    width, height = _scaled(image_size, size)
    left, top = (width - size) // 2, (height - size) // 2
    x, y = image_size[0] / width, image_size[1] / height
    return left * x, top * y, (left + size) * x, (top + size) * y


def resized(image: Image.Image, size: int, box: Box) -> Image.Image:
    """The part `box` of an RGB image, antialiased, as `size` x `size`."""
    if simd is None:
        return image.resize((size, size), Image.Resampling.BILINEAR, box)
    square = Image.new("RGB", (size, size))
    _resizer().resize_pil(image, square, _cut(image, box))
    return square


def _resizer() -> Any:
    """This thread's own: Pillow's filter in vector instructions, a fifth of the time.

    By its shorter weights it is 0.2 grey levels off.
    """
    if not hasattr(_own, "resizer"):
        _own.resizer = simd.Resizer()
    return _own.resizer


def _cut(image: Any, box: Box) -> Any:
    """How to resize the part `box` of an image that has a width and a height."""
    left, top, right, bottom = box
    # Rounding may leave a box a hair beyond the image, which is an error there.
    part = simd.CropBox(
        left, top, min(right - left, image.width - left), min(bottom - top, image.height - top)
    )
    return simd.ResizeOptions(simd.ResizeAlg.convolution(simd.FilterType.bilinear), False, part)


def as_rgb(image: Image.Image) -> Image.Image:
    """Any mode as eight bits of RGB."""
    image.load()
    if image.mode.startswith("I"):  # 16 bits, which convert() would clip to 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(image_size: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height after the shorter side has become `size`."""
    width, height = image_size
    if width <= height:
        return size, max(size, round(height * size / width))
    return max(size, round(width * size / height)), size
