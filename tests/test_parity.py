"""Ten training steps of the real widths give the losses that plain PyTorch gives.

`tests/fixtures/record_torch.py` recorded them in float64; weights and batches are drawn anew here, from the
same generators. Rounding to float32 alone moves a loss by the deviation that the records state.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

from alexnet_jax import columns, create_model, optimizer, steps
from tests.fixtures import generators
from tests.reference import relative_error

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
SEED = 2012  # as in record_torch.py


@pytest.mark.parametrize("variant", ["paper", pytest.param("original", marks=pytest.mark.slow)])
def test_ten_steps_as_in_pytorch(variant):
    recorded = json.loads((FIXTURES / f"torch_{variant}.json").read_text())
    model = create_model(variant, num_classes=generators.CLASSES, dropout=0.0)
    rates = optimizer.Rates(
        optimizer.step_decay(generators.RATE, 0.1, (generators.DROP_STEP,)),
        optimizer.step_decay(generators.BIAS_RATE, 0.1, (generators.DROP_STEP,)),
    )
    rule = optimizer.sgd_2012(rates, weight_decay=generators.WEIGHT_DECAY)
    mesh = columns.make_mesh(1, 1)
    initial = generators.parameters(SEED)
    batches = generators.batches(SEED + 1)

    logits = jax.jit(model.apply)({"params": initial}, batches[0][0][:2])
    assert relative_error(logits[:, :50], np.array(recorded["first_logits"])) < 1e-5

    def view(images, key, example_ids, step):
        return images  # the batches are what the net sees

    step = steps.make_train_step(model, rule, mesh, view, seed=0, log_every=1)
    state = jax.device_put(steps.fresh_state(initial, rule), steps.state_shardings(mesh))
    losses = []
    for images, labels in batches:
        batch = {"image": images, "label": labels, "weight": np.ones(len(labels), np.float32)}
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert (
        recorded["losses"][0] > 7 > 3 > recorded["losses"][-1]
    )  # it learns, so that agreeing means something
    np.testing.assert_allclose(losses, recorded["losses"], rtol=1e-4)

    for layer, leaves in jax.device_get(state.params).items():
        for kind, value in leaves.items():
            name, value = f"{layer}/{kind}", value.astype(np.float64)
            assert np.linalg.norm(value) == pytest.approx(recorded["norms"][name], rel=1e-6), name
            move = np.linalg.norm(value - initial[layer][kind])
            # float32 weights take up such small steps with an error of their own
            assert move == pytest.approx(recorded["moves"][name], rel=5e-3), name
