"""Testing as in the paper: top-1 and top-5 error in %, one or ten views of every example once."""

import dataclasses
import functools
import math
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from alexnet_jax import columns, steps
from alexnet_jax import config as configs
from alexnet_jax.common import host, progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import pipeline, sources
from alexnet_jax.data.preprocess import Preprocess
from alexnet_jax.data.statistics import ILSVRC, Statistics
from alexnet_jax.model import AlexNet
from alexnet_jax.run import checkpoint, processes
from alexnet_jax.weights import pretrained

HostBatch = dict[str, np.ndarray]

# What may be said of the test of a trained net: on what, and how, not which net.
FOR_TESTING = ("data.source", "data.batch_size", "run.eval_views")


@dataclasses.dataclass(frozen=True)
class Result:
    """Errors in %, mean cross entropy, over `examples` readable images seen in `views` views each."""

    top1_error: float
    top5_error: float
    loss: float
    views: int
    examples: int
    bad_images: int


def on_device(batches: Iterable[HostBatch], mesh: Mesh) -> Iterator[tuple[HostBatch, steps.Batch]]:
    """Each host batch and its arrays on the mesh, the next one already under way."""
    sharding, (_, shares) = steps.batch_sharding(mesh), columns.process_slice(mesh)
    ahead = None
    for batch in batches:
        placed = {
            key: jax.make_array_from_process_local_data(
                sharding, batch[key], (len(batch[key]) * shares, *batch[key].shape[1:])
            )
            for key in ("image", "label", "weight")
        }
        if ahead is not None:
            yield ahead
        ahead = batch, placed
    if ahead is not None:
        yield ahead


def bad_images(batch: HostBatch, source: sources.Source, named: set[int]) -> Iterator[str]:
    """A line for each image of a host's batch that cannot be read and is not in `named`, where it goes."""
    for index in batch["index"][batch["weight"] == 0].tolist():
        if index >= 0 and index not in named:  # -1 fills up the last batch of a test
            named.add(index)
            yield f"bad image, left out: {source.name(index)}"


def check_batch_size(batch_size: int, mesh: Mesh, micro_batches: int = 1) -> None:
    """Raises `UserError` where the batch does not split over the mesh, or its share into micro-batches."""
    parts = mesh.shape[columns.DATA]
    if batch_size % parts:
        raise UserError(
            f"data.batch_size={batch_size}: does not divide over the {parts} devices of mesh.data; "
            f"use a multiple, such as {-(-batch_size // parts) * parts}"
        )
    if batch_size // parts % micro_batches:
        raise UserError(
            f"data.micro_batches={micro_batches}: does not divide the {batch_size // parts} images of a "
            "batch that each device of mesh.data has"
        )


def log_probabilities(
    logits_of: Callable[[jax.Array], jax.Array], images: jax.Array, preprocess: Preprocess, views: int
) -> jax.Array:
    """The log of the mean of the views' softmax outputs (section 4.1): `[B, num_classes]`.

    Args:
      logits_of: the net, from `[B, S, S, 3]` in its own input range to `[B, num_classes]`.
      images: uint8 `[B, R, R, 3]`, where R is `preprocess.resize_size`.
      views: 1 for the central patch, 10 for the paper's four corners, centre, and their mirrors.
    """
    if views == 1:
        return jax.nn.log_softmax(logits_of(preprocess.view(images)))
    by_view = jax.lax.map(lambda x: jax.nn.log_softmax(logits_of(x)), preprocess.ten_views(images))
    # Without leaving logs: a small mean probability would become 0 and its loss infinite.
    return jax.nn.logsumexp(by_view, axis=0) - math.log(views)


def make_predict(
    model: AlexNet, mesh: Mesh, preprocess: Preprocess, views: int
) -> Callable[[Any, jax.Array], jax.Array]:
    """Gives `predict(params, images)`, the `log_probabilities` of images that are split over the mesh."""

    def no_view(images: jax.Array, key: jax.Array, example_ids: jax.Array) -> jax.Array:
        return images

    forward = steps.forward_on_mesh(model, mesh, no_view, train=False)

    def predict(params: Any, images: jax.Array) -> jax.Array:
        key, example_ids = jax.random.key(0), jnp.arange(images.shape[0])  # nothing is random here
        return log_probabilities(lambda x: forward(params, x, key, example_ids), images, preprocess, views)

    return predict


def make_eval_step(
    model: AlexNet, mesh: Mesh, preprocess: Preprocess, views: int
) -> Callable[[Any, steps.Batch], steps.Metrics]:
    """Compiles `eval_step(params, batch)`: sums over the examples with weight.

    `loss`, `top1_errors`, `top5_errors` and `examples`, by the probabilities of `make_predict`.
    """
    predict = make_predict(model, mesh, preprocess, views)

    def eval_step(params: Any, batch: steps.Batch) -> steps.Metrics:
        scores = predict(params, batch["image"])
        labels, weights = batch["label"], batch["weight"]
        losses = -jnp.take_along_axis(scores, labels[:, None], axis=-1)[:, 0]
        return {
            "loss": jnp.sum(losses * weights),
            "top1_errors": jnp.sum(steps.topk_errors(scores, labels, 1) * weights),
            "top5_errors": jnp.sum(steps.topk_errors(scores, labels, 5) * weights),
            "examples": jnp.sum(weights),
        }

    replicated = NamedSharding(mesh, columns.REPLICATED)
    return jax.jit(eval_step, out_shardings=replicated, compiler_options=host.forward_options())


def make_evaluator(
    config: configs.Config, model: AlexNet, mesh: Mesh, source: sources.Source, preprocess: Preprocess
) -> Callable[..., Result | None]:
    """Gives `evaluate(params)`, which tests the net on all of `source`.

    With `show_progress=True` there is a bar; the function `stop=` is asked at each batch whether to break
    off, and then the result is None; `say=` takes a line for each image that cannot be read, once. More of
    those than `data.max_bad_fraction` are a `UserError`.
    """
    views, (share, shares) = config.run.eval_views, columns.process_slice(mesh)
    eval_step = make_eval_step(model, mesh, preprocess, views)
    named: set[int] = set()

    def evaluate(
        params: Any,
        *,
        show_progress: bool = False,
        stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda line: None,
    ) -> Result | None:
        batches = pipeline.eval_batches(
            source,
            batch_size=config.data.batch_size,
            resize_size=config.data.resize_size,
            host_index=share,
            host_count=shares,
        )
        count = -(-len(source) // config.data.batch_size)
        shown = show_progress and processes.is_first()
        bar = progress.bar(count, "batch", "test", disable=not shown)
        sums: steps.Metrics | None = None
        in_flight = steps.InFlight(mesh)
        in_flight.add(params)  # the training step that they come from may still run
        with bar:
            for host, batch in on_device(batches, mesh):
                if stop():
                    return None
                for line in bad_images(host, source, named):
                    say(line)
                in_flight.make_room()
                new = eval_step(params, batch)
                sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
                in_flight.add(sums)
                bar.update()
        assert sums is not None  # sources have at least one example
        total = {key: float(value) for key, value in jax.device_get(sums).items()}
        examples = int(total["examples"])
        bad = len(source) - examples
        if not examples or bad > config.data.max_bad_fraction * len(source):
            raise UserError(
                f"data.source={config.data.source}: {bad} of {len(source)} test images could not be read, "
                f"more than data.max_bad_fraction={config.data.max_bad_fraction}; mend those named above, or "
                "raise it"
            )
        return Result(
            top1_error=100.0 * total["top1_errors"] / examples,
            top5_error=100.0 * total["top5_errors"] / examples,
            loss=total["loss"] / examples,
            views=views,
            examples=examples,
            bad_images=bad,
        )

    return evaluate


def evaluate_workdir(config: configs.Config, workdir: pathlib.Path) -> tuple[Result, int]:
    """Tests a run's newest checkpoint: the result and the checkpoint's step.

    Args:
      config: the run's own, but for the keys that say on what and how it is tested (`FOR_TESTING`).

    Raises:
      UserError: there is no checkpoint, the data are not to be had, or the net would be another one.
    """
    own = configs.of_workdir(workdir)
    different = configs.differences(own, config)
    if different := [line for line in different if line.split(":")[0] not in FOR_TESTING]:
        raise UserError(
            f"--workdir={workdir}: a net is tested as it was trained ({'; '.join(different)}); only "
            f"{', '.join(FOR_TESTING)} and mesh can be others"
        )
    mesh = columns.make_mesh(config.mesh.data, config.mesh.column)
    check_batch_size(config.data.batch_size, mesh)
    source, trained = open_source(config, "test"), pretrained.read_description(workdir)
    if source.num_classes != trained.model.num_classes:
        raise UserError(
            f"data.source={config.data.source}: has {source.num_classes} classes, but the net of {workdir} "
            f"was trained on the {trained.model.num_classes} of {own.data.source}"
        )
    preprocess = trained.preprocess.resized(config.data.resize_size, config.data.image_size)
    model = configs.build_model(config, source.num_classes)
    params, step = checkpoint.restore_params(workdir, NamedSharding(mesh, columns.PARAMETERS))
    evaluate = make_evaluator(config, model, mesh, source, preprocess)
    result = evaluate(params, show_progress=True, say=functools.partial(print, file=sys.stderr))
    assert result is not None  # nothing breaks it off
    return result, step


def open_source(config: configs.Config, split: str) -> sources.Source:
    """The config's `train` or `test` images.

    Raises:
      UserError: they are not to be had, are of another number of classes than the config says, or are not
        the same for all processes.
    """
    source = sources.open_source(config.data.source, split, data_dir=config.data.data_dir)
    if config.data.num_classes not in (None, source.num_classes):
        raise UserError(
            f"data.num_classes={config.data.num_classes}: data.source={config.data.source} has "
            f"{source.num_classes} classes; correct one of them"
        )
    found = f"{len(source):,} {split} images of {source.num_classes} classes"
    if (first := processes.from_first(found)) != found:
        raise UserError(
            f"data.source={config.data.source}: has {found} here, but {first} for process 0; give all "
            "processes the same images"
        )
    return source


def statistics_of(source: sources.Source) -> Statistics:
    """The source's own statistics, or the authors' for ILSVRC where it has none."""
    return ILSVRC if source.statistics is None else source.statistics
