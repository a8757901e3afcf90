"""The training loop of `experiments.in_memory`."""

import inspect
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tqdm

from alexnet_jax import columns, steps
from alexnet_jax import config as configs
from alexnet_jax import train as training
from alexnet_jax.common import host
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import batches, decode, pipeline
from alexnet_jax.data.sources import Source
from alexnet_jax.run import cached_features
from alexnet_jax.run.meter import Diverged
from alexnet_jax.run.pace import is_due

CHUNK = 1000  # images decoded at a time


def load(source: Source, data: configs.DataConfig, say: Callable[[str], None]) -> steps.Batch:
    """All images of a source in its order: a batch of uint8 `[N, S, S, 3]`; bad ones have weight 0.

    Args:
      say: called with a line for each unreadable image.

    Raises:
      UserError: more of them are unreadable than `data.max_bad_fraction`.
    """
    decode.set_up()
    chunks = np.array_split(np.arange(len(source)), -(-len(source) // CHUNK))
    parts = [
        pipeline.load_batch(source, chunk, data.resize_size)
        for chunk in tqdm.tqdm(chunks, "reading", unit_scale=CHUNK, unit="image", disable=None)
    ]
    images: Any = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    bad = list(batches.bad_images(images, source, set()))
    for line in bad:
        say(line)
    if len(bad) > data.max_bad_fraction * len(source):
        raise batches.too_many_bad(data, len(bad), f"{len(source)} images")
    del images["index"]
    return images


def one_by_one(run: training.Run) -> Any:
    """As `scanned`, step by step, for CPUs: there XLA's convolutions in a loop take thirty times as long."""

    def block(state: steps.TrainState, images: steps.Batch, indices: np.ndarray) -> Any:
        metrics: steps.Metrics = {}
        for chosen in indices:
            batch = {key: values[chosen] for key, values in images.items()}
            state, metrics = run.train_step(state, jax.device_put(batch, steps.batch_sharding(run.mesh)))
            jax.block_until_ready(metrics)
        return state, metrics

    return block


def scanned(run: training.Run) -> Any:
    """Compiles `(state, images, indices) -> (state, metrics)`: a step for each row of `indices` `[n, B]`."""

    one_step = inspect.unwrap(run.train_step)  # not jitted, since JAX takes options for whole programs only
    by_device = steps.batch_sharding(run.mesh)

    def block(state: steps.TrainState, images: steps.Batch, indices: jax.Array) -> Any:
        def step(state: steps.TrainState, chosen: jax.Array) -> Any:
            batch = jax.tree.map(lambda x: x[chosen], images)
            return one_step(state, jax.lax.with_sharding_constraint(batch, by_device))

        state, metrics = jax.lax.scan(step, state, indices)
        return state, jax.tree.map(lambda values: values[-1], metrics)

    replicated = jax.sharding.NamedSharding(run.mesh, columns.REPLICATED)
    shardings = steps.state_shardings(run.mesh), replicated
    return jax.jit(block, out_shardings=shardings, donate_argnums=0, compiler_options=host.eigen_options())


def train(config: configs.Config, workdir: pathlib.Path) -> str:
    """As `alexnet_jax.train.train`, in one process."""
    if jax.process_count() > 1:
        raise UserError("experiments.in_memory is for one process; use main.py")
    if cached_features.is_frozen(config):
        raise UserError(
            "optimizer.layer_rates: with frozen convolutions the features of the images are in memory, not "
            "the images; use main.py"
        )
    with training.open_session(config, workdir) as session:
        run, record, log = session.run, session.record, session.log
        data, every = config.data, config.run.log_every_steps
        replicated = jax.sharding.NamedSharding(run.mesh, columns.REPLICATED)
        images = jax.device_put(load(run.source, data, log.say), replicated)
        on_cpu = run.mesh.devices.flat[0].platform == "cpu"
        block, step = one_by_one(run) if on_cpu else scanned(run), int(session.state.step)
        if run.evaluates_at(step) and record.evaluated_step != step:  # interrupted before this evaluation
            training.evaluate_and_log(session, step)
        log.phase("compiling the training step")
        since = time.monotonic(), step
        while step < run.total_steps and not record.plateau.finished and not session.stop.wanted():
            ends = [step - step % n + n for n in (every, run.eval_every, run.save_every) if n]
            end = min(*ends, run.total_steps)
            count = every if end - step == every and not on_cpu else 1  # two programs for any number
            order = [
                pipeline.batch_indices(s, len(run.source), data.batch_size, config.run.seed, data.order)
                for s in range(step, step + count)
            ]
            session.state, metrics = block(session.state, images, np.stack(order))
            step += count
            log.advance(step, run.epoch(step))
            if is_due(step, every) or step == run.total_steps:
                values = {f"train/{key}": float(value) for key, value in jax.device_get(metrics).items()}
                if not np.isfinite(values["train/loss"]):
                    raise Diverged(f"the loss is {values['train/loss']} at step {step}")
                rates = record.learning_rates(run.rates, step)
                values["train/learning_rate"], values["train/learning_rate_biases"] = rates
                images_done = data.batch_size * (step - since[1])
                values["train/images_per_second"] = images_done / (time.monotonic() - since[0])
                log.metrics(step, run.epoch(step), values)
                since = time.monotonic(), step
            if run.evaluates_at(step):
                try:
                    training.evaluate_and_log(session, step)
                except UserError:  # too many unreadable images; once they are fixed, the run resumes here
                    session.save(step, last=True)
                    raise
                since = time.monotonic(), step
            if is_due(step, run.save_every) or record.best_step == step:
                session.save(step)
        session.save(step, last=True)
        ended = step == run.total_steps or record.plateau.finished
        if ended and (record.evaluated_step == step or not run.evaluates_at(step)):
            session.finish("done", step)
        else:
            session.finish("interrupted", step, f"by {session.stop.reason}")
    return session.outcome
