"""What is due by the clock."""

import collections

import pytest

from alexnet_jax.run import pace


@pytest.mark.parametrize("calls_behind", [0, 2])
def test_each_period_of_minutes_is_reported_once(monkeypatch, calls_behind):
    """With several processes the answers come two steps late: they once gave three saves in a row."""
    now, answers = 0.0, collections.deque([0] * calls_behind)

    def delayed(number):
        answers.append(number)
        return answers.popleft()

    monkeypatch.setattr(pace.time, "monotonic", lambda: now)
    minutes_are_over = pace.EveryMinutes(1.0, delayed)
    saved = []
    for step in range(1, 31):
        now = 10.0 * step
        if minutes_are_over():
            saved.append(step)
    expected = [step + calls_behind for step in (6, 12, 18, 24, 30)]
    assert saved == [step for step in expected if step <= 30]


def test_without_minutes_it_is_never_time():
    assert not pace.EveryMinutes(None, lambda number: 1 / 0)()
