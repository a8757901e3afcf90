"""Each kind of damage to each file of a checkpoint: the saved weights, the ones before, or an error."""

import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from alexnet_jax import train as training
from alexnet_jax.common.errors import UserError
from alexnet_jax.run import checkpoint, intact
from tests.faults import runs


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def fill_with_garbage(path):
    path.write_bytes(b"\xa5" * max(path.stat().st_size, 1))


def remove(path):
    path.unlink()


def replace_by_a_directory(path):
    path.unlink()
    path.mkdir()


KINDS = (truncate, empty, flip_a_bit, fill_with_garbage, remove, replace_by_a_directory)
# Patterns that match one file of a checkpoint each; the names of the chunks are random.
FILES = (
    "_CHECKPOINT_METADATA",
    "checksums.json",
    "commit_success.txt",
    "state/_METADATA",
    "state/_sharding",
    "state/array_metadatas/process_0",
    "state/commit_success.txt",
    "state/d/*",
    "state/manifest.ocdbt",
    "state/ocdbt.process_0/d/*",
    "state/ocdbt.process_0/manifest.ocdbt",
)
NEWEST, BEFORE = 12, 9


@pytest.fixture
def run(whole, tmp_path):
    """A copy of a finished run's directory, to damage."""
    shutil.copytree(whole[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def saved(whole, abstract_state):
    """Hashes of the saved state and parameters by step, read from undamaged files."""
    digests = {}
    for step in (NEWEST, BEFORE):
        state = ocp.load(str(whole[0] / "checkpoints" / str(step)), abstract_state)
        digests[step] = {"state": runs.digest(state), "params": runs.digest(state.params)}
    assert digests[NEWEST] != digests[BEFORE]
    assert digests[NEWEST]["state"] == whole[1].state
    return digests


def restore(run, abstract_state):
    said = []
    restored = checkpoint.Checkpoints(run, say=said.append).restore(abstract_state)
    assert restored is not None
    state, record = restored
    return state, record, "\n".join(said)


def newest(run: pathlib.Path) -> pathlib.Path:
    return run / "checkpoints" / str(NEWEST)


def test_the_list_of_files_is_that_of_a_real_checkpoint(whole):
    left = {p for p in newest(whole[0]).rglob("*") if p.is_file()}
    for pattern in FILES:
        (path,) = newest(whole[0]).glob(pattern)
        left.remove(path)
    assert not left


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", KINDS, ids=lambda kind: kind.__name__)
def test_damage_gives_the_saved_weights_or_those_before(run, abstract_state, saved, file, damage):
    (path,) = newest(run).glob(file)
    before = path.read_bytes()
    damage(path)
    is_changed = not path.is_file() or path.read_bytes() != before
    is_unverified = file == "checksums.json" and damage is remove  # as if killed before they were written
    expected = BEFORE if is_changed and not is_unverified else NEWEST

    sharding = abstract_state.params["fc6"]["kernel"].sharding
    params, step = checkpoint.restore_params(run, sharding, say=lambda _: None)
    assert step == expected
    assert runs.digest(params) == saved[step]["params"]

    state, record, said = restore(run, abstract_state)
    assert int(state.step) == expected
    assert runs.digest(state) == saved[expected]["state"]
    assert record["evaluated_step"] == {NEWEST: 12, BEFORE: 5}[expected]
    if is_unverified:
        assert said == f"warning: checkpoint {NEWEST} has no checksums, so it is used unverified"
    elif is_changed:
        name = path.relative_to(newest(run)).as_posix()
        assert said.startswith(f"warning: checkpoint {NEWEST} is damaged ({name} ")
        assert (run / "damaged" / f"{NEWEST}.0").is_dir()
    else:
        assert said == ""


@pytest.mark.parametrize("file", FILES)
def test_a_bit_anywhere_in_a_file(run, abstract_state, saved, file):
    """At both ends and some places between, besides the middle."""
    (path,) = newest(run).glob(file)
    sharding = abstract_state.params["fc6"]["kernel"].sharding
    intact = path.read_bytes()
    for place in {*range(0, len(intact), max(1, len(intact) // 6)), len(intact) - 1} - {-1}:
        path.write_bytes(intact[:place] + bytes([intact[place] ^ 0x10]) + intact[place + 1 :])
        params, step = checkpoint.restore_params(run, sharding, say=lambda _: None)
        assert runs.digest(params) == saved[step]["params"], place


def test_an_emptied_directory(run, abstract_state):
    shutil.rmtree(newest(run))
    newest(run).mkdir()
    state, _, said = restore(run, abstract_state)
    assert int(state.step) == BEFORE
    assert f"checkpoint {NEWEST} is damaged" in said


def test_the_two_newest(run, abstract_state):
    for step in (NEWEST, BEFORE):
        truncate(next((run / "checkpoints" / str(step)).glob("state/d/*")))
    state, _, said = restore(run, abstract_state)
    assert int(state.step) == 6
    assert said.count("is damaged") == 2


def test_what_a_crash_left_half_written_is_not_taken_for_a_checkpoint(run, abstract_state):
    newest(run).rename(run / "checkpoints" / f"{NEWEST}.orbax-checkpoint-tmp")
    state, _, said = restore(run, abstract_state)
    assert (int(state.step), said) == (BEFORE, "")


def test_all_of_them_is_an_error_that_says_where_they_are(run, abstract_state, config):
    for path in (run / "checkpoints").glob("*/state/d/*"):
        flip_a_bit(path)
    with pytest.raises(UserError, match="every checkpoint was damaged") as caught:
        training.train(config(), run)
    assert str(run / "damaged") in str(caught.value)
    with pytest.raises(UserError, match=r"no such directory|no finished checkpoint"):
        checkpoint.restore_params(run, abstract_state.params["fc6"]["kernel"].sharding)


@pytest.mark.slow
def test_a_run_goes_on_from_the_one_before_to_the_same_bits(run, config, whole, outcome, capsys):
    flip_a_bit(next(newest(run).glob("state/d/*")))
    assert training.train(config(), run) == "done"
    assert f"warning: checkpoint {NEWEST} is damaged" in capsys.readouterr().err
    assert outcome(run) == whole[1]


@pytest.mark.slow
def test_a_process_says_it_in_one_line(images, tmp_path):
    arguments = runs.command(images, tmp_path / "run", **{"run.total_steps": 20})
    assert runs.run(arguments)[0] == 0
    flip_a_bit(next((tmp_path / "run/checkpoints/20").glob("state/d/*")))
    code, said = runs.run(arguments)
    assert code == 0
    assert said.startswith("warning: checkpoint 20 is damaged"), said
    assert "Traceback" not in said and "Error: " not in said
    assert re.search(r"^steps +13 to 20", said, re.M)


def test_what_is_no_damage_sets_nothing_aside(run, abstract_state, monkeypatch):
    def out_of_memory(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3 bytes.")

    monkeypatch.setattr(ocp, "load", out_of_memory)
    with pytest.raises(RuntimeError, match="Out of memory"):
        restore(run, abstract_state)
    assert not (run / "damaged").exists()


def test_other_dtypes_are_one_line_and_nothing_is_moved(run, abstract_state):
    """flax#924, jax#6059: JAX_ENABLE_X64 set between two starts; every checkpoint was called damaged."""
    wanted = jax.tree.map(
        lambda x: (
            jax.ShapeDtypeStruct(x.shape, np.float64, sharding=x.sharding) if x.dtype == np.float32 else x
        ),
        abstract_state,
    )
    kernel = "is float32 there and float64 in this process"
    with pytest.raises(UserError, match=rf"was saved with other dtypes: .* {kernel}.*set JAX_ENABLE_X64"):
        restore(run, wanted)
    assert newest(run).is_dir()
    assert not (run / "damaged").exists()


@pytest.mark.parametrize("is_verified", [True, False])
def test_what_another_version_saved_and_this_one_cannot_read_is_not_moved(
    run, abstract_state, monkeypatch, is_verified
):
    def unreadable(*_):
        raise ValueError("unknown format")

    monkeypatch.setattr(ocp, "load", unreadable)
    metadata = newest(run) / "_CHECKPOINT_METADATA"
    metadata.write_text(re.sub(r'"flax": "[^"]*"', '"flax": "0.1.2"', metadata.read_text()))
    intact.write_checksums(newest(run))
    if not is_verified:
        (newest(run) / intact.CHECKSUMS).unlink()
    said = r"shows no damage \(unknown format\); it was saved with flax 0\.1\.2 \(here .*\); use those"
    with pytest.raises(UserError, match=said) as caught:
        restore(run, abstract_state)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=said):
        checkpoint.restore_params(run, abstract_state.params["fc6"]["kernel"].sharding)
    assert newest(run).is_dir()
    assert not (run / "damaged").exists()


@pytest.mark.parametrize(
    ("file", "damage"),
    [("state/manifest.ocdbt", empty), ("state/array_metadatas/process_0", empty), ("state/d/*", remove)],
)
def test_without_checksums_and_unreadable_the_one_before_is_used(run, abstract_state, capfd, file, damage):
    """As after a power cut between a save and the writing of its checksums.

    Where orbax reads it, its reads of the other arrays print a traceback each: 35, 16 and 28.
    """
    (newest(run) / intact.CHECKSUMS).unlink()
    damage(next(newest(run).glob(file)))
    state, _, said = restore(run, abstract_state)
    assert int(state.step) == BEFORE
    assert f"checkpoint {NEWEST} is damaged" in said
    assert capfd.readouterr().err == ""


def test_a_checkpoint_of_another_net_is_left_in_its_place(run, config):
    other = config(**{"model.fc_widths": (32, 16), "run.allow_changes": True})
    with pytest.raises(
        UserError, match=r"is of another net: .*fc7.* is \[.*\] there and \[.*\] by the config"
    ):
        training.train(other, run)
    assert newest(run).is_dir()
    assert not (run / "damaged").exists()
