"""What the demo shows of a picture: classes, heat map, activations, the nearest images of a gallery."""

import dataclasses
import functools
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from alexnet_jax import config as configs
from alexnet_jax.common import progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import decode, inference, sources
from alexnet_jax.tools import features, nearest, occlusion, predict
from alexnet_jax.weights.pretrained import Pretrained

GALLERY_IMAGES = 500  # at most; kept in memory: 100 MB at 256 x 256
SIMILAR = 8
_PICTURE_WIDTH = 640  # pixels: approximate width of an activation picture


@dataclasses.dataclass(frozen=True)
class Gallery:
    """The images to search: squares uint8 `[N, S, S, 3]`, names, and features `[N, D]`."""

    squares: np.ndarray
    names: Sequence[str]
    points: np.ndarray

    def nearest(self, point: np.ndarray) -> list[tuple[np.ndarray, str]]:
        """The images whose features are nearest to `point` `[D]`, captioned with name and distance."""
        (places,), (distances,) = nearest.nearest(point[None], self.points, SIMILAR)
        pairs = zip(places, distances, strict=True)
        return [(self.squares[place], f"{self.names[place]}  {distance:.3g}") for place, distance in pairs]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the page shows for a picture.

    Attributes:
      square: the central square that the net sees, uint8 `[S, S, 3]`.
      conv1, conv5: pictures of the activations, uint8 `[H, W]`.
      similar: the gallery's nearest images, each captioned with name and distance.
      classes: names and probabilities of the top five classes; empty if the weights have no classifier.
      find_heat: computes the picture of where the net looks, and a sentence; None without a classifier.
    """

    square: np.ndarray
    conv1: np.ndarray
    conv5: np.ndarray
    similar: list[tuple[np.ndarray, str]]
    classes: list[tuple[str, float]]
    find_heat: Callable[[], tuple[np.ndarray, str]] | None


def explainer(loaded: Pretrained, gallery: Gallery | None) -> Callable[[bytes], Answer]:
    """Compiles `encoded picture -> Answer`, which raises `UserError` if the bytes cannot be decoded."""
    classify = None if loaded.missing else predict.predictor(loaded, 5, views=10)
    find_heat = None if loaded.missing else _heat_finder(loaded)
    names = predict.class_names(loaded)
    layers = [features.layer_function(loaded, name) for name in ("conv1", "conv5", point_layer(loaded))]

    def explain(data: bytes) -> Answer:
        square = loaded.preprocess.decode(data)
        if square is None:
            raise UserError(explain_failure(data))
        conv1, conv5, point = (np.asarray(function(square[None]))[0] for function in layers)
        similar = gallery.nearest(point.ravel()) if gallery is not None else []
        shown = square, maps_picture(conv1), maps_picture(conv5), similar
        if classify is None or find_heat is None:
            return Answer(*shown, classes=[], find_heat=None)
        probabilities, labels = (np.asarray(x)[0].tolist() for x in classify(square[None]))
        classes = [(names[label], p) for p, label in zip(probabilities, labels, strict=True)]
        return Answer(*shown, classes, functools.partial(find_heat, square, labels[0]))

    return explain


def _heat_finder(loaded: Pretrained) -> Callable[[np.ndarray, int], tuple[np.ndarray, str]]:
    """Compiles `square, label -> heat map over the square, sentence`, by the central patch."""
    classify = predict.predictor(loaded, loaded.model.num_classes, views=1)
    names = predict.class_names(loaded)

    def find(square: np.ndarray, label: int) -> tuple[np.ndarray, str]:
        def probability(images: np.ndarray) -> np.ndarray:
            probabilities, labels = map(np.asarray, classify(images))
            return probabilities[labels == label]

        heat, whole, lowest = occlusion.heat_map(probability, square, loaded.preprocess.mean)
        words = f"Hiding a part lowers {names[label]} from {percent(whole)} to {percent(lowest)} at most"
        if lowest >= whole or percent(lowest) == percent(whole):
            words = f"Hiding any one part leaves {names[label]} at {percent(whole)} or above"
        return occlusion.overlay(square, heat), f"{words} (central patch)."

    return find


def percent(probability: float) -> str:
    """A probability as people read it; never 0 or 100 %, which a net does not mean."""
    if not 0.0005 <= probability < 0.9995:
        return "less than 0.1 %" if probability < 0.5 else "more than 99.9 %"
    return f"{100 * probability:.1f} %"


def point_layer(loaded: Pretrained) -> str:
    """The layer whose features are compared: the last hidden one as in Figure 4, or else pool5."""
    return "pool5" if loaded.missing else "activation7"


def explain_failure(data: bytes) -> str:
    """Explains in one line why a picture cannot be decoded."""
    too_large = f"the picture has more than {decode.MAX_PIXELS // 10**6} million pixels; make it smaller"
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > decode.MAX_PIXELS:
                return too_large
    except Image.DecompressionBombError:
        return too_large
    except Exception:  # Pillow raises nearly any type on non-images
        return "not a picture in a known format (JPEG, PNG, WebP, GIF, BMP or TIFF)"
    return "the picture is damaged or cut short, or of an unusual kind"


def maps_picture(maps: np.ndarray) -> np.ndarray:
    """Tiles a layer's maps into one picture: `[H, W, C]` to uint8 grey, black for no activation.

    Each map is scaled to its own maximum, since some are a hundred times as large as others. They are laid
    out row by row, so the first column's are above the second's.
    """
    _, width, channels = maps.shape
    across = next(n for n in range(max(1, round((2 * channels) ** 0.5)), 0, -1) if channels % n == 0)
    roots = np.sqrt(np.maximum(maps, 0))  # makes faint activations visible
    grey = np.round(255 * roots / np.maximum(roots.max(axis=(0, 1)), 1e-12)).astype(np.uint8)
    zoom = max(1, _PICTURE_WIDTH // (across * (width + 1)))
    grey = grey.repeat(zoom, axis=0).repeat(zoom, axis=1)
    grey = np.pad(grey, ((0, 2), (0, 2), (0, 0)), constant_values=96)
    rows = grey.reshape(*grey.shape[:2], -1, across).transpose(2, 0, 3, 1)  # [rows, h, across, w]
    return rows.reshape(rows.shape[0] * rows.shape[1], -1)


def make_gallery(loaded: Pretrained, folder: pathlib.Path | None) -> Gallery | None:
    """Builds the gallery from a folder, else from a run's test images; None if there are neither.

    Raises:
      UserError: none of the images can be read.
    """
    items: list[tuple[str, str | bytes]]
    if folder is not None:
        items = [(pathlib.PurePath(file).name, file) for file in _spread(inference.find([folder]))]
    elif (loaded.path / configs.FILE_NAME).exists():
        items = _test_images(loaded.path)
    else:
        return None
    where = folder or f"the test set of {loaded.path}"
    progress.say(f"gallery: {len(items):,} images of {where} (at most {GALLERY_IMAGES})")
    function = features.layer_function(loaded, point_layer(loaded))
    answers = inference.run_batches(function, items, lambda item: loaded.preprocess.decode(item[1]))
    answers = progress.bar(len(items), "image", "gallery", iterable=answers)
    good = [(square, name, point.ravel()) for (name, _), square, point in answers if square is not None]
    if not good:
        raise UserError(f"{folder or loaded.path}: none of the gallery's images can be read")
    squares, names, points = zip(*good, strict=True)
    return Gallery(np.stack(squares), names, np.stack(points))


def _spread(values: Sequence[Any]) -> list[Any]:
    """At most `GALLERY_IMAGES` of `values`, evenly spaced from first to last."""
    places = np.linspace(0, len(values) - 1, min(len(values), GALLERY_IMAGES)).astype(int)
    return [values[place] for place in places]


def _test_images(workdir: pathlib.Path) -> list[tuple[str, str | bytes]]:
    """Class names and encoded images of a run's test set."""
    source = sources.open_configured(configs.of_workdir(workdir).data, "test")
    encoded, labels = source.read(np.array(_spread(range(len(source)))))
    return [(source.class_names[label], data) for data, label in zip(encoded, labels, strict=True)]
