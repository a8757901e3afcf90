"""Where a net looks: how much less probable a class gets when a part of the image is hidden.

After Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks" (2014), section 4.2: a grey
square moves over the image. It costs 50 forward passes, and needs no gradient, whose maps can be the same for
a net with random weights (Adebayo et al., "Sanity Checks for Saliency Maps", 2018).
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

WINDOWS = 7  # places of the hidden square along each side: each overlaps half of the next
_PART = 4  # the image's side in sides of the hidden square
_LEAST = 0.01  # a change of the probability that has the full colour at least
_RED, _BLUE = np.array([230, 30, 20]), np.array([20, 90, 230])


def hidden_squares(side: int) -> list[tuple[slice, slice]]:
    """The places of the hidden square, row by row, evenly spaced from edge to edge of the image."""
    width = max(1, side // _PART)
    starts = np.linspace(0, side - width, WINDOWS).round().astype(int)
    return [(slice(y, y + width), slice(x, x + width)) for y in starts for x in starts]


def heat_map(
    probability: Callable[[np.ndarray], np.ndarray], image: np.ndarray, mean: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """How much the probability falls when a pixel is hidden, the mean over the squares that hide it.

    Args:
      probability: from uint8 `[B, S, S, 3]` to the class's probabilities `[B]`.
      image: uint8 `[S, S, 3]`.
      mean: what hides it, in grey levels, `[3]` or `[S, S, 3]`: the net's mean, which it sees as zeros.

    Returns:
      float64 `[S, S]`, negative where hiding makes the class more probable; the probability of the whole
      image; the lowest with a part hidden.
    """
    side = len(image)
    places, grey = hidden_squares(side), np.broadcast_to(np.round(mean).astype(np.uint8), image.shape)
    images = np.repeat(image[None], len(places), axis=0)
    for hidden, place in zip(images, places, strict=True):
        hidden[place] = grey[place]
    (whole,) = probability(image[None])
    parts = probability(images)
    total, count = np.zeros((side, side)), np.zeros((side, side))
    for place, part in zip(places, parts, strict=True):
        total[place] += float(whole) - float(part)
        count[place] += 1
    return total / np.maximum(count, 1), float(whole), float(parts.min())


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image in grey, red where hiding lowers the probability and blue where it raises it, uint8 RGB."""
    scaled = Image.fromarray((heat / max(np.abs(heat).max(), _LEAST)).astype(np.float32))
    blocks = scaled.resize((2 * _PART, 2 * _PART), Image.Resampling.BOX)
    smooth = blocks.resize(scaled.size, Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(smooth), -1, 1)[..., None]
    grey = 96 + 0.6 * image.mean(axis=2, keepdims=True)
    colour = np.where(strength > 0, _RED, _BLUE)
    return np.round(grey + 0.75 * np.abs(strength) * (colour - grey)).astype(np.uint8)
