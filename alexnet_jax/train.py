"""Training: build, restore, step, log, evaluate, save, finish."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from alexnet_jax import columns, evaluate, steps
from alexnet_jax import config as configs
from alexnet_jax import optimizer as optimizers
from alexnet_jax.common import paths, progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import pipeline
from alexnet_jax.data.batches import check_batch_size, process_slice
from alexnet_jax.data.sources import statistics_of
from alexnet_jax.run import cached_features, checkpoint, inputs, logs, processes, profiler, signals, status
from alexnet_jax.run import workdir as workdirs
from alexnet_jax.run.memory import batch_shapes, check_memory
from alexnet_jax.run.meter import Diverged, Meter, check_finite
from alexnet_jax.run.pace import InFlight, TrainingBatches, is_due
from alexnet_jax.run.record import Record
from alexnet_jax.weights import initial, pretrained


class Run:
    """The parts of a run, built from its config. Compiles and writes nothing.

    Raises:
      UserError: the data cannot be opened, or the parts do not fit together.
    """

    def __init__(self, config: configs.Config, workdir: pathlib.Path) -> None:
        data, run = config.data, config.run
        self.config, self.workdir = config, workdir
        self.mesh = mesh = columns.make_mesh(config.mesh.data, config.mesh.column)
        check_batch_size(data.batch_size, mesh, data.micro_batches)
        self.source, test_source = (inputs.open_images(data, split) for split in ("train", "test"))
        statistics = statistics_of(self.source)
        self.model = model = configs.build_model(config, self.source.num_classes)

        trained = initial.read_starting_point(config, workdir)
        if trained is None:
            self.preprocess = inputs.new_preprocess(config, statistics)
        else:
            self.preprocess = trained.preprocess.resized(data.resize_size, data.image_size)
        self.start = {}  # trained weights to start from, by layer; a run that resumes has its checkpoint's
        if trained is not None and trained.variables:
            self.start = initial.start_from(trained, model, self.preprocess, self.source, config.init.layers)

        size = {"num_examples": len(self.source), "batch_size": data.batch_size}
        in_steps = functools.partial(configs.in_steps, run, **size)
        steps_at = functools.partial(configs.steps_of, **size)
        self.total_steps = in_steps("total")
        self.eval_every, self.save_every = in_steps("eval_every"), in_steps("save_every")
        self.keep_every = None if run.keep_every_epochs is None else steps_at(run.keep_every_epochs)

        self.rates = optimizers.make_rates(config.optimizer, steps_at)
        optimizer = optimizers.make(config.optimizer, self.rates)
        eval_step = evaluate.make_eval_step(model, mesh, self.preprocess, run.eval_views)
        self.evaluate = evaluate.Evaluator(config, mesh, test_source, eval_step)
        fresh = (model, optimizer, data.image_size, run.seed, mesh)
        self.init_state = functools.partial(steps.init_state, *fresh)
        self.abstract_state = steps.abstract_state(self.init_state, mesh)

        view = inputs.training_view(config.augment, self.preprocess, statistics, steps_at)
        if cached_features.is_frozen(config):
            model, view = model.clone(reads="pool5"), lambda maps, *_, step: maps
        every = {"log_every": run.log_every_steps, "micro_batches": data.micro_batches}
        self.train_step = steps.make_train_step(model, optimizer, mesh, view, seed=run.seed, **every)

    def evaluates_at(self, step: int) -> bool:
        """Whether an evaluation follows `step`: every `eval_every` steps and at the end."""
        return is_due(step, self.eval_every) or step == self.total_steps

    def epoch(self, step: int) -> float:
        """Epochs completed at `step`, fractional."""
        return step * self.config.data.batch_size / len(self.source)


def open_batches(run: Run, params: Any, start_step: int) -> Iterator[pipeline.Batch]:
    """The run's batches from `start_step` on: images, or cached features."""
    data, seed = run.config.data, run.config.run.seed
    if cached_features.is_frozen(run.config):
        path = run.workdir / cached_features.file_name(data.source, run.model, params, run.preprocess)
        records = cached_features.pooled_maps(path, run.model, params, run.preprocess, run.source)
        return cached_features.batches(records, data.batch_size, seed, data.order, start_step)
    sizes = {"batch_size": data.batch_size, "resize_size": data.resize_size}
    order = {"seed": seed, "order": data.order, "start_step": start_step}
    return pipeline.train_batches(run.source, **sizes, **order, host=process_slice(run.mesh))


@dataclasses.dataclass
class Session:
    """A run in progress: state, record and outputs."""

    run: Run
    state: steps.TrainState
    record: Record
    checkpoints: checkpoint.Checkpoints
    log: logs.Log
    profile: profiler.Profile
    stop: signals.Stop
    outcome: str = "running"  # or the final status

    def save(self, step: int, *, last: bool = False) -> None:
        """Saves the state, if it is finite, with its record and the metrics before it."""
        check_finite(self.state.params, step)
        self.log.sync()
        self.checkpoints.save(step, self.state, self.record.to_json(), last=last)

    def write_status(self, name: str, step: int | None, message: str | None = None) -> None:
        """Writes `status.json`."""
        if processes.is_first():
            at = {} if step is None else {"step": step, "epoch": round(self.run.epoch(step), 4)}
            logs.write_status(self.run.workdir, name, **at, eval=self.record.evaluation, message=message)

    def finish(self, name: str, step: int | None, message: str | None = None) -> None:
        """Writes the final status; prints the result and the next commands."""
        self.write_status(name, step, message)
        length = "total_steps" if self.run.config.run.total_steps else "total_epochs"
        lines = status.farewell(self.run.workdir, name, self.record, self.run.source.num_classes, length)
        place = "" if step is None else f" after step {step:,}"
        self.log.conclude(f"{name}{place}: {message}" if message else name, *lines)
        self.outcome = name


def train(config: configs.Config, workdir: str | pathlib.Path) -> str:
    """Trains from `workdir`'s last checkpoint, if there is one, to the last step or the plateau rule's end.

    Returns the final status: `done`, `diverged`, or `interrupted` (by SIGTERM, SIGINT or `run.max_seconds`,
    after a checkpoint).

    Raises:
      UserError: the config, the data or the directory has a mistake.
      Fault: the disk is full, the directory has been removed, or memory runs out.
    """
    with open_session(config, workdir) as session:
        run, record, log, stop = session.run, session.record, session.log, session.stop
        step = int(session.state.step)
        if run.evaluates_at(step) and record.evaluated_step != step:  # interrupted before this evaluation
            evaluate_and_log(session, step)
        in_flight = InFlight(run.mesh)
        images = open_batches(run, session.state.params, step)
        batches = TrainingBatches(images, run.mesh, run.source, log, in_flight)
        rates = functools.partial(record.learning_rates, run.rates)
        meter = Meter(run.config, run.source, log, batches, step, run.total_steps, rates)
        if step < run.total_steps:
            log.phase("compiling the training step")
            if shapes := batch_shapes(config, run.mesh):  # None for cached features, which need little memory
                check_memory(run.train_step.lower(session.state, shapes).compile(), config.data, run.mesh)
        while step < run.total_steps and not record.plateau.finished:
            batch = next(batches)
            in_flight.make_room()
            if stop.wanted():
                break
            session.state, metrics = run.train_step(session.state, batch)
            in_flight.add(metrics)
            step += 1
            log.advance(step, run.epoch(step))
            meter.after_step(step, metrics)
            session.profile.after_step(metrics)

            if run.evaluates_at(step) and not stop.wanted():
                meter.flush()
                try:
                    evaluate_and_log(session, step)
                except UserError:  # too many unreadable images; once they are fixed, the run resumes here
                    session.save(step, last=True)
                    raise
                meter.restart(step)
            if is_due(step, run.save_every) or record.best_step == step or meter.minutes_are_over():
                meter.flush()
                session.save(step)
                meter.restart(step)
        meter.flush()
        session.save(step, last=True)
        interrupted = step < run.total_steps and not record.plateau.finished
        if interrupted or (run.evaluates_at(step) and record.evaluated_step != step):
            session.finish("interrupted", step, f"by {stop.reason}")
        else:
            session.finish("done", step)
    return session.outcome


@contextlib.contextmanager
def open_session(config: configs.Config, workdir: str | pathlib.Path) -> Iterator[Session]:
    """Builds a run, locks its directory, restores its state; turns known failures into one-line errors."""
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(signals.Stop(config.run.max_seconds, processes.DelayedMax()))
        run = Run(config, paths.expanded(processes.from_first(str(workdir))))
        processes.barrier()  # all read the directory before any changes it
        stack.enter_context(workdirs.locked(run.workdir, config))
        first, net = processes.is_first(), (run.workdir, run.model, run.preprocess, run.source)
        processes.together(lambda: pretrained.describe(*net, config.run.allow_changes) if first else None)
        say = progress.say if first else lambda line: None
        checkpoints = checkpoint.Checkpoints(
            run.workdir,
            keep=config.run.keep_checkpoints,
            keep_every_steps=run.keep_every,
            metadata=status.about(config, run.mesh),
            say=say,
        )
        stack.enter_context(contextlib.closing(checkpoints))
        profiled = config.run.profile_steps if first else 0
        profile = stack.enter_context(contextlib.closing(profiler.Profile(run.workdir, profiled, say)))
        state, record = restore_or_init(run, checkpoints)
        left, params = range(int(state.step), run.total_steps), run.abstract_state.params
        log = status.open_log(run.workdir, record, left, config, run.model)
        stack.callback(log.close)
        for line in status.greeting(config, run.source, run.mesh, params, run.start, left):
            log.say(line)
        session = Session(run, state, record, checkpoints, log, profile, stop)
        try:
            yield session
        except Diverged as error:
            message = f"{error}; {checkpoints.last_good()}; try a lower optimizer.learning_rate"
            session.finish("diverged", None, message)


def restore_or_init(run: Run, checkpoints: checkpoint.Checkpoints) -> tuple[steps.TrainState, Record]:
    """The newest good checkpoint's state, or a fresh one.

    Raises:
      UserError: all checkpoints are damaged, or the number of training images has changed.
    """
    restored = checkpoints.restore(run.abstract_state)
    if restored is None:
        state, start = run.init_state(), jax.device_put(run.start, steps.state_shardings(run.mesh).params)
        return state.replace(params={**state.params, **start}), Record(images=len(run.source))
    state, record = restored[0], Record.from_json(restored[1])
    if record.images != len(run.source) and not run.config.run.allow_changes:
        raise UserError(
            f"data.source={run.config.data.source}: {len(run.source):,} training images, but the run in "
            f"{run.workdir} started with {record.images:,}; use the same images, or set run.allow_changes"
        )
    return state, record


def evaluate_and_log(session: Session, step: int) -> None:
    """Tests the net, logs the result and applies the plateau rule.

    A request to stop cancels the evaluation; the resumed run starts with it.
    """
    run, record, log, started = session.run, session.record, session.log, time.monotonic()
    result = run.evaluate(session.state.params, stop=session.stop.wanted, say=log.say_own)
    if result is None:
        return
    evaluation = dataclasses.asdict(result)
    record.add_evaluation(step, evaluation)
    values = {f"eval/{key}": value for key, value in evaluation.items()}
    log.metrics(step, run.epoch(step), {**values, "eval/seconds": time.monotonic() - started})
    log.weights(step, session.state.params)
    session.write_status("running", step)
    if run.config.optimizer.schedule != "plateau":
        return
    before = record.plateau
    record.plateau = before.after_evaluation(run.config.optimizer, result.top1_error)
    if record.plateau.drops > before.drops:
        log.say(f"step {step}: the validation error stopped improving; the learning rate drops")
    if record.plateau.finished:
        log.say(f"step {step}: the validation error stopped improving after the last drop; training ends")
    drops = jax.device_put(jnp.int32(record.plateau.drops), session.state.drops.sharding)
    session.state = session.state.replace(drops=drops)
