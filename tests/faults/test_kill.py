"""A short run of the harness in kill.py: four kills."""

import pytest

from tests.faults import kill

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    return kill.Harness(tmp_path_factory.mktemp("kill"), seed=1)


@pytest.mark.parametrize(("number", "phase"), [(0, "save"), (1, "evaluation"), (2, "restore")])
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(harness, number, phase):
    result = harness.case(number, phase)
    assert len(result["killed"]) == len(kill.PHASES[phase])
    assert result["identical"], result
    assert result["set_aside"] == 0
