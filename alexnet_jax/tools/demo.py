"""The command `demo`: a page to try a net."""

import argparse
import contextlib
import html
import os
import pathlib
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from alexnet_jax import data
from alexnet_jax.common.errors import UserError
from alexnet_jax.tools import explain
from alexnet_jax.weights import pretrained
from alexnet_jax.weights.pretrained import Pretrained

UPLOAD_MEGABYTES = 20
# Galleries show all their pictures without scrolling, on a phone as on a wide screen.
CSS = """
.grid-wrap { min-height: 0 !important; max-height: none !important }
#examples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important }
#similar .grid-container { grid-template-columns: repeat(auto-fill, minmax(max(90px, 11%), 1fr)) !important }
"""
EXAMPLES = sorted((pathlib.Path(data.__path__[0]) / "photographs").glob("*.jpg"))


def page(loaded: Pretrained, gallery: explain.Gallery | None) -> Any:
    """The page, as gradio's `Blocks`."""
    # Gradio reads this on import.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
    except ImportError as error:
        raise UserError('the demo needs gradio: pip install ".[demo]" in a checkout') from error

    answer_for = explain.explainer(loaded, gallery)
    texts, has_classes = _texts(loaded, gallery), not loaded.missing
    picture: dict[str, Any] = {"interactive": False, "show_label": False, "buttons": ["fullscreen"]}
    tiles: dict[str, Any] = {"interactive": False, "show_label": False, "buttons": []}

    def show(path: str | None) -> Iterator[tuple[Any, ...]]:
        for message, *answers in _answers(answer_for, path):
            yield message, gr.Column(visible=answers[0] is not None), *answers

    def choose(chosen: gr.SelectData) -> str:
        return str(EXAMPLES[chosen.index])

    def panel(name: str, kind: Any = gr.Image, visible: bool = True, **options: Any) -> Any:
        with gr.Column(visible=visible, min_width=300):
            gr.Markdown(texts[name], visible=visible)
            return kind(elem_id=name, **options)

    with gr.Blocks(analytics_enabled=False, title="AlexNet (2012)") as blocks:
        gr.Markdown(texts["title"])
        with gr.Row():
            upload = gr.File(show_label=False, type="filepath", height=150, elem_id="upload")
            images = [Image.open(path) for path in EXAMPLES]
            examples = gr.Gallery(
                images, columns=len(images), allow_preview=False, elem_id="examples", **tiles
            )
        message = gr.Markdown(elem_id="message")
        with gr.Column(visible=False) as panels:
            with gr.Row():
                square = panel("square", **picture)
                classes = panel("classes", gr.HTML, has_classes)
                heat = panel("heat", visible=has_classes, **picture)
            with gr.Row():
                conv1, conv5 = panel("conv1", **picture), panel("conv5", **picture)
            similar = panel("similar", gr.Gallery, gallery is not None, columns=explain.SIMILAR, **tiles)
        outputs = [message, panels, square, conv1, conv5, similar, classes, heat]
        upload.change(show, upload, outputs, api_visibility="private")
        examples.select(choose, None, upload, api_visibility="private")
    return blocks


def _answers(
    answer_for: Callable[[bytes], explain.Answer], path: str | None
) -> Iterator[tuple[str, *tuple[Any, ...]]]:
    """A message and the panels' values for a picture; at first without the heat map, which takes longer."""
    nothing = (None,) * 6
    if path is None:
        yield "", *nothing
        return
    try:
        answer = answer_for(pathlib.Path(path).read_bytes())
    except UserError as error:
        yield f"**{pathlib.Path(path).name}**: {error}", *nothing
        return
    shown = enlarged(answer.square), answer.conv1, answer.conv5, answer.similar
    yield "", *shown, bars(answer.classes), None
    if answer.find_heat is not None:
        heat, words = answer.find_heat()
        yield "", *shown, f"{bars(answer.classes)}<p>{html.escape(words)}</p>", enlarged(heat)


def enlarged(image: np.ndarray) -> np.ndarray:
    """A small image `[S, S, 3]` with whole pixels repeated, up to the size of a usual one."""
    times = max(1, 256 // len(image))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def bars(classes: Sequence[tuple[str, float]]) -> str:
    """Names, percentages and bars, as HTML."""
    lines = []
    for name, probability in classes:
        words = f"<span>{html.escape(name)}</span><span>{explain.percent(probability)}</span>"
        line = f'<div style="display: flex; justify-content: space-between; gap: 1em">{words}</div>'
        bar = f"height: 0.5em; width: {100 * probability:.2f}%; min-width: 2px; background: #f97316"
        lines.append(f'<div style="margin-bottom: 0.6em">{line}<div style="{bar}"></div></div>')
    return "".join(lines)


def _texts(loaded: Pretrained, gallery: explain.Gallery | None) -> dict[str, str]:
    """What the page says above each panel."""
    number = loaded.model.num_classes
    does = f"names the most probable of its {number:,} classes"
    if loaded.missing:
        does = "has no classifier, so only activations and nearest images are shown"
    best = f"the five most probable of {number:,} classes" if number > 5 else "all classes"
    halves = ": the first column's maps, then the second's" if loaded.model.columns == 2 else ""
    scale = "each map by itself, white where it is largest and black where its filter does not respond"
    near, more = "", " Start with `--gallery=PHOTOS` to see the nearest of your images, too."
    if gallery is not None:
        more = ""
        near = f"the {explain.SIMILAR} of {len(gallery.names):,} images with the most similar features "
        near += f"(the distance in {explain.point_layer(loaded)})."
    return {
        "title": f"# AlexNet (2012)\nDrop a picture or click one; `{loaded.path.name}` {does}.{more}",
        "square": "**What the net sees**: the central square of the picture.",
        "classes": f"**What it takes it for**: {best}, ten views (corners, centre, and all mirrored).",
        "heat": "**Where it looks**: red where hiding a part makes the first class less probable, blue where "
        "more ([Zeiler and Fergus](https://arxiv.org/abs/1311.2901)).",
        "conv1": f"**conv1**, the first layer, finds edges and colours{halves}; {scale}.",
        "conv5": f"**conv5**, the last convolution, finds parts of objects; {scale}.",
        "similar": f"**Nearest images**: {near}",
    }


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
    blocks = page(loaded, explain.make_gallery(loaded, args.gallery))
    with _port_errors(args):
        blocks.launch(
            server_name=args.host,
            server_port=args.port,
            max_file_size=UPLOAD_MEGABYTES * 2**20,
            footer_links=[],
            quiet=True,
            css=CSS,
            allowed_paths=[str(EXAMPLES[0].parent)],
            prevent_thread_lock=True,
        )
    print(f"{jax.devices()[0].device_kind}: open http://{args.host}:{args.port} (Ctrl-C to stop)", flush=True)
    blocks.block_thread()
    return 0
