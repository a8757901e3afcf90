"""Ten training steps of the real widths give the losses that plain PyTorch gives.

`tests/fixtures/record_torch.py` recorded them in float64; `tests/fixtures/replay.py` draws weights and
batches anew, from the same generators. Rounding to float32 alone moves a loss by the deviation that the
records state.
"""

import pytest

from alexnet_jax import columns
from tests.fixtures import replay

# By the first word; float32 weights take up such small steps ("move") with an error of their own.
LIMITS = {"logits": 1e-5, "gradient": 1e-4, "losses": 1e-4, "norm": 1e-6, "move": 5e-3}


@pytest.mark.parametrize("variant", ["paper", pytest.param("original", marks=pytest.mark.slow)])
def test_ten_steps_as_in_pytorch(variant):
    losses = replay.recorded(variant)["losses"]
    assert losses[0] > 7 > 3 > losses[-1]  # it learns, so that agreeing means something
    found = replay.deviations(variant, columns.make_mesh(1, 1))
    assert len(found) == 2 + 3 * 16
    assert {name: value for name, value in found.items() if not value < LIMITS[name.split()[0]]} == {}
