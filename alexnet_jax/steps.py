"""The training and the evaluation step, as pure functions of a state and a batch.

Everything random in a step follows from (seed, step, place in the global batch): a resumed run draws what
the uninterrupted one would have drawn, on any number of devices.
"""

import collections
import time
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from alexnet_jax import columns
from alexnet_jax.common.errors import UserError
from alexnet_jax.model import AlexNet

Array = jax.Array
Batch = dict[str, Array]  # image uint8 [B, S, S, 3], label int32 [B], weight float32 [B]
Metrics = dict[str, Array]

FREED_SECONDS = 0.0005  # after which a step's memory is given back on a CPU once its results are there
_INIT, _STEPS = 0, 1  # what a seed is folded with: the initial weights, and everything random in the steps


class TrainState(flax.struct.PyTreeNode):
    """All that a step changes.

    Attributes:
      step: int32, steps done.
      params: the net's parameters, each with its leading axis of columns.
      opt_state: the optimizer's, momentum in the shape of the parameters.
      drops: int32, how often the plateau rule lowered the learning rate.
      rate_scale: float32, by which all rates are multiplied; below 1 after a step back from divergence.
      bad_images: int32, images that could not be read so far.
      sums: the metrics added up, and `steps`, how many, since they were last logged.
    """

    step: Array
    params: Any
    opt_state: Any
    drops: Array
    rate_scale: Array
    bad_images: Array
    sums: Metrics


def fresh_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state of a net with these parameters before its first step."""
    sums = {key: jnp.float32(0) for key in ("loss", "top1_error", "steps")}
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(params),
        drops=jnp.int32(0),
        rate_scale=jnp.float32(1),
        bad_images=jnp.int32(0),
        sums=sums,
    )


def init_state(
    model: AlexNet, optimizer: optax.GradientTransformation, image_size: int, seed: int, mesh: Mesh
) -> TrainState:
    """A fresh state, placed on the mesh; the same numbers on any mesh."""

    def init(key: Array) -> TrainState:
        images = jnp.zeros((1, image_size, image_size, 3))
        return fresh_state(model.init(key, images)["params"], optimizer)

    return jax.jit(init, out_shardings=state_shardings(mesh))(jax.random.fold_in(jax.random.key(seed), _INIT))


def state_shardings(mesh: Mesh) -> Any:
    """Where each part of a `TrainState` lies: parameters and momentum by column, the rest everywhere."""
    by_column: Any = NamedSharding(mesh, columns.PARAMETERS)
    everywhere: Any = NamedSharding(mesh, columns.REPLICATED)
    return TrainState(
        step=everywhere,
        params=by_column,
        opt_state=by_column,
        drops=everywhere,
        rate_scale=everywhere,
        bad_images=everywhere,
        sums=everywhere,
    )


def abstract_state(init: Callable[[], TrainState], mesh: Mesh) -> TrainState:
    """The shapes, dtypes and shardings of the state that `init` would give."""

    def place(sharding: NamedSharding, part: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), part)

    return jax.tree.map(place, state_shardings(mesh), jax.eval_shape(init))


class InFlight:
    """How far the host runs ahead of the devices: two steps wait while one runs, so that no device waits.

    On a CPU not at all: nothing is gained there, and a step takes its memory when it is dispatched. The
    paper's net at batch 128 took 10.4 GB with two steps ahead, at 38 to 52 images/s for the new pages, and
    3.3 GB at 65 images/s with none.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._on_cpu = mesh.devices.flat[0].platform == "cpu"
        self._most = 0 if self._on_cpu else 2
        self._results: collections.deque[Any] = collections.deque()

    def make_room(self) -> None:
        """Waits, before a step is dispatched, until few enough are under way."""
        while len(self._results) > self._most:
            jax.block_until_ready(self._results.popleft())
            if self._on_cpu:
                time.sleep(FREED_SECONDS)

    def add(self, result: Any) -> None:
        """Takes what a step gives that has just been dispatched."""
        self._results.append(result)

    def is_idle(self) -> bool:
        """Whether the devices have done all that was dispatched."""
        return all(leaf.is_ready() for leaf in jax.tree.leaves(list(self._results)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Where each array of a batch lies: split over the data axis, the same for both columns."""
    return NamedSharding(mesh, columns.BATCH)


def check_columns(model: AlexNet, mesh: Mesh) -> None:
    """Raises `UserError` where the columns cannot be shared out evenly over the mesh's column axis."""
    shards = mesh.shape[columns.COLUMN]
    if model.columns % shards:
        raise UserError(
            f"mesh.column={shards}: the {model.columns} column(s) of the net do not lie evenly over it"
        )


def forward_on_mesh(model: AlexNet, mesh: Mesh, view: Callable[..., Array], *, train: bool) -> Callable:
    """The net over the mesh, from stored images to logits.

    Args:
      view: makes float32 net inputs of this device's uint8 images: `view(images, key, example_ids)`.

    Returns:
      `forward(params, images, key, example_ids)`: logits `[B, num_classes]` of the whole batch, split
      over the data axis; `key` draws what is random, by `example_ids` `[B]`.

    Raises:
      UserError: the columns of the net cannot be shared out evenly over the mesh's column axis.
    """
    check_columns(model, mesh)
    shards = mesh.shape[columns.COLUMN]
    local = model.clone(column_axis=columns.COLUMN if shards > 1 else None, column_shards=shards)

    def forward(params: Any, images: Array, key: Array, example_ids: Array) -> Any:
        view_key, dropout_key = jax.random.split(key)
        x = view(images, view_key, example_ids)
        rngs = {"dropout": dropout_key} if train else None
        return local.apply({"params": params}, x, train=train, example_ids=example_ids, rngs=rngs)

    specs = (columns.PARAMETERS, columns.BATCH, columns.REPLICATED, columns.BATCH)
    return columns.on_mesh(forward, mesh, specs, columns.BATCH)


def cross_entropy(logits: Array, labels: Array, weights: Array) -> Array:
    """Mean over the examples with weight of -log softmax at the label (section 3)."""
    return summed_cross_entropy(logits, labels, weights) / jnp.maximum(jnp.sum(weights), 1.0)


def summed_cross_entropy(logits: Array, labels: Array, weights: Array) -> Array:
    """Sum over the examples with weight of -log softmax at the label."""
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, labels) * weights)


def topk_errors(scores: Array, labels: Array, k: int) -> Array:
    """1 where the label is not among the `k` best of `scores` `[B, classes]`, else 0.

    Ties count against the label, so that a net that says the same of every class is never right, unless
    `k` takes in all classes; a label whose score is NaN is wrong.
    """
    own = jnp.take_along_axis(scores, labels[:, None], axis=-1)
    others = jnp.arange(scores.shape[-1]) != labels[:, None]
    ahead = jnp.sum(others & ~(scores < own), axis=-1)
    return ((ahead >= k) | jnp.isnan(own[:, 0])).astype(jnp.float32)


def make_train_step(
    model: AlexNet,
    optimizer: optax.GradientTransformationExtraArgs,
    mesh: Mesh,
    view: Callable[..., Array],
    *,
    seed: int,
    log_every: int,
    micro_batches: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compiles `train_step(state, batch) -> (state, metrics)`; the old state is given up (donated).

    Args:
      view: what the net reads of a batch's images, `view(images, key, example_ids, step=...)`: a random view
        of each (`build.build_view`), or what a trunk at rest made of it (`trunk.view`).
      micro_batches: parts of the batch that are computed one after another, with the gradient of the whole:
        the activities of one part at a time are in memory, and one more set of gradients. Each part's
        gradients are summed over the devices by themselves.
      log_every: steps over which metrics are averaged; the sums live in the state, so that a run that was
        interrupted between two lines of its log writes the same ones.

    The metrics are scalars: means since the last multiple of `log_every` of `loss` and of the batch's
    `top1_error` in %, and `bad_images` so far.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STEPS), state.step)
        example_ids = jnp.arange(batch["label"].shape[0])
        forward = forward_on_mesh(model, mesh, lambda *args: view(*args, step=state.step), train=True)

        def sums_of(params: Any, part: Batch) -> tuple[Array, Metrics]:
            logits = forward(params, part["image"], key, part["id"])
            labels, weights = part["label"], part["weight"]
            loss = summed_cross_entropy(logits, labels, weights)
            return loss, {
                "loss": loss,
                "top1_error": 100.0 * jnp.sum(topk_errors(logits, labels, 1) * weights),
                "examples": jnp.sum(weights),
                "bad_images": jnp.sum(weights == 0, dtype=jnp.float32),
            }

        gradient_of = jax.grad(sums_of, has_aux=True)
        # All that is summed over the batch is summed with the gradients, in no all-reduce of its own; its
        # division comes after.
        gradients, total = _sum_over_parts(
            lambda part: gradient_of(state.params, part),
            {**batch, "id": example_ids},
            micro_batches,
            mesh,
        )
        examples = jnp.maximum(total["examples"], 1.0)
        gradients = jax.tree.map(lambda gradient: gradient / examples, gradients)
        updates, opt_state = optimizer.update(
            gradients,
            state.opt_state,
            state.params,
            step=state.step,
            drops=state.drops,
            rate_scale=state.rate_scale,
        )
        params = optax.apply_updates(state.params, updates)

        now = {
            "loss": total["loss"] / examples,
            "top1_error": total["top1_error"] / examples,
            "steps": jnp.float32(1),
        }
        begin = state.step % log_every == 0
        sums = {key: jnp.where(begin, 0, state.sums[key]) + value for key, value in now.items()}
        bad_images = state.bad_images + total["bad_images"].astype(jnp.int32)
        metrics = {key: sums[key] / sums["steps"] for key in ("loss", "top1_error")}
        state = state.replace(
            step=state.step + 1, params=params, opt_state=opt_state, bad_images=bad_images, sums=sums
        )
        return state, {**metrics, "bad_images": bad_images}

    shardings, everywhere = state_shardings(mesh), NamedSharding(mesh, columns.REPLICATED)
    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )


def _sum_over_parts(function: Callable[[Batch], Any], batch: Batch, parts: int, mesh: Mesh) -> Any:
    """The sum of what `function` gives for each of so many parts of the batch, one after another.

    Each device's examples are cut by themselves, so that none changes places.
    """
    if parts == 1:
        return function(batch)
    devices = mesh.shape[columns.DATA]

    def cut(x: Array) -> Array:
        x = x.reshape(devices, parts, -1, *x.shape[1:]).swapaxes(0, 1).reshape(parts, -1, *x.shape[1:])
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, columns.PART))

    def add(total: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    cut_batch = jax.tree.map(cut, batch)
    result = jax.eval_shape(function, jax.tree.map(lambda x: x[0], cut_batch))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), result)
    return jax.lax.scan(add, nothing, cut_batch)[0]


@jax.jit
def all_finite(tree: Any) -> Array:
    """Whether every number in `tree` is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))
