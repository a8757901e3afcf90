"""The training step, a pure function of a state and a batch: `jax.jit` with shardings around `shard_map`.

All randomness in a step derives from (seed, step, position in the global batch), so a resumed run draws the
same numbers, on any number of devices.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from alexnet_jax import columns
from alexnet_jax.common import host
from alexnet_jax.common.errors import UserError
from alexnet_jax.model import AlexNet

Array = jax.Array
Batch = dict[str, Array]  # image uint8 [B, S, S, 3], label int32 [B], weight float32 [B]
Metrics = dict[str, Array]

_INIT, _STEPS = 0, 1  # folded into the seed: for the initial weights, for randomness in steps


class TrainState(flax.struct.PyTreeNode):
    """Everything a step changes."""

    step: Array  # int32, steps done
    params: Any  # the net's parameters, with a leading axis of columns
    opt_state: Any  # the momentum, with the parameters' shapes
    drops: Array  # int32, how often the plateau rule has lowered the learning rate
    bad_images: Array  # int32, unreadable images so far
    sums: Metrics  # metrics summed since the last logged step, and `steps`, the number of steps summed


def fresh_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, with the given parameters."""
    sums = {key: jnp.float32(0) for key in ("loss", "top1_error", "steps")}
    counts = {name: jnp.int32(0) for name in ("step", "drops", "bad_images")}
    return TrainState(params=params, opt_state=optimizer.init(params), sums=sums, **counts)


def init_state(
    model: AlexNet, optimizer: optax.GradientTransformation, image_size: int, seed: int, mesh: Mesh
) -> TrainState:
    """A fresh state, placed on the mesh; the values do not depend on the mesh."""

    def init(key: Array) -> TrainState:
        images = jnp.zeros((1, image_size, image_size, 3))
        return fresh_state(model.init(key, images)["params"], optimizer)

    return jax.jit(init, out_shardings=state_shardings(mesh))(jax.random.fold_in(jax.random.key(seed), _INIT))


def state_shardings(mesh: Mesh) -> Any:
    """The sharding of each part of a `TrainState`: parameters and momentum by column, the rest replicated."""
    by_column, same = NamedSharding(mesh, columns.PARAMETERS), NamedSharding(mesh, columns.REPLICATED)
    parts: dict[str, Any] = dict.fromkeys(("step", "drops", "bad_images", "sums"), same)
    return TrainState(**parts, params=by_column, opt_state=by_column)


def abstract_state(init: Callable[[], TrainState], mesh: Mesh) -> TrainState:
    """The shapes, dtypes and shardings of the state that `init` makes."""
    shapes = jax.eval_shape(init)
    shardings = jax.tree.broadcast(state_shardings(mesh), shapes)
    return jax.tree.map(lambda x, sharding: x.update(sharding=sharding), shapes, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of each array of a batch: split over the data axis, replicated over the columns."""
    return NamedSharding(mesh, columns.BATCH)


def check_columns(model: AlexNet, mesh: Mesh) -> None:
    """Raises `UserError` if the columns do not divide over the mesh's column axis."""
    shards = mesh.shape[columns.COLUMN]
    if model.columns % shards:
        raise UserError(f"mesh.column={shards}: does not divide the {model.columns} column(s) of the net")


def forward_on_mesh(model: AlexNet, mesh: Mesh, view: Callable[..., Array], *, train: bool) -> Callable:
    """The net over the mesh: `forward(params, images, key, example_ids)` returns logits `[B, num_classes]`.

    `view(images, key, example_ids)` turns a device's uint8 images into float32 inputs; random numbers are
    keyed by `key` and `example_ids` `[B]`.
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
    """The sum over the examples of -log softmax at the label (section 3.5), by weight."""
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, labels) * weights)


def topk_errors(scores: Array, labels: Array, k: int) -> Array:
    """1 where the label is not among the `k` best of `scores` `[B, classes]`, else 0.

    Ties count against the label: a net with equal scores for all classes is always wrong unless `k` covers
    all classes. A NaN score at the label counts as an error.
    """
    own = jnp.take_along_axis(scores, labels[:, None], axis=-1)
    others = jnp.arange(scores.shape[-1]) != labels[:, None]
    ahead = jnp.sum(others & ~(scores < own), axis=-1)
    return ((ahead >= k) | jnp.isnan(own[:, 0])).astype(jnp.float32)


def batch_sums(scores: Array, batch: Batch, ks: tuple[int, ...]) -> Metrics:
    """Sums over a batch's readable images: `loss`, `top<k>_errors` for each of `ks`, `examples`.

    `scores` are logits or log probabilities, `[B, num_classes]`.
    """
    labels, weights = batch["label"], batch["weight"]
    errors = {f"top{k}_errors": jnp.sum(topk_errors(scores, labels, k) * weights) for k in ks}
    loss, examples = cross_entropy(scores, labels, weights), jnp.sum(weights)
    return {"loss": loss, **errors, "examples": examples}


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
    """Compiles `train_step(state, batch) -> (state, metrics)`; the old state is donated.

    Args:
      view: augments the images, `view(images, key, example_ids, step=...)`, such as `augment.Augment`.
      log_every: steps over which `loss` and `top1_error` (of the batch, in %) are averaged; their sums in the
        state survive interruptions. The third of the metrics is `bad_images`, a count since the start.
      micro_batches: parts of the batch computed one after another, which saves activation memory and costs
        one more set of gradients.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STEPS), state.step)
        forward = forward_on_mesh(model, mesh, functools.partial(view, step=state.step), train=True)

        def loss_and_sums(params: Any, part: Batch) -> tuple[Array, Metrics]:
            sums = batch_sums(forward(params, part["image"], key, part["id"]), part, ks=(1,))
            return sums["loss"], {**sums, "bad_images": jnp.sum(part["weight"] == 0, dtype=jnp.float32)}

        gradient = functools.partial(jax.grad(loss_and_sums, has_aux=True), state.params)
        if micro_batches > 1:
            gradient = functools.partial(sum_over_parts, gradient, parts=micro_batches, mesh=mesh)
        # Sums metrics together with the gradients (one all-reduce), then divides by the number of examples.
        gradients, sums = gradient({**batch, "id": jnp.arange(batch["label"].shape[0])})
        examples = jnp.maximum(sums["examples"], 1.0)
        gradients = jax.tree.map(lambda gradient: gradient / examples, gradients)
        updates, opt_state = optimizer.update(
            gradients, state.opt_state, state.params, step=state.step, drops=state.drops
        )
        params = optax.apply_updates(state.params, updates)
        means = {"loss": sums["loss"] / examples, "top1_error": 100.0 * sums["top1_errors"] / examples}
        state, metrics = _with_metrics(state, means, sums["bad_images"], log_every)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    state, replicated = state_shardings(mesh), NamedSharding(mesh, columns.REPLICATED)
    in_shardings, out_shardings = (state, batch_sharding(mesh)), (state, replicated)
    options = {"compiler_options": host.eigen_options(), "donate_argnums": 0}
    return jax.jit(train_step, in_shardings=in_shardings, out_shardings=out_shardings, **options)


def sum_over_parts(function: Callable[[Batch], Any], batch: Batch, parts: int, mesh: Mesh) -> Any:
    """The sum of `function` over `parts` of a batch (micro-batches), computed one after another.

    Each device splits its own examples, so none moves between devices.
    """
    by_part = NamedSharding(mesh, jax.sharding.PartitionSpec(None, *columns.BATCH))

    def cut(x: Array) -> Array:
        x = x.reshape(mesh.shape[columns.DATA], parts, -1, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x.reshape(parts, -1, *x.shape[3:]), by_part)

    cut_batch, total = jax.tree.map(cut, batch), None
    for number in range(parts):  # no `lax.scan`, as XLA's convolutions in a loop are far slower on CPUs
        part = jax.tree.map(lambda x: x[number], cut_batch)  # noqa: B023
        if total is not None:  # wait for the part before, by adding 0; CPUs drop `lax.optimization_barrier`
            failed = jnp.stack([jnp.isnan(x).any() for x in jax.tree.leaves(total)]).any()
            part["image"] = part["image"] + failed.astype(part["image"].dtype)
        found = function(part)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    return total


def _with_metrics(
    state: TrainState, means: Metrics, bad_images: Array, log_every: int
) -> tuple[TrainState, Metrics]:
    """Adds a batch's metrics to the state; also returns the means since the last multiple of `log_every`."""
    first = state.step % log_every == 0
    sums = {k: jnp.where(first, 0, state.sums[k]) + v for k, v in {**means, "steps": 1.0}.items()}
    total = state.bad_images + bad_images.astype(jnp.int32)
    metrics = {key: sums[key] / sums["steps"] for key in means}
    return state.replace(bad_images=total, sums=sums), {**metrics, "bad_images": total}
