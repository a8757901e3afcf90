"""Evaluation as in the paper: top-1 and top-5 error in %, each example counted once, one or ten views."""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from alexnet_jax import columns, steps
from alexnet_jax import config as configs
from alexnet_jax.common import host, progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import pipeline
from alexnet_jax.data.batches import bad_images, check_batch_size, on_device, process_slice, too_many_bad
from alexnet_jax.data.preprocess import Preprocess
from alexnet_jax.data.sources import Source
from alexnet_jax.model import AlexNet
from alexnet_jax.run import checkpoint, processes
from alexnet_jax.run.inputs import open_images
from alexnet_jax.run.pace import InFlight
from alexnet_jax.weights import pretrained

# Config keys that may differ from the training's with --mode=eval, besides those that MAY_CHANGE.
FOR_TESTING = ("data.source", "data.batch_size", "run.eval_views")


@dataclasses.dataclass(frozen=True)
class Result:
    """Errors in % and mean cross entropy over `examples` readable images, `views` views each."""

    top1_error: float
    top5_error: float
    loss: float
    views: int
    examples: int
    bad_images: int


def log_probabilities(
    logits_of: Callable[[jax.Array], jax.Array], images: jax.Array, preprocess: Preprocess, views: int
) -> jax.Array:
    """The log of the mean of the views' softmax outputs (section 4.1): `[B, num_classes]`.

    Args:
      logits_of: the net, from preprocessed `[B, S, S, 3]` to `[B, num_classes]`.
      images: uint8 `[B, R, R, 3]`, where R is `preprocess.resize_size`.
      views: how many, 1, 9 or 10, as in `augment.views`.
    """
    if views == 1:
        return jax.nn.log_softmax(logits_of(preprocess.view(images)))
    by_view = jax.lax.map(lambda x: jax.nn.log_softmax(logits_of(x)), preprocess.views(images, views))
    # Stay in log space: a small mean probability would underflow to 0 and make the loss infinite.
    return jax.nn.logsumexp(by_view, axis=0) - math.log(views)


def make_predict(
    model: AlexNet, mesh: Mesh, preprocess: Preprocess, views: int, labels: np.ndarray | None = None
) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns `predict(params, images)`: `log_probabilities` on the mesh, of all classes or of `labels`."""
    forward = steps.forward_on_mesh(model, mesh, lambda images, *_: images, train=False)
    chosen = slice(None) if labels is None else labels  # int [K]; the softmax is over these logits alone

    def predict(params: Any, images: jax.Array) -> jax.Array:
        rest = jax.random.key(0), jnp.arange(images.shape[0])  # nothing is random here
        return log_probabilities(lambda x: forward(params, x, *rest)[:, chosen], images, preprocess, views)

    return predict


def make_eval_step(
    model: AlexNet, mesh: Mesh, preprocess: Preprocess, views: int, labels: np.ndarray | None = None
) -> Callable[[Any, steps.Batch], steps.Metrics]:
    """Compiles `eval_step(params, batch)`, the `steps.batch_sums` of the loss, top-1 and top-5 errors."""
    predict = make_predict(model, mesh, preprocess, views, labels)

    def eval_step(params: Any, batch: steps.Batch) -> steps.Metrics:
        return steps.batch_sums(predict(params, batch["image"]), batch, ks=(1, 5))

    replicated = NamedSharding(mesh, columns.REPLICATED)
    return jax.jit(eval_step, out_shardings=replicated, compiler_options=host.eigen_options())


class Evaluator:
    """Tests a net on all images of a source; call it with parameters to get a `Result`."""

    def __init__(
        self, config: configs.Config, mesh: Mesh, source: Source, eval_step: Callable[..., steps.Metrics]
    ):
        self._config, self._mesh, self._source, self._eval_step = config, mesh, source, eval_step
        self._named: set[int] = set()

    def __call__(
        self,
        params: Any,
        *,
        stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda line: None,
    ) -> Result | None:
        """Errors and loss over all images; None if `stop`, called at each batch, ends the evaluation.

        Args:
          say: called with a line for each unreadable image, once per image.

        Raises:
          UserError: the fraction of unreadable images exceeds `data.max_bad_fraction`.
        """
        data = self._config.data
        sizes = {"batch_size": data.batch_size, "resize_size": data.resize_size}
        batches = pipeline.eval_batches(self._source, **sizes, host=process_slice(self._mesh))
        count = -(-len(self._source) // data.batch_size)
        in_flight = InFlight(self._mesh)
        in_flight.add(params)  # the step that computes them may still be running
        sums: Any = None
        with progress.bar(count, "batch", "testing", disable=not processes.is_first(), leave=False) as bar:
            for host_batch, batch in on_device(batches, self._mesh):
                if stop():
                    return None
                for line in bad_images(host_batch, self._source, self._named):
                    say(line)
                in_flight.make_room()
                new = self._eval_step(params, batch)
                sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
                in_flight.add(sums)
                bar.update()
        total = {key: float(value) for key, value in jax.device_get(sums).items()}
        images, examples = len(self._source), int(total["examples"])
        bad = images - examples
        if not examples or bad > data.max_bad_fraction * images:
            raise too_many_bad(data, bad, f"{images} test images")
        top1, top5 = (100.0 * total[f"top{k}_errors"] / examples for k in (1, 5))
        return Result(top1, top5, total["loss"] / examples, self._config.run.eval_views, examples, bad)


def evaluate_workdir(config: configs.Config, workdir: pathlib.Path) -> tuple[Result, int]:
    """Tests a run's newest checkpoint; returns the result and the checkpoint's step.

    Args:
      config: the run's config; only keys in `FOR_TESTING` may differ.

    Raises:
      UserError: there is no checkpoint, the images cannot be found or have classes that the net lacks, or the
        config is for another net.
    """
    lines = configs.differences(configs.of_workdir(workdir), config)
    if different := [line for key, line in lines.items() if key not in FOR_TESTING]:
        raise UserError(
            f"--workdir={workdir}: the config differs from the training's ({'; '.join(different)}); only "
            f"{', '.join(FOR_TESTING)} and mesh may differ"
        )
    mesh = columns.make_mesh(config.mesh.data, config.mesh.column)
    check_batch_size(config.data.batch_size, mesh)
    trained = pretrained.read_description(workdir)
    source = open_images(dataclasses.replace(config.data, num_classes=None), "test")
    views, labels = config.run.eval_views, trained.labels_of(source)
    preprocess = trained.preprocess.resized(config.data.resize_size, config.data.image_size)
    model = configs.build_model(config, trained.model.num_classes)
    params, step = checkpoint.restore_params(workdir, NamedSharding(mesh, columns.PARAMETERS))
    evaluate = Evaluator(config, mesh, source, make_eval_step(model, mesh, preprocess, views, labels))
    result = evaluate(params, say=progress.say)
    assert result is not None  # only `stop` makes it None
    return result, step
