"""The command `demo`: a page to try a net."""

import argparse
import contextlib
import dataclasses
import io
import os
import pathlib
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from alexnet_jax import config as configs
from alexnet_jax.common import progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import decode, inference, sources
from alexnet_jax.tools import features, nearest, predict
from alexnet_jax.weights import pretrained
from alexnet_jax.weights.pretrained import Pretrained

GALLERY_IMAGES = 500  # at most; kept in memory: 100 MB at 256 x 256
UPLOAD_MEGABYTES = 20
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
      classes: probabilities of the top five classes by name; empty if the weights have no classifier.
      conv1, conv5: pictures of the activations, uint8 `[H, W]`.
      similar: the gallery's nearest images, each captioned with name and distance.
    """

    square: np.ndarray
    classes: dict[str, float]
    conv1: np.ndarray
    conv5: np.ndarray
    similar: list[tuple[np.ndarray, str]]


def explainer(loaded: Pretrained, gallery: Gallery | None) -> Callable[[bytes], Answer]:
    """Compiles `encoded picture -> Answer`, which raises `UserError` if the bytes cannot be decoded."""
    classify = None if loaded.missing else predict.predictor(loaded, 5, views=10)
    names = predict.class_names(loaded)
    layers = [features.layer_function(loaded, name) for name in ("conv1", "conv5", _point_layer(loaded))]

    def explain(data: bytes) -> Answer:
        square = loaded.preprocess.decode(data)
        if square is None:
            raise UserError(explain_failure(data))
        conv1, conv5, point = (np.asarray(function(square[None]))[0] for function in layers)
        classes: dict[str, float] = {}
        if classify is not None:
            probabilities, labels = (np.asarray(x)[0].tolist() for x in classify(square[None]))
            classes = {names[label]: p for p, label in zip(probabilities, labels, strict=True)}
        similar = gallery.nearest(point.ravel()) if gallery is not None else []
        return Answer(square, classes, maps_picture(conv1), maps_picture(conv5), similar)

    return explain


def _point_layer(loaded: Pretrained) -> str:
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

    Channels are laid out row by row, so the first column's are above the second's.
    """
    _, width, channels = maps.shape
    across = next(n for n in range(max(1, round((2 * channels) ** 0.5)), 0, -1) if channels % n == 0)
    roots = np.sqrt(np.maximum(maps, 0))  # makes faint activations visible
    grey = np.round(255 * roots / max(float(roots.max()), 1e-12)).astype(np.uint8)
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
    function = features.layer_function(loaded, _point_layer(loaded))
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


def page(loaded: Pretrained, gallery: Gallery | None) -> Any:
    """The page, as gradio's `Blocks`."""
    # Gradio reads this on import.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ImportError as error:
        raise UserError('the demo needs gradio: pip install ".[demo]" in a checkout') from error

    explain = explainer(loaded, gallery)
    where = f"{len(gallery.names):,} images" if gallery else "start with `--gallery=PHOTOS` to see yours"
    nothing = (None,) * 5

    def show(path: str | None) -> tuple[Any, ...]:
        if path is None:
            return "", *nothing
        try:
            answer = explain(pathlib.Path(path).read_bytes())
        except UserError as error:
            return f"**{pathlib.Path(path).name}**: {error}", *nothing
        note = "" if answer.classes else "These weights have no classifier, so no classes are named."
        return note, answer.square, answer.classes or None, answer.conv1, answer.conv5, answer.similar

    shown = min(5, loaded.model.num_classes)
    does = f"names the most probable of its {loaded.model.num_classes:,} classes."
    if loaded.missing:
        does = "has no classifier, so only activations and nearest images are shown."
    picture: dict[str, Any] = {"interactive": False, "buttons": ["fullscreen"]}
    with gr.Blocks(analytics_enabled=False, title="AlexNet (2012)") as blocks:
        gr.Markdown(f"# AlexNet (2012)\nDrop a picture; `{loaded.path.name}` {does}")
        with gr.Row():
            with gr.Column(scale=1):
                upload = gr.File(label="picture", type="filepath", height=140, elem_id="upload")
                message = gr.Markdown(elem_id="message")
                seen = gr.Image(label="what the net sees", height=260, **picture)
            label = f"{'top five' if loaded.model.num_classes > 5 else 'all'} classes, ten views"
            classes = gr.Label(label=label, num_top_classes=shown, scale=2, visible=not loaded.missing)
        with gr.Row():
            with gr.Column():
                halves = ": the first column's maps, then the second's" if loaded.model.columns == 2 else ""
                gr.Markdown(f"**conv1**, edges and colours{halves}")
                conv1 = gr.Image(show_label=False, elem_id="conv1", **picture)
            with gr.Column():
                gr.Markdown("**conv5**, parts of objects: white where a filter responds")
                conv5 = gr.Image(show_label=False, elem_id="conv5", **picture)
        gr.Markdown(f"**Nearest images** by {_point_layer(loaded)} ({where})")
        similar = gr.Gallery(show_label=False, columns=SIMILAR, height=220, buttons=["fullscreen"])
        outputs = [message, seen, classes, conv1, conv5, similar]
        upload.change(show, upload, outputs, api_visibility="private")
    return blocks


@contextlib.contextmanager
def _port_errors(args: argparse.Namespace) -> Iterator[None]:
    try:
        yield
    except (OSError, OverflowError) as error:
        where = f"--port={args.port}: cannot serve at {args.host}:{args.port}"
        raise UserError(f"{where} ({error}); choose another") from error


def main(args: argparse.Namespace) -> int:
    with _port_errors(args):  # before the weights are read
        socket.create_server((args.host, args.port)).close()
    loaded = pretrained.read(args.weights, partial=True, variant=args.variant, mean=args.mean)
    blocks = page(loaded, make_gallery(loaded, args.gallery))
    with _port_errors(args):
        blocks.launch(
            server_name=args.host,
            server_port=args.port,
            max_file_size=UPLOAD_MEGABYTES * 2**20,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
        )
    print(f"{jax.devices()[0].device_kind}: open http://{args.host}:{args.port} (Ctrl-C to stop)", flush=True)
    blocks.block_thread()
    return 0
