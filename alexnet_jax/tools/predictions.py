"""What nets say of each image of a set: probabilities in a file, and the errors of one net or several."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from alexnet_jax import columns, evaluate, steps
from alexnet_jax.common import host, progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.common.files import replacing, write_npz
from alexnet_jax.data.preprocess import Preprocess
from alexnet_jax.data.sources import Source
from alexnet_jax.weights.pretrained import Pretrained

GROUP = 64  # images at a time
UNKNOWN = -1  # the label of an image of which only the authors of the set know what it is


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Probabilities of K classes for N images, in the order of the set.

    Attributes:
      ids: file names or record ids.
      labels: int32 `[N]`, `UNKNOWN` where there is none.
      probabilities: float32 `[N, K]`; of an image that cannot be read, 1 / K each.
      bad: bool `[N]`, the images that cannot be read.
      classes: WordNet ids, or names where there are none, by label.
    """

    ids: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    bad: np.ndarray
    classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Errors:
    """Errors in % and mean cross entropy over the `examples` that are readable and have a label."""

    top1_error: float
    top5_error: float
    loss: float
    examples: int
    bad_images: int


def predict(
    loaded: Pretrained, source: Source, *, views: int = 1, class_ids: Sequence[str] | None = None
) -> Predictions:
    """What a net says of all images of a source, on all devices, with a bar.

    Args:
      views: 1 for the central patch; 10 for the mean of the ten views' softmax outputs (section 4.1).
      class_ids: by label; by default the source's own.

    Raises:
      UserError: the weights have no classifier, or one for another number of classes.
    """
    if loaded.missing:
        raise UserError(f"{loaded.path}: has no {', '.join(loaded.missing)}, so it cannot name classes")
    ids = tuple(source.class_ids if class_ids is None else class_ids)
    if loaded.model.num_classes != len(ids):
        raise UserError(
            f"{loaded.path}: a net for {loaded.model.num_classes} classes, but {source.description} has "
            f"{len(ids)}; test it on images of its own classes"
        )
    mesh = columns.make_mesh()
    share = mesh.shape[columns.DATA]
    group = -(-GROUP // share) * share
    params = jax.device_put(loaded.variables["params"], NamedSharding(mesh, columns.PARAMETERS))
    predict_on_mesh = evaluate.make_predict(loaded.model, mesh, loaded.preprocess, views)
    step = jax.jit(predict_on_mesh, compiler_options=host.forward_options())
    probabilities = np.full((len(source), len(ids)), 1 / len(ids), np.float32)
    labels, bad = np.zeros(len(source), np.int32), np.zeros(len(source), bool)
    with progress.bar(len(source), "image", str(loaded.path)) as bar:
        for index, its, images in _groups(source, loaded.preprocess, group):
            side = loaded.preprocess.resize_size
            batch = np.zeros((group, side, side, 3), np.uint8)
            for place, image in enumerate(images):
                if image is None:
                    bad[index[place]] = True
                else:
                    batch[place] = image
            scores = step(params, jax.device_put(batch, steps.batch_sharding(mesh)))
            good = ~bad[index]
            probabilities[index[good]] = np.exp(np.asarray(scores))[: len(index)][good]
            labels[index] = its
            bar.update(len(index))
    names = tuple(source.name(index) for index in range(len(source)))
    return Predictions(names, labels, probabilities, bad, ids)


def _groups(
    source: Source, preprocess: Preprocess, group: int
) -> Iterator[tuple[np.ndarray, np.ndarray, list[np.ndarray | None]]]:
    """Indices, labels and decoded images, group by group, the next one already in the making."""
    with ThreadPoolExecutor() as pool:

        def begin(first: int) -> tuple[np.ndarray, np.ndarray, list[Future[np.ndarray | None]]]:
            index = np.arange(first, min(first + group, len(source)))
            encoded, labels = source.read(index)
            return index, labels, [pool.submit(preprocess.decode, data) for data in encoded]

        ahead = begin(0)
        for first in range(group, len(source) + group, group):
            index, labels, images = ahead
            if first < len(source):
                ahead = begin(first)
            yield index, labels, [image.result() for image in images]


def average(members: Sequence[Predictions], weights: Sequence[float] | None = None) -> Predictions:
    """An ensemble: the weighted mean of the members' probabilities (section 6, Table 2).

    Args:
      weights: of each member, in any unit; equal by default.

    Raises:
      UserError: the members are not of the same images and classes, or the weights make no sense.
    """
    if weights is None:
        weights = [1.0] * len(members)
    if len(weights) != len(members) or min(weights) < 0 or not sum(weights) > 0:
        raise UserError(f"{list(weights)}: give {len(members)} weights, none below 0 and not all 0")
    first = members[0]
    for number, other in enumerate(members[1:], 2):
        for what, one, its in (("images", first.ids, other.ids), ("classes", first.classes, other.classes)):
            if one != its:
                place = next(
                    (i for i, pair in enumerate(zip(one, its, strict=False)) if pair[0] != pair[1]), None
                )
                detail = (
                    f"{len(one):,} against {len(its):,}"
                    if place is None
                    else f"number {place + 1} is {one[place]} against {its[place]}"
                )
                raise UserError(f"member {number} is of other {what} than member 1: {detail}")
        if not np.array_equal(first.labels, other.labels):
            raise UserError(f"member {number} has other labels than member 1 for the same images")
    shares = np.asarray(weights, np.float64) / sum(weights)
    mean = sum(
        share * member.probabilities.astype(np.float64) for share, member in zip(shares, members, strict=True)
    )
    bad = np.any([member.bad for member in members], axis=0)
    return dataclasses.replace(first, probabilities=np.asarray(mean, np.float32), bad=bad)


def errors(predictions: Predictions) -> Errors | None:
    """Top-1 and top-5 error and loss; None where no image has a label.

    Ties count against the label, as in training (`steps.topk_errors`).
    """
    judged = ~predictions.bad & (predictions.labels != UNKNOWN)
    if not judged.any():
        return None
    labels = jnp.asarray(predictions.labels[judged])
    scores = jnp.asarray(predictions.probabilities[judged])
    own = predictions.probabilities[judged, predictions.labels[judged]].astype(np.float64)
    return Errors(
        top1_error=100.0 * float(jnp.sum(steps.topk_errors(scores, labels, 1))) / judged.sum().item(),
        top5_error=100.0 * float(jnp.sum(steps.topk_errors(scores, labels, 5))) / judged.sum().item(),
        loss=float(np.mean(-np.log(np.maximum(own, np.finfo(np.float32).tiny)))),
        examples=int(judged.sum()),
        bad_images=int(predictions.bad.sum()),
    )


# --- Files ------------------------------------------------------------------------------------------------


def save(path: pathlib.Path, predictions: Predictions) -> None:
    """Writes `.npz`, an array an attribute, or `.parquet`, with columns id, label, bad and probabilities."""
    if path.suffix == ".parquet":
        return _save_parquet(path, predictions)
    if path.suffix != ".npz":
        raise UserError(f"{path}: predictions are written as .npz or .parquet")
    arrays = {
        field.name: np.asarray(getattr(predictions, field.name)) for field in dataclasses.fields(predictions)
    }
    write_npz(path, arrays, compress=True)
    return None


def _save_parquet(path: pathlib.Path, predictions: Predictions) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(f"{path}: needs pyarrow; pip install pyarrow, or write .npz") from error
    flat = pa.array(predictions.probabilities.reshape(-1))
    table = pa.table(
        {
            "id": pa.array([name.encode("utf-8", "backslashreplace").decode() for name in predictions.ids]),
            "label": pa.array(predictions.labels),
            "bad": pa.array(predictions.bad),
            "probabilities": pa.FixedSizeListArray.from_arrays(flat, len(predictions.classes)),
        }
    ).replace_schema_metadata({"classes": json.dumps(predictions.classes)})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def holds_predictions(path: pathlib.Path) -> bool:
    """Whether a file looks like one that `save` wrote, rather than like weights."""
    if path.suffix == ".parquet":
        return True
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return "probabilities" in arrays.files
    except Exception:  # weights of whatever kind, or nothing at all: who reads them says so
        return False


def load(path: pathlib.Path) -> Predictions:
    """Reads what `save` wrote.

    Raises:
      UserError: it is not such a file.
    """
    try:
        if path.suffix == ".parquet":
            return _load_parquet(path)
        with np.load(path, allow_pickle=False) as arrays:
            names = (tuple(arrays[key].tolist()) for key in ("ids", "classes"))
            ids, classes = names
            return Predictions(ids, arrays["labels"], arrays["probabilities"], arrays["bad"], classes)
    except Exception as error:
        raise UserError(f"{path}: not a file of predictions ({error}); make it anew") from error


def _load_parquet(path: pathlib.Path) -> Predictions:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    classes = tuple(json.loads(table.schema.metadata[b"classes"]))
    flat = table["probabilities"].combine_chunks().flatten().to_numpy()
    return Predictions(
        ids=tuple(table["id"].to_pylist()),
        labels=table["label"].to_numpy(),
        probabilities=flat.reshape(-1, len(classes)),
        bad=np.asarray(table["bad"].to_pylist(), bool),
        classes=classes,
    )
