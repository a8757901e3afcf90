"""A signal at each kind of moment: the run saves, ends as `interrupted` and resumes to the same bits."""

import os
import signal
import time
import types

import pytest

from alexnet_jax import optimizer, steps
from alexnet_jax import train as training
from alexnet_jax.common import command_line
from alexnet_jax.data import pipeline
from alexnet_jax.run import checkpoint, intact, signals
from tests.faults.conftest import status

pytestmark = pytest.mark.slow


def during(monkeypatch, module, name, send, calls=1):
    """Calls `send` at the start of the `calls`-th call of a function."""
    original, count = getattr(module, name), iter(range(1, 1000))

    def hooked(*args, **kwargs):
        if next(count) == calls:
            send()
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, hooked)


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.1)  # until the thread that reads signals has it


MOMENTS = {
    "build": lambda patch, send: during(patch, optimizer, "make", send),
    "compile": lambda patch, send: during(patch, steps, "cross_entropy", send),
    "prefetch": lambda patch, send: during(patch, pipeline, "load_batch", send, calls=3),
    "step": lambda patch, send: during(patch, training.Meter, "after_step", send, calls=7),
    "step before a save": lambda patch, send: during(patch, training.Meter, "after_step", send, calls=6),
    "step before a test": lambda patch, send: during(patch, training.Meter, "after_step", send, calls=5),
    "test": lambda patch, send: during(patch, training, "evaluate_and_log", send),
    "last test": lambda patch, send: during(patch, training, "evaluate_and_log", send, calls=3),
    "save": lambda patch, send: during(patch, checkpoint.Checkpoints, "save", send),
    "write of a save": lambda patch, send: during(patch, intact, "write_checksums", send, calls=2),
}


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGTERM, moment) for moment in MOMENTS] + [(signal.SIGINT, "compile"), (signal.SIGINT, "test")],
)
def test_a_signal_saves_and_stops(config, whole, outcome, tmp_path, monkeypatch, moment, number):
    with monkeypatch.context() as patch:
        MOMENTS[moment](patch, lambda: send(number))
        ended = training.train(config(), tmp_path)
    assert (ended, command_line.EXIT_CODES[ended]) == ("interrupted", 75)
    final = status(tmp_path)
    assert (final["status"], final["message"]) == ("interrupted", f"by {number.name}")
    assert outcome(tmp_path).step == final["step"]  # it was saved

    assert training.train(config(), tmp_path) == "done"
    resumed, alone = outcome(tmp_path), whole[1]
    if moment == "last test":  # it follows the last checkpoint, which is not written again
        resumed.record = alone.record
    assert resumed == alone


def test_a_test_repeated_after_a_kill_is_not_written_twice(
    config, whole, outcome, tmp_path, monkeypatch, after_step
):
    """Stopped before the evaluation at step 5, resumed with it, and killed before the next checkpoint."""

    class Killed(Exception):
        pass

    def kill():
        raise Killed

    with monkeypatch.context() as patch:
        MOMENTS["step before a test"](patch, lambda: send(signal.SIGTERM))
        assert training.train(config(), tmp_path) == "interrupted"
    after_step(6, kill)
    with pytest.raises(Killed):
        training.train(config(), tmp_path)
    assert training.train(config(), tmp_path) == "done"
    assert outcome(tmp_path) == whole[1]


def test_the_best_checkpoint_stays_even_if_its_test_came_after_an_interruption(config, tmp_path, monkeypatch):
    longer = config(**{"run.total_steps": 15, "run.keep_checkpoints": 1, "optimizer.learning_rate": 0.0})
    with monkeypatch.context() as patch:
        MOMENTS["test"](patch, lambda: send(signal.SIGTERM))
        assert training.train(longer, tmp_path) == "interrupted"
    assert training.train(longer, tmp_path) == "done"
    # At learning rate 0 no evaluation is better than the first, at step 5.
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [5, 15]


def test_a_time_limit_saves_and_stops(config, whole, outcome, tmp_path, after_step, monkeypatch):
    late = types.SimpleNamespace(monotonic=lambda: time.monotonic() + 5000)
    after_step(7, lambda: monkeypatch.setattr(signals, "time", late))
    limited = config(**{"run.max_seconds": 5000.0})
    assert training.train(limited, tmp_path) == "interrupted"
    assert (status(tmp_path)["step"], status(tmp_path)["message"]) == (7, "by run.max_seconds")
    monkeypatch.undo()
    assert training.train(config(), tmp_path) == "done"  # which may change
    assert outcome(tmp_path) == whole[1]


def test_the_margin_of_a_time_limit_is_a_tenth_and_at_most_a_minute(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for limit, wanted_at in ((100, 90), (36_000, 35_940)):
        stop = signals.Stop(limit)
        now = 1000.0 + wanted_at - 1
        assert not stop.wanted()
        now = 1000.0 + wanted_at
        assert stop.wanted()
        now = 1000.0
