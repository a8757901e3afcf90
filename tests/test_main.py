"""`main.py` as users start it: real processes, real signals, exit codes and messages."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from alexnet_jax.run import checkpoint, logs
from tests import starts, tiny

ROOT = pathlib.Path(__file__).parents[1]
# A narrow net on the embedded images, with evaluations on the way; in larger batches there are fewer to test.
NET = {**tiny.NET, "data.batch_size": 40}
TINY = [
    *(f"--config.{key}={value}" for key, value in NET.items() if key != "augment.mean"),
    "--config.run.log_every_steps=5",
    "--config.run.eval_every_steps=20",
    "--config.run.save_every_steps=15",
]


def command(*arguments):
    return [sys.executable, str(ROOT / "main.py"), *map(str, arguments)]


def environment():
    # One device, as on a laptop; the tests' own process has eight.
    return {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


def run(*arguments, cwd=ROOT):
    return starts.run(arguments, env=environment(), cwd=cwd)


def run_from_nothing(*arguments, cwd=ROOT):
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=400
    )


def run_until(line, send, *arguments):
    """Starts a run and sends it a signal once `line` is seen on standard error."""
    process = starts.Main(arguments, env=environment())
    lines = []
    sent = False
    for text in process.lines():
        lines.append(text)
        if not sent and re.search(line, text):
            process.send_signal(send)
            sent = True
    return process.wait(timeout=200), "".join(lines)


def untimed(workdir):
    return [{k: v for k, v in line.items() if "second" not in k} for line in logs.read_metrics(workdir)]


def params(workdir):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.device_get(checkpoint.restore_params(workdir, sharding)[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 60 steps that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = run_from_nothing(*TINY, f"--workdir={workdir}", "--config.run.total_steps=60")
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_a_run_says_what_it_does_and_ends_with_0(whole):
    workdir, done = whole
    assert json.loads((workdir / "status.json").read_text())["status"] == "done"
    assert done.stdout == ""
    for said in ("12,000 train images in 10 classes", "step 60/60", "top-1 error", "tensorboard --logdir"):
        assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert {"config.json", "metrics.jsonl", "status.json", "checkpoints"} <= {
        p.name for p in workdir.iterdir()
    }
    # Nothing but our own lines: the libraries' chatter is kept away.
    assert not re.search(r"^[IWE]\d{4} |oneDNN|absl::InitializeLog", done.stderr, re.M)


@pytest.mark.slow
def test_the_default_net_learns_at_once(tmp_path):
    """A loss that rests at ln(classes) is what most AlexNets that do not train have in common."""
    done = run(f"--workdir={tmp_path / 'run'}", "--config.run.total_steps=60")
    assert done.returncode == 0, done.stderr
    losses = [line["train/loss"] for line in logs.read_metrics(tmp_path / "run") if "train/loss" in line]
    assert losses[-1] < 2.0 < np.log(10)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["eval"]["top1_error"] < 70


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGINT", 75), ("SIGKILL", -9)])
def test_an_interrupted_run_goes_on_to_the_same_bits(whole, tmp_path, name, code):
    arguments = [*TINY, f"--workdir={tmp_path / 'run'}", "--config.run.total_steps=60"]
    returned, said = run_until(r"step 25/60", getattr(signal, name), *arguments)
    assert returned == code, said
    if code == 75:
        assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "interrupted"
        assert f"go on      the same command with --workdir={tmp_path / 'run'}" in said
    resumed = run(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert "steps      0 to" not in resumed.stderr
    jax.tree.map(np.testing.assert_array_equal, params(whole[0]), params(tmp_path / "run"))
    assert untimed(tmp_path / "run") == untimed(whole[0])


@pytest.mark.slow
def test_a_second_signal_stops_at_once(tmp_path):
    process = starts.Main([*TINY, f"--workdir={tmp_path / 'run'}"], env=environment())
    next(text for text in process.lines() if "step 25/" in text)
    process.send_signal(signal.SIGSTOP)  # both signals arrive before it can act on the first
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) in (128 + signal.SIGTERM, 75)
    # What was saved before is there and goes on.
    resumed = run(*TINY, f"--workdir={tmp_path / 'run'}", "--config.run.total_steps=30")
    assert resumed.returncode == 0, resumed.stderr


def test_eval_mode_tests_the_last_checkpoint(whole):
    workdir, _ = whole
    done = run("--mode=eval", f"--workdir={workdir}", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    expected = json.loads((workdir / "status.json").read_text())["eval"]
    assert result["step"] == 60
    assert result["top1_error"] == expected["top1_error"]
    assert result["examples"] == 2000


@pytest.mark.slow
def test_without_a_workdir_a_fresh_one_is_made_where_the_user_is(tmp_path):
    done = run(*TINY, "--config.run.total_steps=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"default-\d{8}-\d{6}", made.name)


def test_summary_of_the_paper_s_net():
    table = run("--config=configs/imagenet2012.py", "--mode=summary")
    assert "60,965,224" in table.stdout
    assert "724,406,816" in table.stdout
    assert "659,272" in table.stdout
    as_json = json.loads(run("--config=configs/imagenet2012.py", "--mode=summary", "--json").stdout)
    assert as_json["total"]["parameters"] == 60_965_224
    assert [layer["name"] for layer in as_json["layers"]][:2] == ["conv1", "conv2"]


@pytest.mark.slow
def test_none_on_the_command_line_and_in_a_flag_file(tmp_path):
    (tmp_path / "flags").write_text("--config.run.total_steps=7\n--config.run.total_steps=None\n")
    nones = ["--config.data.data_dir=None", "--config.model.padding=None", "--config.run.total_epochs=0.001"]
    done = run(
        *TINY,
        *nones,
        "--config.data.batch_size=12",
        f"--flagfile={tmp_path}/flags",
        f"--workdir={tmp_path}/run",
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["run"]["total_steps"], config["run"]["total_epochs"]) == (None, 0.001)
    assert (config["data"]["data_dir"], config["model"]["padding"]) == (None, None)


def test_an_interrupt_while_the_libraries_load_is_quiet():
    for seconds in (0.2, 0.5):  # after the first line of main.py, before the last library
        process = subprocess.Popen(command("--help"), cwd=ROOT, stderr=subprocess.PIPE, text=True)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
        assert (process.returncode, said) in ((130, ""), (0, ""))


def test_help_is_for_people():
    done = run("--help")
    assert done.returncode == 0
    assert "--workdir" in done.stdout
    assert "Traceback" not in done.stderr


BROKEN = "def get_config(:\n"
RAISES = "def get_config():\n    raise RuntimeError('no such thing')\n"
RAISES_VALUE = "def get_config():\n    raise ValueError('no such\\nvalue')\n"
RETURNS_NONE = "def get_config():\n    pass\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config=configs/no_such.py"], "--config=configs/no_such.py"),
        (["--config={tmp}/broken.py"], "SyntaxError"),
        (["--config={tmp}/raises.py"], "no such thing"),
        (["--config={tmp}/raises_value.py"], "broken (ValueError: no such value)"),
        (["--config={tmp}/nothing.py"], "nothing.py: its get_config() gives no config"),
        (["--config={tmp}/nothing.py", "--config.data.batch_size=3"], "get_config() gives no config"),
        (["--config={tmp}/a_file"], "a_file: has no function get_config()"),
        (["--config={tmp}"], "is a directory"),
        (["--config", "/no/such.py", "--config.data.batch_size=3"], "--config=/no/such.py: no such file"),
        (["--config", "{tmp}/broken.py"], "broken.py: the file is broken (SyntaxError"),
        (["--flagfile=/nope"], "'/nope'"),
        (["--config.data={}"], "--config.data: no such key"),
        (["--config.data.source.x=1"], "--config.data.source.x: no such key"),
        (["--config.data.batch_size=None"], "data.batch_size=None: must be a whole number"),
        (["--workdir="], "--workdir=: name a directory"),
        (["--json"], "--json goes with"),
        (["--mode=eval", "--workdir={tmp}/empty", "--config.more.x=2"], "--config.more.x"),
        (["--config.data.batchsize=3"], "did you mean data.batch_size?"),
        (["--config.optimizer.lr=3"], "the config has no key 'lr'; did you mean optimizer.learning_rate?"),
        (["--config.model.lrn=False"], "the config has no key 'lrn'; did you mean model.norm?"),
        (["--config.lr=0.1"], "--config.lr: no such key; did you mean --config.optimizer.learning_rate?"),
        (["--lr=0.1"], "--lr: no such flag; did you mean --config.optimizer.learning_rate?"),
        (["--batch-size=2"], "--batch-size: no such flag; did you mean --config.data.batch_size?"),
        (["--epochs=2"], "--epochs: no such flag; did you mean --config.run.total_epochs?"),
        (["--data=/photos"], "--data: no such flag; did you mean --config.data.source?"),
        (["--workdr=x"], "--workdr: no such flag; did you mean --workdir?"),
        (["--nothing.like.it=2"], "nothing.like.it"),
        (["--config.nothing.at.all=3"], "--config.nothing.at.all"),
        (["--config.data.batch_size=many"], "config.data.batch_size=many"),
        (["--config.model.variant=papper"], "did you mean paper?"),
        (["--config.model.variant=alexnet"], "one of paper, original, caffe, caffenet, torchvision"),
        (["--config.model.layer1=activation lnr pool"], "model.layer1"),
        (["--config.run.total_steps=5", "--config.run.total_epochs=1"], "set exactly one"),
        (["--config.data.source=tfds:imagenete"], "did you mean imagenette"),
        (["--config.data.source=folder:/no/such/folder"], "/no/such/folder"),
        (["--config.data.source=nowhere"], "data.source=nowhere"),
        (["--config.data.source={tmp}/empty"], "begin with the kind of source: folder:{tmp}/empty"),
        (["--config.data.source=https://x.org/a.tar"], "data.source=https://x.org/a.tar: is a URL"),
        (["--config.init.path=https://x.org/a.pth"], "https://x.org/a.pth: is a URL"),
        (["--config.data.batch_size=7", "--config.mesh.data=2"], "mesh.data=2"),
        (["--config.data.image_size=30"], "30 x 30 are too small"),
        (["--workdir=/proc/no/such"], "--workdir=/proc/no/such"),
        (["--workdir={tmp}/a_file"], "a_file"),
        (["--mode=eval"], "--workdir"),
        (["--mode=eval", "--workdir={tmp}/empty"], "config.json"),
        (["--mode=test"], "--mode"),
        (["--confg=x"], "did you mean --config?"),
        (["train"], "'train'"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(tmp_path, arguments, named):
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "raises.py").write_text(RAISES)
    (tmp_path / "raises_value.py").write_text(RAISES_VALUE)
    (tmp_path / "nothing.py").write_text(RETURNS_NONE)
    (tmp_path / "a_file").write_text("")
    (tmp_path / "empty").mkdir()
    done = run(*(a.replace("{tmp}", str(tmp_path)) for a in arguments))
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert named.replace("{tmp}", str(tmp_path)) in lines[0]
    assert done.stdout == ""
