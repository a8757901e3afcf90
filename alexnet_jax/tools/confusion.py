"""A net's answers for images in folders named after its classes: errors by class, the confusion matrix."""

import csv
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from alexnet_jax.common.errors import UserError
from alexnet_jax.common.files import replacing, write_text
from alexnet_jax.data.classes import ids_of, match_labels, readable_names
from alexnet_jax.data.folders import NO_CLASS

LISTED = 20  # classes in the text, those with most errors
_NAMED = 60  # classes up to which the picture has names
_SIDE = 900  # pixels of the picture's matrix, about
_LONGEST = 24  # letters of a name in the picture
_CORNER = "true \\ predicted"  # of rows and columns
_FULL = np.array([8, 48, 107])  # colour of a class whose images all got one answer; white: none


def folder_labels(
    folders: Sequence[str], classes: Sequence[str], class_ids: Sequence[str] | None = None
) -> list[int | None] | None:
    """The label of each image by the name of its class folder, as in `match_labels`; None for `NO_CLASS`.

    None in all if a folder stands for no class of the net.
    """
    own, net_ids = sorted(set(folders) - {NO_CLASS}), class_ids or ids_of(tuple(classes))
    try:
        labels = match_labels(own, readable_names(own), len(classes), net_ids, classes)
    except UserError:
        return None
    known = dict(zip(own, range(len(own)) if labels is None else labels.tolist(), strict=True))
    return [known.get(folder) for folder in folders]


def check_table(picture: pathlib.Path) -> None:
    """Raises `UserError` if the table beside `picture` would replace a file that is no confusion matrix."""
    table = picture.with_suffix(".csv")
    if table.exists() and not (table.is_file() and table.read_bytes().startswith(_CORNER.encode())):
        raise UserError(
            f"--confusion={picture}: the table beside it would replace {table}, which is no confusion "
            "matrix; choose another name"
        )


class Confusion:
    """Counts a net's answers by class; `topk` is how many classes an answer names.

    Attributes:
      classes: names by label.
      counts: int64 `[K, K]`, images by true (row) and predicted class.
      top5_wrong: images whose class is not among the five most probable.
    """

    def __init__(self, classes: Sequence[str], topk: int = 5) -> None:
        self.classes, self._has_top5 = tuple(classes), len(classes) > 5 and topk >= 5
        self.counts = np.zeros((len(classes), len(classes)), np.int64)
        self.top5_wrong = 0

    def add(self, label: int, predicted: Sequence[int]) -> None:
        """Counts an image; `predicted` are labels, most probable first."""
        self.counts[label, predicted[0]] += 1
        self.top5_wrong += label not in predicted[:5]

    def summary(self) -> dict[str, Any]:
        """Errors in %: over all images, and by class that has images, most errors first."""
        images, right = self.counts.sum(axis=1), np.diagonal(self.counts)
        by_class = []
        for label in np.flatnonzero(images).tolist():
            others = self.counts[label].copy()
            others[label] = 0
            most = int(others.argmax())
            by_class.append(
                {
                    "class": self.classes[label],
                    "images": int(images[label]),
                    "top1_error": 100 * float(1 - right[label] / images[label]),
                    "most_often_taken_for": self.classes[most] if others[most] else None,
                    "times": int(others[most]),
                }
            )
        total = int(images.sum())
        return {
            "examples": total,
            "accuracy": 100 * float(right.sum() / total),
            "top1_error": 100 * float(1 - right.sum() / total),
            "top5_error": 100 * self.top5_wrong / total if self._has_top5 else None,
            "classes": sorted(by_class, key=lambda line: -line["top1_error"]),
        }

    def as_text(self) -> str:
        """The summary as lines, of at most `LISTED` classes."""
        found = self.summary()
        top5 = "" if found["top5_error"] is None else f", top-5 error {found['top5_error']:.2f} %"
        lines = [
            f"accuracy {found['accuracy']:.2f} %, top-1 error {found['top1_error']:.2f} %{top5} "
            f"on {found['examples']:,} images of {len(found['classes']):,} classes"
        ]
        for line in found["classes"][:LISTED]:
            taken = f", {line['times']:,} of them for {line['most_often_taken_for']}" if line["times"] else ""
            wrong = f"{line['top1_error']:6.2f} % of {line['images']:,} wrong{taken}"
            lines.append(f"  {line['class']}: {wrong}")
        if (more := len(found["classes"]) - LISTED) > 0:
            lines.append(f"  ... and {more:,} more classes with fewer errors")
        return "\n".join(lines)

    def write(self, picture: pathlib.Path) -> pathlib.Path:
        """Writes the picture, and beside it a CSV table, whose path is returned.

        Both have the classes that occur; a row is a true class, a column a predicted one.
        """
        used = np.flatnonzero(self.counts.sum(axis=0) + self.counts.sum(axis=1))
        counts, names = self.counts[np.ix_(used, used)], [self.classes[label] for label in used]
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow([_CORNER, *names])
        table.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
        write_text(picture.with_suffix(".csv"), text.getvalue())
        with replacing(picture) as temporary:
            _draw(counts, names).save(temporary, "png")
        return picture.with_suffix(".csv")


def _draw(counts: np.ndarray, names: Sequence[str]) -> Image.Image:
    """The matrix as squares, darker for a larger part of the row; few classes have names and counts."""
    number = len(names)
    cell = max(_SIDE // max(number, 10), 1)
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colours = np.round(255 + parts[..., None] * (_FULL - 255)).astype(np.uint8)
    squares = Image.fromarray(colours.repeat(cell, axis=0).repeat(cell, axis=1))
    if number > _NAMED:
        return ImageOps.expand(squares, 1, "grey")  # a frame, since most of it is white
    font = ImageFont.load_default(min(cell * 0.5, max(cell * 0.29, 16)))  # legible on a phone if few classes
    labels = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]
    top = 16 + int(max(map(font.getlength, labels)))
    left = max(top, 16 + int(font.getlength(_CORNER)))
    sheet = Image.new("RGB", (left + number * cell + 8, top + number * cell + 8), "white")
    sheet.paste(squares, (left, top))
    draw = ImageDraw.Draw(sheet)
    draw.text((left - 8, top - 8), _CORNER, "grey", font, anchor="rs")
    for i, label in enumerate(labels):
        middle = top + (i + 0.5) * cell
        draw.text((left - 8, middle), label, "black", font, anchor="rm")
        column = Image.new("RGB", (top, cell), "white")
        ImageDraw.Draw(column).text((8, cell / 2), label, "black", font, anchor="lm")
        sheet.paste(column.rotate(90, expand=True), (left + i * cell, 0))
        for j in np.flatnonzero(counts[i]):
            colour = "white" if parts[i, j] > 0.5 else "black"
            draw.text((left + (j + 0.5) * cell, middle), f"{counts[i, j]}", colour, font, anchor="mm")
    draw.rectangle((left, top, left + number * cell, top + number * cell), outline="grey")
    return sheet
