"""What a report says of a net's mistakes: the confusion matrix, errors by class, the worst mistakes."""

import html
import io
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from alexnet_jax import config as configs
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import inference, sources
from alexnet_jax.tools import confusion, predictions
from alexnet_jax.weights.pretrained import Pretrained
from experiments.report_html import details, paragraph, picture, table

WORST = 12  # mistakes shown
_SIDE = 160  # pixels of their images


def of_run(name: str, workdir: pathlib.Path, net: Pretrained, temporary: pathlib.Path) -> str:
    """Tests a run's net with the central patch and shows its mistakes, or says why it cannot be tested."""
    heading = f"<h3>{html.escape(name)}</h3>"
    try:
        source = sources.open_configured(configs.of_workdir(workdir).data, "test")
    except UserError as error:
        return heading + paragraph(f"Not tested again, without its test images: {error}")
    found = predictions.predict(net, source)
    matrix = confusion.Confusion(source.class_names)
    for index in np.flatnonzero(predictions.judged(found)):
        matrix.add(
            int(found.labels[index]), np.argsort(-found.probabilities[index], kind="stable")[:5].tolist()
        )
    matrix.write(temporary / "confusion.png")
    summary, worst = matrix.summary(), worst_mistakes(found)
    parts = [
        paragraph(
            f"{summary['accuracy']:.2f} % of {summary['examples']:,} test images are classified correctly "
            "(central patch)."
        ),
        picture(
            temporary / "confusion.png",
            "Confusion matrix: a row is a true class, a column what the net takes its images for.",
        ),
        details("Errors by class", _by_class(summary)),
    ]
    if worst:
        shown = "".join(_mistake(found, index, source, net) for index in worst)
        parts += [paragraph("The mistakes that the net was surest of:"), f'<div class="grid">{shown}</div>']
    return heading + "".join(parts)


def worst_mistakes(found: predictions.Predictions) -> list[int]:
    """The indices of the images with the highest probability of a wrong class, highest first."""
    wrong = predictions.judged(found) & (found.probabilities.argmax(axis=1) != found.labels)
    indices = np.flatnonzero(wrong)
    order = np.argsort(-found.probabilities[indices].max(axis=1), kind="stable")
    return indices[order][:WORST].tolist()


def _by_class(summary: dict[str, Any]) -> str:
    rows = [
        [line["class"], line["images"], line["top1_error"], line["most_often_taken_for"] or "", line["times"]]
        for line in summary["classes"]
    ]
    return table(["class", "images", "top-1 error, %", "most often taken for", "times"], rows)


def _mistake(found: predictions.Predictions, index: int, source: sources.Source, net: Pretrained) -> str:
    square = inference.SourceDecoder(source, net.preprocess)(index)
    assert square is not None  # it was predicted
    jpeg = io.BytesIO()
    Image.fromarray(square).resize((_SIDE, _SIDE)).save(jpeg, "jpeg", quality=85)
    best = int(found.probabilities[index].argmax())
    true, taken = (source.class_names[label].split(",")[0] for label in (found.labels[index], best))
    return picture(
        jpeg.getvalue(), f"{true}, taken for {taken}: {100 * found.probabilities[index, best]:.1f} %"
    )
