"""The command `nearest`: the images nearest to an image by their features (the paper's Figure 4)."""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from alexnet_jax.common.errors import UserError
from alexnet_jax.common.files import replacing
from alexnet_jax.data.preprocess import Preprocess
from alexnet_jax.tools import features

_QUERIES = 1024  # per chunk, to keep the table of distances small
FIGURE_ROWS, FIGURE_COLUMNS = 20, 12  # queries and images of each that are drawn, at most
_SIDE, _GAP, _LINE = 96, 8, 14  # pixels: side of an image in the figure, space around it, a line of text


def nearest(queries: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` rows of `others` nearest to each query, nearest first.

    Args:
      queries: float32 `[Q, D]`.
      others: float32 `[N, D]`.

    Returns:
      Indices `[Q, k]` and Euclidean distances `[Q, k]`; `[Q, N]` if N < k.
    """
    k = min(k, len(others))
    norms = np.einsum("nd,nd->n", others, others)
    indices, distances = [], []
    for start in range(0, len(queries), _QUERIES):
        part = queries[start : start + _QUERIES]
        # |q|^2 is the same for all others and does not affect the order.
        rough = norms - 2 * part @ others.T
        best = np.argpartition(rough, k - 1, axis=1)[:, :k]
        # The expanded square is inexact for small distances, so recompute the best ones directly.
        exact = np.stack([np.linalg.norm(others[b] - q, axis=1) for q, b in zip(part, best, strict=True)])
        order = np.argsort(exact, axis=1, kind="stable")
        indices.append(np.take_along_axis(best, order, axis=1))
        distances.append(np.take_along_axis(exact, order, axis=1))
    return np.concatenate(indices), np.concatenate(distances)


def nearest_others(points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As `nearest`, among the points themselves: each point's `k` nearest other points."""
    indices, distances = nearest(points, points, k + 1)
    own = indices == np.arange(len(points))[:, None]
    own[~own.any(axis=1), -1] = True  # with many exact copies a point may not find itself: drop the last
    shape = (len(points), indices.shape[1] - 1)
    return indices[~own].reshape(shape), distances[~own].reshape(shape)


def figure(path: pathlib.Path, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> None:
    """Draws a figure like Figure 4: one row per query, the query at the left, its nearest images beside it.

    Below each image is its file's name, and below that the distance; the query has its folder there. Draws
    the first `FIGURE_ROWS` queries and `FIGURE_COLUMNS` images of each.

    Raises:
      UserError: an image file is missing or damaged.
    """
    decode = Preprocess(resize_size=_SIDE, crop_size=_SIDE).decode
    rows = [(query, found[:FIGURE_COLUMNS]) for query, found in rows[:FIGURE_ROWS]]
    columns = 1 + max(len(found) for _, found in rows)
    width, height = _SIDE + _GAP, _SIDE + 2 * _LINE + _GAP
    sheet = Image.new("RGB", (columns * width + 2 * _GAP, len(rows) * height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_LINE - 3)
    for row, (query, found) in enumerate(rows):
        below = [pathlib.PurePath(query).parent.name, *(f"{distance:.4g}" for _, distance in found)]
        for column, name in enumerate([query, *(name for name, _ in found)]):
            left, top = column * width + (2 if column else 1) * _GAP, row * height + _GAP
            if (picture := decode(name)) is None:
                raise UserError(f"{name}: no longer there, or not a complete image in a known format")
            sheet.paste(Image.fromarray(picture), (left, top))
            for line, text in enumerate((pathlib.PurePath(name).name, below[column])):
                draw.text((left, top + _SIDE + line * _LINE), _shortened(text, font), "black", font)
    with replacing(path) as temporary:
        sheet.save(temporary, "png" if path.suffix.lower() == ".png" else "jpeg")


def _shortened(text: str, font: Any) -> str:
    """The text with its middle left out, if it is wider than an image."""
    ends = len(text)
    while font.getlength(text) > _SIDE:
        ends -= 1
        text = f"{text[: ends // 2]}...{text[-(ends // 2) :]}"
    return text


def main(args: argparse.Namespace) -> int:
    files, points, _ = features.load(args.features)
    queries = files
    if args.queries:
        queries, wanted, _ = features.load(args.queries)
        if wanted.shape[1] != points.shape[1]:
            raise UserError(
                f"--queries={args.queries}: {wanted.shape[1]} numbers an image, but {args.features} has "
                f"{points.shape[1]}; make both with the same layer and weights"
            )
        indices, distances = nearest(wanted, points, args.k)
    else:
        indices, distances = nearest_others(points, args.k)
    found = [[files[i] for i in row] for row in indices]
    for query, names, row in zip(queries, found, distances.tolist(), strict=True):
        near = [{"file": name, "distance": distance} for name, distance in zip(names, row, strict=True)]
        if args.json:
            print(json.dumps({"file": query, "nearest": near}))
        else:
            print(query, *("  {distance:10.4g}  {file}".format(**one) for one in near), sep="\n")
    if args.figure:
        near = [list(zip(*row, strict=True)) for row in zip(found, distances.tolist(), strict=True)]
        figure(args.figure, list(zip(queries, near, strict=True)))
        shown = f"the first {FIGURE_ROWS} of " if len(queries) > FIGURE_ROWS else ""
        print(f"{args.figure}: {shown}{len(queries)} queries", file=sys.stderr)
    return 0
