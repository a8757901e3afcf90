"""One encoded image to one square of pixels, as section 2 of the paper has it.

The shorter side is brought to S with antialiasing and the central S x S cut out. Nothing here is random,
and what cannot be decoded is None, never an exception: one bad file in a million must not stop a week's
training.
"""

import io
import threading
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image

try:
    import cykooz_resizer as simd
except ImportError:  # there are no wheels for this machine
    simd = None

# The largest photograph of ILSVRC has 61 million pixels. An image beyond this is a mistake or an attack, and
# decoding it would take gigabytes.
MAX_PIXELS = 100_000_000

# Remarks on odd metadata and large images; ImageNet has its share of both.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Pixel memory goes back to Pillow, not to the system: threads that fetch fresh pages for every image wait
# for each other in the kernel (with two threads, 1,120 images/s decoded without this and 1,800 with).
Image.core.set_blocks_max(64)
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
    return decode(data, lambda image: central_square(image, size))


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
    # Resize and crop in one: only the square is computed, at the places where a resized whole would have
    # had it.
    width, height = _scaled(image.size, size)
    left, top = (width - size) // 2, (height - size) // 2
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, (left + size) * x, (top + size) * y)
    return np.asarray(resized(image, size, box))


def resized(image: Image.Image, size: int, box: tuple[float, float, float, float]) -> Image.Image:
    """The part `box` of an RGB image (left, top, right, bottom), antialiased, as `size` x `size`."""
    if simd is None:
        return image.resize((size, size), Image.Resampling.BILINEAR, box)
    # The same filter in vector instructions: a fifth of the time, 0.2 grey levels off by its shorter weights.
    if not hasattr(_own, "resizer"):
        _own.resizer = simd.Resizer()
        _own.filter = simd.ResizeAlg.convolution(simd.FilterType.bilinear)
    left, top, right, bottom = box
    # Rounding may leave a box a hair beyond the image, which is an error there.
    width, height = min(right - left, image.width - left), min(bottom - top, image.height - top)
    options = simd.ResizeOptions(_own.filter, False, simd.CropBox(left, top, width, height))
    square = Image.new("RGB", (size, size))
    _own.resizer.resize_pil(image, square, options)
    return square


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
