"""The short form of the harness in kill.py: four kills at moments of their own."""

import pytest

from tests.faults import kill


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    return kill.Harness(tmp_path_factory.mktemp("kill"), seed=1)


@pytest.mark.parametrize(("number", "phase"), enumerate(("save", "evaluation", "restore")))
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(harness, number, phase):
    result = harness.case(number, phase)
    assert result["killed"]
    assert result["identical"], result
    assert result["set_aside"] == 0
