"""Predictions for a data set: computing, averaging over nets, errors, files."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from alexnet_jax import columns, evaluate, steps
from alexnet_jax.common import host, progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.common.files import write_npz
from alexnet_jax.data import inference
from alexnet_jax.data.sources import Source
from alexnet_jax.weights.pretrained import Pretrained

BATCH_SIZE = 64
UNKNOWN = -1  # label of a test image without a published label


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Probabilities of K classes for N images, in the data set's order.

    Attributes:
      ids: file names or record ids.
      labels: int32 `[N]`, `UNKNOWN` without a label.
      probabilities: float32 `[N, K]`; 1 / K for all classes of an unreadable image.
      bad: bool `[N]`, unreadable images.
      classes: WordNet ids by label, or names if there are no ids.
    """

    ids: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    bad: np.ndarray
    classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Errors:
    """Errors in % and mean cross entropy over the `examples` readable images with a label."""

    top1_error: float
    top5_error: float
    loss: float
    examples: int
    bad_images: int


def predict(loaded: Pretrained, source: Source, *, views: int = 1) -> Predictions:
    """Predicts all images of a source on all devices, with a progress bar.

    Args:
      views: 1 for the central patch; 10 for the mean softmax output of the ten views (section 4.1).

    Raises:
      UserError: the weights have no classifier, or one without some of the source's classes.
    """
    loaded.require_classifier()
    labels, num_classes = loaded.labels_of(source), source.num_classes
    mesh = columns.make_mesh()
    params = jax.device_put(loaded.variables["params"], NamedSharding(mesh, columns.PARAMETERS))
    predict_on_mesh = evaluate.make_predict(loaded.model, mesh, loaded.preprocess, views, labels)
    step = jax.jit(predict_on_mesh, compiler_options=host.eigen_options())

    def log_probabilities(images: np.ndarray) -> jax.Array:
        return step(params, jax.device_put(images, steps.batch_sharding(mesh)))

    decode = inference.SourceDecoder(source, loaded.preprocess)
    rows = mesh.shape[columns.DATA]
    batch_size = -(-BATCH_SIZE // rows) * rows
    probabilities = np.full((len(source), num_classes), 1 / num_classes, np.float32)
    bad = np.zeros(len(source), bool)
    answers = inference.run_batches(log_probabilities, range(len(source)), decode, (batch_size,))
    for index, image, logs in progress.bar(len(source), "image", str(loaded.path), iterable=answers):
        if image is None:
            bad[index] = True
        else:
            probabilities[index] = np.exp(logs)
    names = tuple(source.name(index) for index in range(len(source)))
    return Predictions(names, decode.labels, probabilities, bad, tuple(source.class_ids))


def member_weights(given: Sequence[float] | None, members: int) -> list[float]:
    """The weights of an ensemble's members, with sum 1; equal by default.

    Raises:
      UserError: there is not one weight per member, one is negative, or all are 0.
    """
    weights = [1.0] * members if given is None else given
    if len(weights) != members or min(weights) < 0 or not sum(weights) > 0:
        raise UserError(f"{list(weights)}: give {members} weights, none below 0 and not all 0")
    return [weight / sum(weights) for weight in weights]


def average(members: Sequence[Predictions], weights: Sequence[float] | None = None) -> Predictions:
    """An ensemble: the weighted mean of the members' probabilities (section 6, Table 2).

    Raises:
      UserError: the members differ in images, classes or labels, or the weights are invalid.
    """
    first = members[0]
    for number, other in enumerate(members[1:], 2):
        for key in ("ids", "classes", "labels"):
            if difference := _first_difference(getattr(first, key), getattr(other, key)):
                raise UserError(f"member {number} has other {key} than member 1: {difference}")
    pairs = zip(member_weights(weights, len(members)), members, strict=True)
    mean = sum(weight * member.probabilities.astype(np.float64) for weight, member in pairs)
    bad = np.any([member.bad for member in members], axis=0)
    return dataclasses.replace(first, probabilities=np.asarray(mean, np.float32), bad=bad)


def _first_difference(ours: Sequence[object], theirs: Sequence[object]) -> str | None:
    if len(ours) != len(theirs):
        return f"{len(ours):,} against {len(theirs):,}"
    pairs = enumerate(zip(ours, theirs, strict=True), 1)
    return next((f"number {n} is {our} against {their}" for n, (our, their) in pairs if our != their), None)


def judged(predictions: Predictions) -> np.ndarray:
    """bool `[N]`: readable images with a label."""
    return ~predictions.bad & (predictions.labels != UNKNOWN)


def cross_entropy(own: np.ndarray) -> float:
    """The mean loss, of the probabilities `[N]` of the labels."""
    return float(np.mean(-np.log(np.maximum(own, np.finfo(np.float32).tiny))))


def errors(predictions: Predictions) -> Errors | None:
    """Top-1 and top-5 error and loss; None if no readable image has a label.

    Ties count against the label, as in training (`steps.topk_errors`).
    """
    counted = judged(predictions)
    if not counted.any():
        return None
    examples = int(counted.sum())
    labels = jnp.asarray(predictions.labels[counted])
    scores = jnp.asarray(predictions.probabilities[counted])
    top1, top5 = (100.0 * float(jnp.sum(steps.topk_errors(scores, labels, k))) / examples for k in (1, 5))
    own = predictions.probabilities[counted, predictions.labels[counted]].astype(np.float64)
    return Errors(top1, top5, cross_entropy(own), examples, int(predictions.bad.sum()))


# --- Files ------------------------------------------------------------------------------------------------


def save(path: pathlib.Path, predictions: Predictions) -> None:
    """Writes `.npz` with one array per attribute."""
    write_npz(path, vars(predictions), compress=True)


def holds_predictions(path: pathlib.Path) -> bool:
    """Whether a file looks like one written by `save` rather than weights."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return "probabilities" in arrays.files
    except Exception:  # weights in another format, or no file: the weights' reader reports it
        return False


def load(path: pathlib.Path) -> Predictions:
    """Reads what `save` wrote.

    Raises:
      UserError: `path` is not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, classes = (tuple(arrays[key].tolist()) for key in ("ids", "classes"))
            return Predictions(ids, arrays["labels"], arrays["probabilities"], arrays["bad"], classes)
    except Exception as error:
        raise UserError(f"{path}: not a file of predictions ({error}); write it again") from error
