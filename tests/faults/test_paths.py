"""Unusual paths of workdirs: each works, or is refused before anything is written."""

import pathlib
import shlex

import jax
import jax.numpy as jnp
import pytest

from alexnet_jax import train as training
from alexnet_jax.common.errors import UserError
from alexnet_jax.run import checkpoint, intact, status, workdir
from alexnet_jax.run.record import Record
from tests.faults import runs

# Characters with a meaning in shells, globs, URLs, formats or on other systems, alone and between letters.
PARTS = (
    *("[x]", "[", "]", "[!a]", "*", "?", "\\", "%", "%20", "%s", "{}", "{a,b}", "'", '"', " ", "\t", "\n"),
    *("é", "日本語", "😀", "\udcff", "~", "$HOME", "#", "&", ";", "|", "!", "^", "=", "@", ":", "-", ".h"),
)
NAMES = [name for part in PARTS for name in (part, f"a{part}b")] + ["x" * 250]
REFUSED = ("[x]", "[!a]", "*", "?", "\\", "\udcff")  # orbax loses what it saves there, or cannot save


@pytest.fixture(scope="module")
def state():
    return {"params": {"w": jnp.arange(12.0).reshape(3, 4)}, "step": jnp.int32(3)}


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_path_works_or_is_refused(tmp_path, state, name):
    """tensorflow#34290, ray#15367: brackets in the path, as name or parent, lost the run."""
    path = tmp_path / name / name
    if any(part in name for part in REFUSED):
        with pytest.raises(UserError, match=r"orbax cannot save to a path with .*; choose one without"):
            workdir.check_path(path)
        return
    workdir.check_path(path)
    path.mkdir(parents=True)
    checkpoints = checkpoint.Checkpoints(path)
    checkpoints.save(3, state, {"evaluated_step": 2})
    checkpoints.wait()
    checkpoints.close()
    said = []
    intact._read_one_by_one(path / checkpoint.DIRECTORY / "3")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    restored = checkpoint.Checkpoints(path, say=said.append).restore(abstract)
    assert restored is not None
    assert runs.digest(restored[0]) == runs.digest(state)
    assert (restored[1], said) == ({"evaluated_step": 2}, [])


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_the_commands_at_the_end_of_a_run_are_for_its_path(tmp_path, name):
    path = tmp_path / name
    curves, use, more = status.farewell(path, "done", Record(), num_classes=10)[1:]
    assert shlex.split(curves)[1:] == ["tensorboard", f"--logdir={path}"]
    assert shlex.split(use)[-1] == f"--weights={path}"
    assert f"--workdir={path}" in shlex.split(more)


def test_the_longest_path_that_is_accepted_works(tmp_path, state):
    path = tmp_path
    while len(str(path)) < workdir.PATH_MAX - workdir.LONGEST_BELOW - 202:
        path /= "x" * 200
    path /= "x" * (workdir.PATH_MAX - workdir.LONGEST_BELOW - len(str(path)) - 1)
    workdir.check_path(path)
    path.mkdir(parents=True)
    checkpoints = checkpoint.Checkpoints(path)
    checkpoints.save(10**9, state, {})
    checkpoints.wait()
    assert checkpoints.saved_step == 10**9
    with pytest.raises(UserError, match="too long by 1 bytes; choose a shorter path"):
        workdir.check_path(path.with_name(f"{path.name}x"))


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket", "hdfs://host:8020/run", "file:///tmp/run"])
def test_a_url_is_refused(url):
    """tensorpack#1317: a bucket became a local folder, and nothing was saved in it."""
    with pytest.raises(UserError, match="looks like a URL, and only directories can be written"):
        workdir.check_path(pathlib.Path(url))


def test_a_refused_path_is_one_line_before_anything_is_written(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("gs://bucket/run", "r/[x]"):
        with pytest.raises(UserError, match="--workdir=") as caught:
            training.train(config(), path)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
