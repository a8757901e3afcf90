"""The communication between devices, asserted on the program that XLA compiled."""

import json
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import columns, create_model, optimizer, steps
from alexnet_jax import config as configs
from benchmarks import collectives, scaling, scaling_text
from benchmarks.collectives import Collective
from configs import default
from tests import tiny
from tests.processes import ROOT
from tests.test_columns import BATCH, CLASSES, NETS, SIZE, SMALL, STORED, view

RULE = optimizer.sgd_2012(optimizer.Rates(optimizer.constant(0.01), optimizer.constant(0.02)))
BATCH_SHAPES = {
    "image": jax.ShapeDtypeStruct((BATCH, STORED, STORED, 3), jnp.uint8),
    "label": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    "weight": jax.ShapeDtypeStruct((BATCH,), jnp.float32),
}


def lowered(model, mesh):
    state = steps.abstract_state(lambda: steps.init_state(model, RULE, SIZE, 0, mesh), mesh)
    step = steps.make_train_step(model, RULE, mesh, view, seed=0, log_every=1)
    return step, (state, BATCH_SHAPES)


def compiled(model, data, column):
    step, arguments = lowered(model, columns.make_mesh(data, column))
    return collectives.of_compiled(step.lower(*arguments).compile().as_text(), data, column)


# Of 67 x 67 images pool2 is 3 x 3 and pool5 1 x 1; `SMALL` has 24 maps in pool2, 16 in pool5, 32 units in fc6
# and fc7. Each of two rows of devices has half of the batch; float32.
FIGURE_2 = {
    "conv3": BATCH // 2 * 3 * 3 * 24 * 4,
    "fc6": BATCH // 2 * 1 * 1 * 16 * 4,
    "fc7": BATCH // 2 * 32 * 4,
    "fc8": BATCH // 2 * 32 * 4,
    "logits": BATCH // 2 * CLASSES * 4,
}
NUMBERS = 4  # that are summed over the batch beside the gradients


def parameter_bytes(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    return sum(4 * leaf.size for leaf in jax.tree.leaves(shapes))


def along(found, axis):
    return [one for one in found if one.axis == axis]


@pytest.mark.parametrize("name", ["paper", pytest.param("original", marks=pytest.mark.slow)])
def test_the_exchanges_are_those_of_figure_2_and_their_transposes(name):
    found = compiled(NETS[name], 2, 2)
    forward = [Collective("all-gather", "column", place, False, size) for place, size in FIGURE_2.items()]
    backward = [
        Collective("reduce-scatter", "column", place, True, size)
        for place, size in reversed(FIGURE_2.items())
    ]
    assert along(found, "column") == forward + backward

    # All gradients in one all-reduce, with the sums of loss and error and the numbers of good and bad images.
    (gradients,) = along(found, "data")
    assert (gradients.kind, gradients.backward) == ("all-reduce", True)
    assert gradients.bytes == parameter_bytes(NETS[name]) // 2 + NUMBERS * 4
    assert gradients.parts == 16 + NUMBERS
    assert len(found) == len(forward) + len(backward) + 1


def test_columns_that_never_talk_have_nothing_to_tell_before_the_votes_are_added():
    """Run 150."""
    logits = FIGURE_2["logits"]
    assert along(compiled(NETS["independent columns"], 1, 2), "column") == [
        Collective("all-reduce", "column", "logits", False, 2 * logits),
        Collective("all-reduce", "column", "logits", True, 2 * logits),
    ]


@pytest.mark.slow
def test_both_columns_on_each_device_tell_each_other_nothing():
    found = compiled(NETS["paper"], 2, 1)
    assert along(found, "column") == []
    assert [one.bytes for one in found] == [parameter_bytes(NETS["paper"]) + NUMBERS * 4]


@pytest.mark.parametrize(
    ("groups", "axis"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", "column"),
        ("{{0,2,4,6},{1,3,5,7}}", "data"),
        ("[4,2]<=[8]", "column"),
        ("[2,4]<=[4,2]T(1,0)", "data"),
        ("[1,8]<=[8]", "data and column"),
        ("mesh['a'=4,'b'=2] {'a'}", "data"),
        ("mesh['a'=4,'b'=2] {'b'}", "column"),
        ("mesh['a'=4,'b'=2] {'a','b'}", "data and column"),
    ],
)
def test_the_axis_of_each_way_to_write_groups(groups, axis):
    line = f"  %x = bf16[4,10]{{1,0}} all-gather(%y), channel_id=1, replica_groups={groups}, dimensions={{1}}"
    assert collectives.of_compiled(line, 4, 2) == [Collective("all-gather", axis, "", False, 80)]


def test_a_gather_that_is_only_started_counts_what_comes_out():
    line = (
        "  %x = (f32[8,27,27,128]{3,2,1,0}, f32[8,27,27,256]{3,2,1,0}) all-gather-start(%y), channel_id=1, "
        "replica_groups={{0,1}}, dimensions={3}"
    )
    expected = Collective("all-gather", "column", "", False, 8 * 27 * 27 * 256 * 4)
    assert collectives.of_compiled(line, 1, 2) == [expected]


# --- On other machines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mesh", [(1, 1), (2, 2)])
def test_the_step_lowers_for_accelerators(dtype, mesh):
    model = create_model("original", compute_dtype=dtype, **SMALL)
    step, arguments = lowered(model, columns.make_mesh(*mesh))
    exported = jax.export.export(step, platforms=["cuda", "tpu"])(*arguments)
    assert exported.platforms == ("cuda", "tpu")
    assert exported.nr_devices == mesh[0] * mesh[1]
    text = exported.mlir_module()
    assert ("bf16" in text) == (dtype == "bfloat16")
    assert ("all_gather" in text) == (mesh[1] > 1)


# --- Half precision ----------------------------------------------------------------------------------------


def test_bfloat16_computes_what_float32_does_but_for_its_digits():
    images = 50 * jax.random.normal(jax.random.key(1), (4, SIZE, SIZE, 3))
    models = {
        dtype: create_model("original", compute_dtype=dtype, **SMALL) for dtype in ("float32", "bfloat16")
    }
    variables = jax.jit(models["float32"].init)(jax.random.key(0), images)

    @jax.jit
    def gradients(variables):
        def norm_of_logits(model, variables):
            logits, seen = model.apply(variables, images, capture="conv2")
            assert (logits.dtype, seen["conv2"].dtype) == (jnp.float32, jnp.float32)
            return jnp.sum(jnp.square(logits)), (logits, seen["conv2"])

        return {
            dtype: jax.value_and_grad(lambda v, m=model: norm_of_logits(m, v), has_aux=True)(variables)
            for dtype, model in models.items()
        }

    found = gradients(variables)
    found = jax.device_get(found)  # NumPy from here on, which compiles nothing
    ((_, (exact, conv2)), by), ((_, (rough, rough2)), rough_by) = found["float32"], found["bfloat16"]
    difference = np.max(np.abs(exact - rough)) / np.max(np.abs(exact))
    assert 1e-6 < difference < 2e-2  # bfloat16 has 8 bits
    assert np.all(rough2 == rough2.astype(jnp.bfloat16).astype(np.float32))
    assert not np.all(conv2 == conv2.astype(jnp.bfloat16).astype(np.float32))
    for layer, its in by["params"].items():
        for a, b in zip(jax.tree.leaves(its), jax.tree.leaves(rough_by["params"][layer]), strict=True):
            assert b.dtype == np.float32
            a, b = a.ravel(), b.ravel()
            if layer.startswith("fc"):
                assert np.linalg.norm(a - b) < 0.01 * np.linalg.norm(a), layer
            # Below, units and places of nearly the same activity are chosen otherwise, as with XLA's own
            # gradients: up to 0.28 of the length at conv1, in nearly the same direction.
            assert np.dot(a, b) > 0.95 * np.linalg.norm(a) * np.linalg.norm(b), layer


# --- The report --------------------------------------------------------------------------------------------


def step_of(**overrides):
    config = configs.resolve(default.get_config(), {**tiny.NET, "data.batch_size": 16, **overrides})
    return scaling.Step(config, num_classes=10)


def test_what_is_written_is_what_is_compiled_on_any_mesh():
    step = step_of()
    mesh = columns.make_mesh(2, 2)
    found, memory = step.compiled(mesh, 16)
    written = step.written(2, 2, 16)
    assert along(written, "column") == along(found, "column")
    (fused,), (reduced,) = along(written, "data"), along(found, "data")
    assert fused.bytes + NUMBERS * 4 == reduced.bytes
    assert memory.temp_size_in_bytes > 0
    # 512 devices with as many images a row: the same between columns, and along data as much.
    assert step.written(256, 2, 8 * 256) == written
    # bfloat16 halves what the layers tell each other, but for the logits, and not the gradients.
    half = step_of(**{"model.compute_dtype": "bfloat16"}).written(2, 2, 16)
    for one, other in zip(written, half, strict=True):
        same = one.place in ("", "logits")
        assert other.bytes == (one.bytes if same else one.bytes // 2)


def test_costs_by_hand():
    step = step_of()
    at = scaling.Machine(device=2.0, column_link=4.0, data_link=1.0, latency=10.0)
    found = [
        Collective("all-gather", "column", "conv3", False, 4000),
        Collective("reduce-scatter", "column", "conv3", True, 4000),
        Collective("all-reduce", "data", "", True, 8000),
    ]
    cost = step.cost(found, data=4, column=2, batch_size=16, at=at)
    assert cost.compute == pytest.approx(step.operations_an_image * 16 / 8 / 2e12)
    assert cost.between_columns == pytest.approx(2 * 4000 / 2 / 4e9 + 20e-6)
    assert cost.along_data == pytest.approx(2 * 8000 * 3 / 4 / 1e9 + 10e-6)


@pytest.mark.slow
def test_the_report_of_a_command():
    flags = [f"--config.{key}={value}" for key, value in tiny.NET.items()]
    run = [sys.executable, "-m", "benchmarks.scaling", "--config=configs/default.py", *flags]
    done = subprocess.run(
        [*run, "--data=2", "--column=2", "--json"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["mesh"] == {"data": 2, "column": 2}
    assert len([one for one in values["collectives"] if one["axis"] == "column"]) == 10
    memory = values["bytes_a_device"]
    assert memory["parameters"] * 2 == memory["parameters_in_all"]
    # Parameters and momentum of a column, and the four images of a row of devices.
    assert memory["state_and_batch"] == pytest.approx(2 * memory["parameters"] + 4 * 60 * 60 * 3, rel=0.01)
    assert [(one["devices"], one["column"]) for one in values["on_paper"]] == [
        (8, 1), (8, 2), (64, 1), (64, 2), (512, 1), (512, 2),
    ]  # fmt: skip
    assert "conv3" in scaling_text.as_text(values)
    for wrong, named in (
        (["--data=3"], "data.batch_size=8: does not divide over the 3"),
        (["--data=99"], "--data=99"),
        (["--column=3"], "mesh.column=3"),
    ):
        done = subprocess.run([*run, *wrong], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert named in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
