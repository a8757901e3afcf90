"""Training: build, restore, step, log, evaluate, save, finish."""

import collections
import dataclasses
import functools
import math
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from alexnet_jax import augment, checkpoint, columns, evaluate, input_pipeline, logs, pretrained, steps, trunk
from alexnet_jax import config as configs
from alexnet_jax import optimizer as optimizers
from alexnet_jax import workdir as workdirs
from alexnet_jax.errors import UserError
from alexnet_jax.model import AlexNet
from alexnet_jax.preprocess import Preprocess
from alexnet_jax.sources import Source
from alexnet_jax.statistics import Statistics

STEPS_IN_FLIGHT = 2  # how far the host runs ahead of the devices


@dataclasses.dataclass
class Record:
    """What a run remembers beside its device state; saved with each checkpoint.

    Attributes:
      evaluated_step: step of the last evaluation.
      evaluation: its result, as in `evaluate.Result`.
      best_top1_error: lowest in %, over all evaluations.
      plateau: state of the plateau rule.
    """

    evaluated_step: int = 0
    evaluation: dict[str, Any] | None = None
    best_top1_error: float | None = None
    plateau: optimizers.PlateauState = dataclasses.field(default_factory=optimizers.PlateauState)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Record":
        return cls(**{**values, "plateau": optimizers.PlateauState(**values["plateau"])})


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as built from its config: what the loop needs and does not change."""

    config: configs.Config
    workdir: pathlib.Path
    mesh: Mesh
    source: Source
    model: AlexNet
    train_step: Callable[[steps.TrainState, steps.Batch], tuple[steps.TrainState, steps.Metrics]]
    evaluate: Callable[..., evaluate.Result]
    init_state: Callable[[], steps.TrainState]
    abstract_state: steps.TrainState
    preprocess: Preprocess
    start: dict[str, Any]
    total_steps: int
    eval_every: int
    save_every: int

    def epoch(self, step: int) -> float:
        """Passes over the training images done at `step`."""
        return step * self.config.data.batch_size / len(self.source)


class Diverged(Exception):
    """The loss or a parameter is no longer finite."""


def train(config: configs.Config, workdir: str | pathlib.Path) -> str:
    """Trains, or goes on from `workdir`'s last checkpoint, to the config's last step.

    Returns:
      How it ended: `done`, `interrupted` (by SIGTERM or SIGINT, after a checkpoint) or `diverged`.

    Raises:
      UserError: the config, the data or the directory is not as it must be.
    """
    run = build(config, pathlib.Path(workdir))
    workdirs.open_workdir(run.workdir, config)
    with workdirs.locked(run.workdir):
        pretrained.describe(run.workdir, run.model, run.preprocess, run.source.class_names)
        logs.write_status(run.workdir, "running")
        try:
            return _train(run)
        except BaseException as error:
            logs.write_status(run.workdir, "failed", message=f"{type(error).__name__}: {error}")
            raise


# --- build ------------------------------------------------------------------------------------------------


def build(config: configs.Config, workdir: pathlib.Path) -> Run:
    """Opens the data and finds out that the parts fit; compiles and writes nothing yet."""
    data, run = config.data, config.run
    mesh = columns.make_mesh(config.mesh.data, config.mesh.column)
    evaluate.check_batch_size(data.batch_size, mesh)
    source, test_source = (evaluate.open_source(config, split) for split in ("train", "test"))
    statistics = evaluate.statistics_of(source)
    model = configs.build_model(config, source.num_classes)
    init = None
    if config.init.path is not None and not checkpoint.exist(workdir):
        init = pretrained.read(config.init.path, partial=True)
    preprocess = build_preprocess(config, workdir, statistics, init)
    in_steps = functools.partial(configs.in_steps, run, num_examples=len(source), batch_size=data.batch_size)
    total_steps = in_steps("total")
    optimizer = build_optimizer(config, len(source), total_steps)
    view = build_view(config, statistics, preprocess, len(source))
    trained = model
    if trunk.rests(config):
        trained, view = model.clone(reads="pool5"), trunk.view

    def init_state() -> steps.TrainState:
        return steps.init_state(model, optimizer, data.image_size, run.seed, mesh)

    return Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        source=source,
        model=model,
        train_step=steps.make_train_step(
            trained, optimizer, mesh, view, seed=run.seed, log_every=run.log_every_steps
        ),
        evaluate=evaluate.make_evaluator(config, model, mesh, test_source, preprocess),
        init_state=init_state,
        abstract_state=steps.abstract_state(init_state, mesh),
        preprocess=preprocess,
        start={} if init is None else pretrained.start_from(init, model, preprocess, source.class_names),
        total_steps=total_steps,
        eval_every=in_steps("eval_every"),
        save_every=in_steps("save_every"),
    )


def build_preprocess(
    config: configs.Config,
    workdir: pathlib.Path,
    statistics: Statistics,
    init: pretrained.Pretrained | None,
) -> Preprocess:
    """What a run that goes on began with, else that of the weights it starts from, else by the statistics."""
    data = config.data
    if (workdir / pretrained.DESCRIPTION).exists():
        return pretrained.read_description(workdir).preprocess.resized(data.stored_size, data.image_size)
    if init is not None:
        return init.preprocess.resized(data.stored_size, data.image_size)
    mean = statistics.mean(config.augment.mean, data.stored_size)
    return Preprocess(data.stored_size, data.image_size, mean=mean)


def build_optimizer(
    config: configs.Config, num_examples: int, total_steps: int
) -> optax.GradientTransformationExtraArgs:
    """The 2012 update rule with the config's schedule for weights, biases and single layers."""
    opt = config.optimizer

    def at(epoch: float) -> int:
        return configs.steps_of(epoch, num_examples, config.data.batch_size)

    def schedule(rate: float) -> optimizers.Schedule:
        match opt.schedule:
            case "plateau":
                return optimizers.plateau(rate, opt.drop_factor)
            case "epochs":
                return optimizers.steps(rate, opt.drop_factor, tuple(at(e) for e in opt.drop_epochs))
            case "exponential":
                return optimizers.exponential(rate, opt.final_factor, total_steps)
        return optimizers.constant(rate)

    bias_rate = opt.bias_rate_factor * opt.learning_rate
    weights = schedule(opt.learning_rate)
    biases = schedule(bias_rate) if opt.bias_rate_drops else optimizers.constant(bias_rate)
    events: dict[str, list[tuple[int, float]]] = collections.defaultdict(list)
    for layer, epoch, rate in sorted(opt.layer_rates, key=lambda event: event[1]):
        events[layer].append((at(epoch), rate))
    layers = {layer: optimizers.piecewise(weights, tuple(its)) for layer, its in events.items()}
    rates = optimizers.Rates(weights=weights, biases=biases, layers=layers)
    return optimizers.sgd_2012(rates, momentum=opt.momentum, weight_decay=opt.weight_decay)


def build_view(
    config: configs.Config, statistics: Statistics, preprocess: Preprocess, num_examples: int
) -> Callable[..., jax.Array]:
    """What the net sees of a training image: `view(images, key, example_ids, step=...)`."""
    aug = config.augment
    view = functools.partial(
        augment.training_views,
        mean=jnp.asarray(preprocess.mean),
        std=jnp.asarray(preprocess.std),
        size=preprocess.crop_size,
        sqrt_eigenvalues=jnp.asarray(statistics.pca_sqrt_eigenvalues),
        eigenvectors=jnp.asarray(statistics.pca_eigenvectors),
        crop=aug.crop,
        mirror=aug.mirror,
        run_length=aug.run_length,
        colour=aug.colour,
    )
    if aug.colour_until_epochs is None:
        return lambda images, key, example_ids, step: view(images, key, example_ids)
    until = configs.steps_of(aug.colour_until_epochs, num_examples, config.data.batch_size)
    return lambda images, key, example_ids, step: view(images, key, example_ids, colour_on=step < until)


# --- the loop ---------------------------------------------------------------------------------------------


def _train(run: Run) -> str:
    checkpoints = checkpoint.Checkpoints(run.workdir, run.config.run.keep_checkpoints)
    state, record = restore_or_init(run, checkpoints)
    first_step = int(state.step)
    logs.drop_metrics_after(run.workdir, first_step)
    log = logs.RunLog(run.workdir, first_step=first_step, total_steps=run.total_steps)
    greet(run, log, first_step)
    try:
        with Signals() as signals:
            status = loop(run, log, checkpoints, state, record, signals)
    except Diverged as error:
        status = "diverged"
        last = checkpoints.latest_step()
        where = f"the last good checkpoint is of step {last}" if last else "there is no checkpoint"
        finish(
            run,
            log,
            record,
            status,
            step=None,
            message=f"{error}; {where}; try a lower optimizer.learning_rate",
        )
    finally:
        checkpoints.close()
        log.close()
    return status


def loop(
    run: Run,
    log: logs.RunLog,
    checkpoints: checkpoint.Checkpoints,
    state: steps.TrainState,
    record: Record,
    signals: "Signals",
) -> str:
    """Steps until the last one, the plateau rule or a signal ends it."""
    step = int(state.step)
    if is_due(step, run.eval_every) and record.evaluated_step != step:  # interrupted before its evaluation
        state = evaluate_and_log(run, log, state, record, step)
    batches = TrainingBatches(run, log, open_batches(run, state.params, step))
    meter = Meter(run, log)
    while step < run.total_steps and not record.plateau.finished and not signals.received:
        state, metrics = run.train_step(state, next(batches))
        step += 1
        log.advance()
        meter.after_step(step, metrics, batches)

        if is_due(step, run.eval_every) or step == run.total_steps:
            meter.flush()
            if not signals.received:
                state = evaluate_and_log(run, log, state, record, step)
                meter.restart()
        if is_due(step, run.save_every):
            meter.flush()
            save(run, checkpoints, state, record, step)
            meter.restart()
    meter.flush()
    if step == run.total_steps and record.evaluated_step != step and not signals.received:
        state = evaluate_and_log(run, log, state, record, step)
    save(run, checkpoints, state, record, step)
    checkpoints.wait()
    status = "interrupted" if signals.received and step < run.total_steps else "done"
    finish(run, log, record, status, step, message=f"by {signals.received}" if signals.received else None)
    return status


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens after `step`."""
    return step > 0 and step % every == 0


def restore_or_init(run: Run, checkpoints: checkpoint.Checkpoints) -> tuple[steps.TrainState, Record]:
    """The newest checkpoint's state, or a fresh one."""
    if checkpoints.latest_step() is None:
        state = run.init_state()
        start = {
            name: jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), its, state.params[name])
            for name, its in run.start.items()
        }
        return state.replace(params={**state.params, **start}), Record()
    state, record = checkpoints.restore(run.abstract_state)
    return state, Record.from_json(record)


def evaluate_and_log(
    run: Run, log: logs.RunLog, state: steps.TrainState, record: Record, step: int
) -> steps.TrainState:
    """Tests the net, writes the result and lets the plateau rule lower the rate."""
    started = time.monotonic()
    result = run.evaluate(state.params)
    record.evaluated_step, record.evaluation = step, dataclasses.asdict(result)
    if record.best_top1_error is None or result.top1_error < record.best_top1_error:
        record.best_top1_error = result.top1_error
    values = {f"eval/{k}": v for k, v in record.evaluation.items()}
    log.metrics(step, run.epoch(step), {**values, "eval/seconds": time.monotonic() - started})
    kernel = state.params["conv1"]["kernel"]
    if kernel.is_fully_addressable:
        log.image(step, "conv1", logs.filters_image(np.asarray(kernel)))
    _write_status(run, "running", record, step)
    if run.config.optimizer.schedule != "plateau":
        return state
    opt = run.config.optimizer
    rule = optimizers.PlateauRule(opt.patience_evals, opt.max_drops, opt.min_gain)
    before = record.plateau
    record.plateau = optimizers.after_evaluation(rule, before, result.top1_error)
    if record.plateau.drops > before.drops:
        log.say(f"step {step}: the validation error stopped improving; the learning rate is lowered")
    if record.plateau.finished:
        log.say(f"step {step}: the validation error stopped improving after the last drop; training ends")
    return state.replace(drops=jax.device_put(jnp.int32(record.plateau.drops), state.drops.sharding))


def save(
    run: Run, checkpoints: checkpoint.Checkpoints, state: steps.TrainState, record: Record, step: int
) -> None:
    """Starts to save, unless there is something that must not be kept."""
    if not steps.all_finite(state.params):
        raise Diverged(f"a parameter is not finite at step {step}")
    checkpoints.save(step, state, record.to_json())


def open_batches(run: Run, params: Any, start_step: int) -> Iterator[input_pipeline.Batch]:
    """The run's batches from a step on, of images or of what a trunk at rest makes of them."""
    data, seed = run.config.data, run.config.run.seed
    if trunk.rests(run.config):
        path = run.workdir / trunk.FILE_NAME
        records = trunk.pooled_maps(path, run.model, params, run.preprocess, run.source)
        return trunk.batches(records, data.batch_size, seed, start_step)
    return input_pipeline.train_batches(
        run.source,
        batch_size=data.batch_size,
        image_size=data.stored_size,
        seed=seed,
        start_step=start_step,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
    )


class TrainingBatches(Iterator[steps.Batch]):
    """Batches on the mesh; unreadable images are named, waits are timed."""

    def __init__(self, run: Run, log: logs.RunLog, batches: Iterator[input_pipeline.Batch]):
        self._log, self._source = log, run.source
        self._named: set[int] = set()
        self._batches = evaluate.on_device(batches, run.mesh)
        self.wait_seconds = 0.0

    def __next__(self) -> steps.Batch:
        started = time.monotonic()
        host, batch = next(self._batches)
        self.wait_seconds += time.monotonic() - started
        for index in host["index"][host["weight"] == 0].tolist():
            if index not in self._named:
                self._named.add(index)
                self._log.say(f"bad image, left out: {self._source.name(index)}")
        return batch


class Meter:
    """Turns the steps' metrics into lines of the log, fetched only when a later step is under way."""

    def __init__(self, run: Run, log: logs.RunLog):
        self._run, self._log = run, log
        self._in_flight: collections.deque[steps.Metrics] = collections.deque()
        self._pending: Callable[[], None] | None = None
        self.restart()

    def restart(self) -> None:
        """Starts the clock anew, after something that is not a training step."""
        self._since, self._steps = time.monotonic(), 0

    def after_step(self, step: int, metrics: steps.Metrics, batches: TrainingBatches) -> None:
        """To be called after each step is dispatched."""
        self._steps += 1
        self._in_flight.append(metrics)
        if len(self._in_flight) > STEPS_IN_FLIGHT:
            jax.block_until_ready(self._in_flight.popleft())
        self.flush()
        if is_due(step, self._run.config.run.log_every_steps):
            self._pending = functools.partial(self._write, step, metrics, batches)

    def flush(self) -> None:
        """Writes what waits to be written."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending()

    def _write(self, step: int, metrics: steps.Metrics, batches: TrainingBatches) -> None:
        values = {f"train/{key}": float(value) for key, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["train/loss"]):
            raise Diverged(f"the loss is {values['train/loss']} at step {step}")
        config, epoch = self._run.config, self._run.epoch(step)
        if self._steps:
            seconds = time.monotonic() - self._since
            values["train/images_per_second"] = self._steps * config.data.batch_size / seconds
            values["train/input_wait_seconds"] = batches.wait_seconds
            batches.wait_seconds = 0.0
        self._log.metrics(step, epoch, values)
        self.restart()
        seen = max(step * config.data.batch_size, min(len(self._run.source), 10_000))
        if values["train/bad_images"] > config.data.max_bad_fraction * seen:
            raise UserError(
                f"data.source={config.data.source}: {values['train/bad_images']:.0f} of "
                f"{step * config.data.batch_size} images could not be read, more than "
                f"data.max_bad_fraction={config.data.max_bad_fraction}; mend those named above, or raise it"
            )


# --- beginning and end ------------------------------------------------------------------------------------


class Signals:
    """Takes SIGTERM and SIGINT as a wish to save and stop; a second one stops at once."""

    received: str | None = None

    def __enter__(self) -> "Signals":
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = signal.Signals(number).name
        print(
            f"\n{self.received}: saving, then stopping (once more to stop at once)",
            file=sys.stderr,
            flush=True,
        )


def greet(run: Run, log: logs.RunLog, first_step: int) -> None:
    """Says what is about to happen."""
    devices = run.mesh.devices
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(run.abstract_state.params))
    log.say(f"workdir    {run.workdir}")
    log.say(f"images     {run.source.description}")
    net = f"{run.config.model['variant']}, {parameters:,} parameters, {run.source.num_classes} classes"
    log.say(f"net        {net}")
    log.say(
        f"devices    {devices.shape[0]} x {devices.shape[1]} (data x column), {devices.flat[0].device_kind}; "
        f"jax {jax.__version__}"
    )
    if run.start:
        new = ", ".join(name for name in run.abstract_state.params if name not in run.start)
        log.say(f"init       {', '.join(run.start)} of {run.config.init.path}; new: {new or 'nothing'}")
    log.say(f"steps      {first_step} to {run.total_steps}, {run.config.data.batch_size} images each")


def finish(
    run: Run, log: logs.RunLog, record: Record, status: str, step: int | None, message: str | None
) -> None:
    """Writes the last status and says how it went and how to go on."""
    _write_status(run, status, record, step, message)
    log.say(f"{status}{f': {message}' if message else ''}")
    if record.evaluation is not None:
        last = record.evaluation
        log.say(
            f"top-1 error {last['top1_error']:.2f} %, top-5 error {last['top5_error']:.2f} % "
            f"on {last['examples']:,} images ({last['views']} view{'s' if last['views'] > 1 else ''}); "
            f"best top-1 error {record.best_top1_error:.2f} %"
        )
    log.say(f"curves     tensorboard --logdir={run.workdir}")
    if status == "interrupted":
        log.say(f"go on      the same command with --workdir={run.workdir}")


def _write_status(
    run: Run, status: str, record: Record, step: int | None, message: str | None = None
) -> None:
    fields: dict[str, Any] = {} if step is None else {"step": step, "epoch": round(run.epoch(step), 4)}
    logs.write_status(run.workdir, status, **fields, eval=record.evaluation, message=message)
