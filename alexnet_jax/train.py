"""Training: build, restore, step, log, evaluate, save, finish."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import math
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from alexnet_jax import config as configs
from alexnet_jax import evaluate, steps
from alexnet_jax import optimizer as optimizers
from alexnet_jax.build import Run, build, is_due, open_batches
from alexnet_jax.common import faults
from alexnet_jax.common.errors import Fault, UserError
from alexnet_jax.data import pipeline
from alexnet_jax.run import checkpoint, logs, processes, profiler, signals
from alexnet_jax.run import workdir as workdirs
from alexnet_jax.weights import pretrained

STEP_BACK_FACTOR = 0.5  # of the rates, each time a run goes back from divergence
FLAT_WITHIN, FLAT_STEPS = 0.01, 1000  # a loss so near to ln(classes), for so many steps, is worth a warning


@dataclasses.dataclass
class Record:
    """What a run remembers beside its device state; saved with each checkpoint.

    Attributes:
      evaluated_step: step of the last evaluation.
      evaluation: its result, as in `evaluate.Result`.
      best_top1_error: lowest in %, over all evaluations, and the step of it.
      images: training images that the run was begun with.
      plateau: state of the plateau rule.
    """

    evaluated_step: int = 0
    evaluation: dict[str, Any] | None = None
    best_top1_error: float | None = None
    best_step: int | None = None
    images: int = 0
    plateau: optimizers.PlateauState = dataclasses.field(default_factory=optimizers.PlateauState)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Record":
        return cls(**{**values, "plateau": optimizers.PlateauState(**values["plateau"])})


class Diverged(Exception):
    """The loss or a parameter is no longer finite."""


def train(config: configs.Config, workdir: str | pathlib.Path) -> str:
    """Trains, or goes on from `workdir`'s last checkpoint, to the config's last step.

    Returns:
      How it ended: `done`, `interrupted` (by SIGTERM, SIGINT or `run.max_seconds`, after a checkpoint) or
      `diverged`.

    Raises:
      UserError: the config, the data or the directory is not as it must be.
      Fault: the disk is full, the directory is gone, or the memory does not suffice.
    """
    with signals.Stop(config.run.max_seconds, processes.DelayedMax()) as stop:
        workdir = processes.from_first(str(workdir))
        run = build(config, pathlib.Path(workdir))
        processes.barrier()  # all have looked at what is in the directory before one changes it
        try:
            with workdirs.opened(run.workdir, config):
                return _train_and_tell(run, stop)
        except OSError as error:  # as the directory was opened
            if known := faults.explain(error, run.workdir):
                raise known from error
            raise


def _train_and_tell(run: Run, stop: signals.Stop) -> str:
    """Trains; how a run fails is told by its status, and in a line where the program is not to blame."""
    try:
        if processes.is_first():
            pretrained.describe(run.workdir, run.model, run.preprocess, run.source.class_names)
            logs.write_status(run.workdir, "running")
            processes.on_death(functools.partial(logs.write_failure, run.workdir))
        return _train(run, stop)
    except BaseException as error:
        known = faults.explain(error, run.workdir)
        with contextlib.suppress(OSError):  # the disk may be what failed
            if processes.is_first():
                logs.write_failure(run.workdir, str(known or f"{type(error).__name__}: {error}"))
        if known is not None:
            raise known from error
        raise


# --- the loop ---------------------------------------------------------------------------------------------


def _train(run: Run, stop: signals.Stop) -> str:
    """Restores, trains, finishes; goes back a checkpoint if the loss diverges and the config allows it."""
    settings = run.config.run
    say = print_line if processes.is_first() else lambda line: None
    checkpoints = checkpoint.Checkpoints(
        run.workdir,
        keep=settings.keep_checkpoints,
        keep_every_steps=run.keep_every,
        metadata=about(run),
        say=say,
    )
    recorded = settings.profile_steps if processes.is_first() else 0
    recording = profiler.Profile(run.workdir, recorded, say)
    rate_scale = None
    with contextlib.closing(checkpoints), contextlib.closing(recording):
        while True:
            state, record = restore_or_init(run, checkpoints)
            if rate_scale is not None:
                state = state.replace(rate_scale=jax.device_put(jnp.float32(rate_scale), state.step.sharding))
            first_step = int(state.step)
            log = open_log(run, record, first_step)
            with contextlib.closing(log):
                if rate_scale is None:
                    rate_scale = float(state.rate_scale)
                    greet(run, log, first_step)
                try:
                    return loop(run, log, checkpoints, recording, state, record, stop)
                except Diverged as error:
                    message = f"{error}; {last_good(checkpoints)}"
                    # The scale itself counts the steps back, so that an interruption does not forget them.
                    rate_scale *= STEP_BACK_FACTOR
                    spent = rate_scale < STEP_BACK_FACTOR**settings.max_step_backs
                    if checkpoints.saved_step is None or spent:
                        mend = "try a lower optimizer.learning_rate, or run.max_step_backs"
                        finish(run, log, record, "diverged", step=None, message=f"{message}; {mend}")
                        return "diverged"
                    log.say(f"{message}; going on from it at {rate_scale} times the rate")


Log = logs.RunLog | logs.NoLog


def open_log(run: Run, record: Record, first_step: int) -> Log:
    """The log from a step on; what was written beyond it is forgotten."""
    if not processes.is_first():
        return logs.NoLog(processes.label())
    logs.drop_metrics_after(run.workdir, first_step, evaluated=record.evaluated_step == first_step)
    return logs.RunLog(run.workdir, first_step=first_step, total_steps=run.total_steps)


def loop(
    run: Run,
    log: Log,
    checkpoints: checkpoint.Checkpoints,
    recording: profiler.Profile,
    state: steps.TrainState,
    record: Record,
    stop: signals.Stop,
) -> str:
    """Steps until the last one, the plateau rule or a wish to stop ends it."""
    step = int(state.step)
    if run.evaluates_at(step) and record.evaluated_step != step:  # was interrupted before this evaluation
        state = evaluate_and_log(run, log, state, record, step, stop)
    in_flight = steps.InFlight(run.mesh)
    batches = TrainingBatches(run, log, open_batches(run, state.params, step), in_flight)
    meter = Meter(run, log, batches, step)
    while step < run.total_steps and not record.plateau.finished:
        batch = next(batches)
        in_flight.make_room()
        if stop.wanted():
            break
        state, metrics = run.train_step(state, batch)
        in_flight.add(metrics)
        step += 1
        log.advance()
        meter.after_step(step, metrics)
        recording.after_step(metrics)

        if run.evaluates_at(step) and not stop.wanted():
            meter.flush()
            try:
                state = evaluate_and_log(run, log, state, record, step, stop)
            except UserError:  # too many bad images; the run goes on from here once they are mended
                save(run, log, checkpoints, state, record, step, last=True)
                raise
            meter.restart(step)
        if is_due(step, run.save_every) or record.best_step == step or meter.minutes_are_over():
            meter.flush()
            save(run, log, checkpoints, state, record, step)
            meter.restart(step)
    meter.flush()
    save(run, log, checkpoints, state, record, step, last=True)
    interrupted = step < run.total_steps and not record.plateau.finished
    if interrupted or (run.evaluates_at(step) and record.evaluated_step != step):
        finish(run, log, record, "interrupted", step, message=f"by {stop.reason}")
        return "interrupted"
    finish(run, log, record, "done", step, message=None)
    return "done"


def restore_or_init(run: Run, checkpoints: checkpoint.Checkpoints) -> tuple[steps.TrainState, Record]:
    """The newest good checkpoint's state, or a fresh one.

    Raises:
      UserError: all checkpoints are damaged, or the images are not those of before.
    """
    restored = checkpoints.restore(run.abstract_state)
    if restored is None:
        state = run.init_state()
        start = {
            name: jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), its, state.params[name])
            for name, its in run.start.items()
        }
        return state.replace(params={**state.params, **start}), Record(images=len(run.source))
    state, record = restored[0], Record.from_json(restored[1])
    if record.images != len(run.source) and not run.config.run.allow_changes:
        raise UserError(
            f"data.source={run.config.data.source}: {len(run.source):,} training images, but the run in "
            f"{run.workdir} was begun with {record.images:,}; bring them back, or say "
            "--config.run.allow_changes"
        )
    return state, record


def evaluate_and_log(
    run: Run, log: Log, state: steps.TrainState, record: Record, step: int, stop: signals.Stop
) -> steps.TrainState:
    """Tests the net, writes the result and lets the plateau rule lower the rate.

    A wish to stop breaks it off without a trace; the run that goes on from here begins with it.
    """
    started = time.monotonic()
    result = run.evaluate(state.params, stop=stop.wanted, say=log.say_own)
    if result is None:
        return state
    record.evaluated_step, record.evaluation = step, dataclasses.asdict(result)
    if record.best_top1_error is None or result.top1_error < record.best_top1_error:
        record.best_top1_error, record.best_step = result.top1_error, step
    values = {f"eval/{k}": v for k, v in record.evaluation.items()}
    log.metrics(step, run.epoch(step), {**values, "eval/seconds": time.monotonic() - started})
    kernel: Any = multihost_utils.process_allgather(state.params["conv1"]["kernel"], tiled=True)
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
    run: Run,
    log: Log,
    checkpoints: checkpoint.Checkpoints,
    state: steps.TrainState,
    record: Record,
    step: int,
    *,
    last: bool = False,
) -> None:
    """Starts to save, or, at the end of a run, saves.

    In mid-run a disk that is full only costs a warning: what was saved before is still there, and the next
    time may be better.

    Raises:
      Diverged: there is something that must not be kept.
      Fault: the last checkpoint could not be written.
    """
    if not steps.all_finite(state.params):
        raise Diverged(f"a parameter is not finite at step {step}")
    log.sync()

    def write() -> None:
        checkpoints.save(step, state, record.to_json(), record.best_step)
        if last:
            checkpoints.wait()

    for part in (checkpoints.wait, write):  # that the last one failed is no reason to leave this one out
        try:
            part()
        except checkpoint.SaveError as reason:
            message = f"{run.workdir}: a checkpoint could not be written ({reason}); {last_good(checkpoints)}"
            if last and part is write:
                raise Fault(f"{message}; make room and start the same command again") from reason
            log.say(f"warning: {message}; training goes on")


def last_good(checkpoints: checkpoint.Checkpoints) -> str:
    """Which checkpoint there is to go on from."""
    with contextlib.suppress(checkpoint.SaveError):  # then it is the one before
        checkpoints.wait()
    if checkpoints.saved_step is None:
        return "there is no checkpoint before it"
    return f"the last good checkpoint is of step {checkpoints.saved_step}"


class TrainingBatches(Iterator[steps.Batch]):
    """Batches on the mesh; unreadable images are named.

    `wait_seconds` grows by the time that a batch took which found the devices without work: at most so long
    have they waited for it.
    """

    def __init__(self, run: Run, log: Log, batches: Iterator[pipeline.Batch], in_flight: steps.InFlight):
        self._log, self._source, self._in_flight = log, run.source, in_flight
        self._named: set[int] = set()
        self._batches = evaluate.on_device(batches, run.mesh)
        self.wait_seconds = 0.0

    def __next__(self) -> steps.Batch:
        started = time.monotonic()
        host, batch = next(self._batches)
        if self._in_flight.is_idle():
            self.wait_seconds += time.monotonic() - started
        for line in evaluate.bad_images(host, self._source, self._named):
            self._log.say_own(line)
        return batch


class Meter:
    """Turns the steps' metrics into lines of the log, when a later step is under way or at `flush`."""

    def __init__(self, run: Run, log: Log, batches: TrainingBatches, step: int):
        self._run, self._log, self._batches = run, log, batches
        self._saved, self._flat_steps, self._compiled = time.monotonic(), 0, False
        self._agreed = processes.DelayedMax()
        self._pending: Callable[[], None] | None = None
        self.restart(step)

    def minutes_are_over(self) -> bool:
        """Whether it is time to save by the clock; if so, the clock starts anew."""
        minutes = self._run.config.run.save_every_minutes
        if minutes is None or not self._agreed(int(time.monotonic() - self._saved >= 60 * minutes)):
            return False
        self._saved = time.monotonic()
        return True

    def restart(self, step: int) -> None:
        """Starts the clock anew, after something that is not a training step; `step` is done."""
        self._since, self._since_step = time.monotonic(), step
        self._batches.wait_seconds = 0.0

    def after_step(self, step: int, metrics: steps.Metrics) -> None:
        """To be called after each step is dispatched."""
        if not self._compiled:  # the first step's time is the compiler's
            jax.block_until_ready(metrics)
            self._compiled = True
            self._log.restart_clock(step)
            self.restart(step)
        self.flush()
        if is_due(step, self._run.config.run.log_every_steps) or step == self._run.total_steps:
            self._pending = functools.partial(self._write, step, metrics)

    def flush(self) -> None:
        """Writes what waits to be written."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending()

    def _write(self, step: int, metrics: steps.Metrics) -> None:
        values = {f"train/{key}": float(value) for key, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["train/loss"]):
            raise Diverged(f"the loss is {values['train/loss']} at step {step}")
        config, epoch = self._run.config, self._run.epoch(step)
        if steps_done := step - self._since_step:
            seconds = time.monotonic() - self._since
            values["train/images_per_second"] = steps_done * config.data.batch_size / seconds
            values["train/input_wait_seconds"] = self._batches.wait_seconds
        self._log.metrics(step, epoch, values)
        self._warn_if_flat(step, values["train/loss"])
        self.restart(step)
        seen = max(step * config.data.batch_size, min(len(self._run.source), 10_000))
        if values["train/bad_images"] > config.data.max_bad_fraction * seen:
            raise UserError(
                f"data.source={config.data.source}: {values['train/bad_images']:.0f} of "
                f"{step * config.data.batch_size} images could not be read, more than "
                f"data.max_bad_fraction={config.data.max_bad_fraction}; mend those named above, or raise it"
            )

    def _warn_if_flat(self, step: int, loss: float) -> None:
        """Names the usual causes, once, where the loss stays that of a net that knows nothing."""
        nothing = math.log(self._run.source.num_classes)
        flat = abs(loss - nothing) < FLAT_WITHIN * nothing
        before = self._flat_steps
        self._flat_steps = before + self._run.config.run.log_every_steps if flat else 0
        if before < FLAT_STEPS <= self._flat_steps:
            self._log.say(
                f"warning: step {step}: for {self._flat_steps} steps the loss has stayed at "
                f"ln({self._run.source.num_classes}) = {nothing:.2f}. Usual causes: inputs of unit variance "
                "where the init expects 0-255; 0.01 as the std of conv3 to conv5 (model.init_scheme=original "
                "helps); a learning rate too low or too high; labels that do not belong to the images"
            )


# --- beginning and end ------------------------------------------------------------------------------------


def about(run: Run) -> dict[str, Any]:
    """What a checkpoint's metadata tells besides: the config and the versions that made it."""
    return {
        "config": json.loads(run.config.to_json()),
        "versions": versions(),
        "device": run.mesh.devices.flat[0].device_kind,
    }


def versions() -> dict[str, str]:
    """Of Python and the libraries that the result of a run depends on."""
    names = ("jax", "flax", "optax", "orbax-checkpoint")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def print_line(line: str) -> None:
    """For what is to be said before there is a log."""
    print(line, file=sys.stderr, flush=True)


def greet(run: Run, log: Log, first_step: int) -> None:
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
    if first_step < run.total_steps:
        log.say(f"steps      {first_step} to {run.total_steps}, {run.config.data.batch_size} images each")
    else:
        log.say(f"steps      {first_step} done, of {run.total_steps}: nothing is left to train")


def finish(run: Run, log: Log, record: Record, status: str, step: int | None, message: str | None) -> None:
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
    log.say(f"files      {run.workdir}: metrics.jsonl, status.json, checkpoints/, net.json")
    log.say(f"curves     tensorboard --logdir={run.workdir}")
    if status == "done":
        log.say(f"use it     python -m alexnet_jax predict IMAGE --weights={run.workdir}")
        log.say(f"train on   the same command with --workdir={run.workdir} and a larger run.total_epochs")
    if status == "interrupted":
        log.say(f"go on      the same command with --workdir={run.workdir}")


def _write_status(
    run: Run, status: str, record: Record, step: int | None, message: str | None = None
) -> None:
    if not processes.is_first():
        return
    fields: dict[str, Any] = {} if step is None else {"step": step, "epoch": round(run.epoch(step), 4)}
    logs.write_status(run.workdir, status, **fields, eval=record.evaluation, message=message)
