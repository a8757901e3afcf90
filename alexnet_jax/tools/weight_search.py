"""Member weights of an ensemble, searched on labelled predictions, as the 2012 `avg-valid.py` does."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from alexnet_jax.common import progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.tools import predictions
from alexnet_jax.tools.predictions import Predictions

PARTS = (100, 50, 20, 10, 5, 2, 1)  # into which the sum of the weights, 1, is divided
MOST_POINTS = 20_000  # of the grid: steps of 0.01 up to 3 members, 0.05 up to 5, 0.1 up to 8
BLOCK = 64  # images at a time
MOST_LEADS = 2**15  # float64 values at a time, so that they stay in the cache


def grid(members: int) -> np.ndarray:
    """Equal weights of two members or more, then all with sum 1 on the finest grid of at most `MOST_POINTS`.

    Returns:
      float64 `[points, members]`.
    """
    parts = next(n for n in PARTS if math.comb(n + members - 1, n) <= MOST_POINTS)
    # A point is a row of `parts` stars and `members - 1` bars; its weights are the stars between the bars.
    places = parts + members - 1
    bars = np.array(list(itertools.combinations(range(places), members - 1)))
    edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, places)))
    return np.concatenate([np.full((1, members), 1 / members), (np.diff(edges) - 1) / parts])


def search(members: Sequence[Predictions]) -> list[float]:
    """The weights of `grid` with the smallest top-1 error; among equals, the smallest loss, then the first.

    Exhaustive and in float64; ties between classes count against the label. Readable images with a label
    count. Unlike avg-valid.py, which lowers the top-5 error by changing one weight at a time.

    Returns:
      One weight per member, none negative, rounded to 4 decimals.

    Raises:
      UserError: no readable image has a label, or the members differ in images, classes or labels.
    """
    judged = np.flatnonzero(predictions.judged(predictions.average(members)))
    if not judged.size:
        raise UserError("--search_weights: none of the images has a label")
    points, labels = grid(len(members)), members[0].labels
    wrong = np.zeros(len(points), np.int64)
    blocks = np.array_split(judged, -(-judged.size // BLOCK))
    for block in progress.bar(len(blocks), "block", "weights", iterable=blocks):
        scores = np.stack([m.probabilities[block] for m in members], axis=-1).astype(np.float64)
        wrong += _errors(scores, labels[block], points)
    best = points[wrong == wrong.min()]
    own = np.stack([m.probabilities[judged, labels[judged]] for m in members], axis=-1).astype(np.float64)
    losses = [round(predictions.cross_entropy(own @ weights), 9) for weights in best]  # beyond is rounding
    return [round(weight, 4) for weight in best[np.argmin(losses)].tolist()]


def _errors(scores: np.ndarray, labels: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Top-1 errors per point: `[points]`, of probabilities `[images, classes, members]`."""
    rows = np.arange(len(labels))
    margins = scores[rows, labels][:, None] - scores
    beats = ~(margins > 0)
    beats[rows, labels] = False
    # Lost for all weights: one class beats the label in every member. Elsewhere only classes that do so in
    # some member can beat it in a mean, and these are few.
    lost = np.any(beats.all(axis=-1), axis=-1, keepdims=True)
    rivals = beats.any(axis=-1) & ~lost
    images, leads = np.nonzero(rivals)[0], margins[rivals]
    errors = np.full(len(points), lost.sum())
    if not images.size:
        return errors
    starts = np.unique(images, return_index=True)[1]
    chunks = np.array_split(points, min(len(points), -(-len(leads) * len(points) // MOST_LEADS)))
    lowest = (np.minimum.reduceat(leads @ chunk.T, starts) for chunk in chunks)
    return errors + np.concatenate([(~(lead > 0)).sum(axis=0) for lead in lowest])
