"""Users, folders, devices, launchers and terminals that are not as expected: one line, or it works."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from alexnet_jax import __main__
from alexnet_jax.common import host, paths
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import inference, sources
from alexnet_jax.run import processes
from tests import imagenet_forms, starts, tiny
from tests.faults import runs
from tests.tools.test_features import net  # noqa: F401  (a fixture)

SHORT = {"run.total_steps": 2, "run.log_every_steps": 1, "run.eval_every_epochs": 1.0}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.make_images(tmp_path_factory.mktemp("images"), train=2, test=1)


def a_line(done, *words: str) -> None:
    """Exit code 2 and one line that has the words, after notes."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for word in words:
        assert word in lines[0]


def command(
    *arguments: object, obedient: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m alexnet_jax ...`; an empty variable is removed."""
    env = {**runs.environment(), "PYTHONPATH": str(starts.ROOT), **environment}
    start = [sys.executable, *(["-c", OBEDIENT] if obedient else []), "-m", "alexnet_jax"]
    return subprocess.run(
        [*start, *map(str, arguments)],
        env={key: value for key, value in env.items() if value},
        capture_output=True,
        text=True,
        timeout=400,
    )


# --- Folders that may not be read -------------------------------------------------------------------------


# Makes root obey the permissions of files: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH are dropped by prctl for
# the program that is then started.
OBEDIENT = """
import ctypes, os, sys
if os.geteuid() == 0:
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


OPEN = """
import sys
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import inference, sources
for split in ("train", "test"):
    for read in (sources.open_source, lambda *_: inference.find([f"{sys.argv[1]}/{split}"])):
        try:
            read(f"folder:{sys.argv[1]}", split)
            print("opened")
        except UserError as error:
            print(error)
"""
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="capabilities are Linux's")


@needs_linux
@pytest.mark.parametrize("closed", ["", "train", "test", "train/class3", "test/class3", "test/class3/deeper"])
def test_a_folder_without_the_right_to_read(closed, images, tmp_path):
    """rescuezilla#667, picard#1666: a folder of another user, such as lost+found, ended in a traceback."""
    root = shutil.copytree(images, tmp_path / "images")
    folder = root / closed
    folder.mkdir(exist_ok=True)
    folder.chmod(0)
    try:
        done = subprocess.run(
            [sys.executable, "-c", OBEDIENT, "-c", OPEN, str(root)],
            env=runs.environment(),
            cwd=starts.ROOT,
            capture_output=True,
            text=True,
        )
    finally:
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    train, train_found, test, test_found = done.stdout.splitlines()
    refused = "Permission denied"
    for said, split in ((train_found, "train"), (test_found, "test"), (train, "train"), (test, "test")):
        # The classes of the test set are those of the training set, which is therefore listed, too.
        needed = not closed or closed.startswith(split) or (said is test and closed == "train")
        assert (refused in said) == needed and (said == "opened") == (not needed), said
        assert not needed or str(folder) in said


@needs_linux
def test_a_closed_class_is_one_line_of_the_command(images, net, tmp_path):  # noqa: F811
    root = shutil.copytree(images, tmp_path / "images")
    (root / "test/class3").chmod(0)
    done = command("predict", root / "test", f"--weights={net}", obedient=True)
    (root / "test/class3").chmod(0o755)
    a_line(done, f"{root / 'test/class3'}: cannot be read (Permission denied); allow it or remove the folder")


# --- Kaggle's validation images ---------------------------------------------------------------------------


@pytest.fixture
def kaggle(tmp_path) -> imagenet_forms.Forms:
    ids = ["n01440764", "n01443537"]
    return imagenet_forms.Forms(tmp_path, ids, ids * 10, imagenet_forms.photographs(26))


def start(root: pathlib.Path, workdir: pathlib.Path, **overrides: object):
    values = {**tiny.NET, **SHORT, "data.source": f"kaggle:{root}", **overrides}
    flags = [f"--config.{key}={value}".replace(" ", "") for key, value in values.items()]
    return starts.run([f"--workdir={workdir}", *flags], env=runs.environment())


@pytest.mark.slow
def test_kaggle_s_validation_images_sorted_into_folders(kaggle, tmp_path):
    """pycls#52: `valprep.sh`, which most guides run, was noticed at the first test, an epoch later."""
    val = kaggle.root / "kaggle/ILSVRC/Data/CLS-LOC/val"
    for name, (wordnet_id, _) in kaggle.val.items():
        (val / wordnet_id).mkdir(exist_ok=True)
        (val / name).rename(val / wordnet_id / name)
    done = start(kaggle.root / "kaggle", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "on 20 images" in done.stderr and "bad image" not in done.stderr


@pytest.mark.parametrize(("kept", "words"), [
    (0, "has none of the 20 images; unpack the archive again"),
    (15, "5 of 20 test images are missing, more than data.max_bad_fraction=0.01, such as ILSVRC2012"),
])  # fmt: skip
def test_kaggle_s_validation_images_are_looked_at_when_a_run_is_opened(kept, words, kaggle, tmp_path):
    """pycls#52: an empty or half unpacked `val`."""
    val = kaggle.root / "kaggle/ILSVRC/Data/CLS-LOC/val"
    for path in sorted(val.iterdir())[kept:]:
        path.unlink()
    a_line(start(kaggle.root / "kaggle", tmp_path / "run"), words)
    assert not (tmp_path / "run").exists()
    if kept:  # within the limit it is counted
        done = start(kaggle.root / "kaggle", tmp_path / "run", **{"data.max_bad_fraction": 0.5})
        assert done.returncode == 0, done.stderr
        assert f"note: {val}: missing: 5 (ILSVRC2012_val_00000016.JPEG, " in done.stderr


# --- Devices ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["cuda", "gpu", "no_such"])
def test_jax_platforms_of_a_machine_without(platform, images, net, tmp_path):  # noqa: F811
    """jax#25315: a traceback that ends with AssertionError, or with a backend that nobody named."""
    done = command("predict", images / "test", f"--weights={net}", JAX_PLATFORMS=platform)
    if done.returncode == 0:
        pytest.skip(f"this machine has a {platform}")
    a_line(done, f"JAX_PLATFORMS={platform}: JAX finds no such device", "or unset the variable")
    if platform == "cuda":
        done = command("train", *runs.command(images, tmp_path / "run"), JAX_PLATFORMS=platform)
        a_line(done, "JAX_PLATFORMS=cuda: JAX finds no such device")


@pytest.mark.parametrize("variable", ["JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION"])
def test_a_variable_that_jax_cannot_read_is_no_mistake_of_the_config(variable, images, net, tmp_path):  # noqa: F811
    for arguments in (
        ["train", f"--workdir={tmp_path / 'run'}"],
        ["predict", images / "test", f"--weights={net}"],
    ):
        a_line(command(*arguments, **{variable: "ja"}), f"error: {variable}=ja: ", "; correct it or unset it")


def test_a_config_that_gives_jax_a_wrong_value_is_no_mistake_of_the_environment(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("import jax\njax.config.update('jax_default_matmul_precision', 'ja')\n")
    done = command("train", f"--config={file}", f"--workdir={tmp_path / 'run'}")
    a_line(done, f"--config={file}: the file is broken (ValueError: new enum value", "got ja of type")


def test_another_assertion_is_no_missing_device(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(AssertionError) as raised:
        assert not __name__
    assert host.jax_mistake(raised.value) is None


# --- Launchers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["two", "-1", "2.0", "2(x2)"])
@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_a_launcher_s_number_that_is_none(name, value):
    """A shell script that sets the variable by itself: int() raised."""
    with pytest.raises(UserError, match=rf"{name}=.*: a launcher sets a number; unset it"):
        processes.find(environment={name: value})
    assert processes.find(count=1, environment={name: value}) is None
    assert processes.find(environment={name: ""}) is None


@pytest.mark.parametrize(("rank", "words"), [
    ("one", "OMPI_COMM_WORLD_RANK=one: a launcher sets a number"),
    ("2", "--process_id=2: must be at least 0 and below --num_processes=2"),
])  # fmt: skip
def test_a_wrong_rank_of_open_mpi(rank, words):
    half = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": rank, "JAX_COORDINATOR_ADDRESS": "a:1"}
    with pytest.raises(UserError, match=words):
        processes.find(environment=half)


def test_half_of_open_mpi_s_variables(tmp_path):
    """A size that a container inherits, without the rank: the process was number -1."""
    half = {"OMPI_COMM_WORLD_SIZE": "2", "JAX_COORDINATOR_ADDRESS": "a:1"}
    done = command("train", f"--workdir={tmp_path / 'run'}", **half)
    a_line(done, "the launcher's variables are incomplete or wrong", "--num_processes=1 runs alone")


# Each proper subset of what srun sets besides the number of tasks, also with nonsense in one of them.
SUBSETS = """
import itertools, json, os, sys
from alexnet_jax.common.errors import UserError
from alexnet_jax.run import processes
slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "host-[1-2]", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
said = []
for count in range(len(slurm) + 1):
    for names in itertools.combinations(slurm, count):
        for wrong in (None, *names):
            env = {name: "x" if name == wrong else slurm[name] for name in names}
            if "x" not in env.values() and count == len(slurm):
                continue  # all is well: it would wait for process 0
            for name in slurm:
                os.environ.pop(name, None)
            os.environ |= {"SLURM_STEP_NUM_TASKS": "2", **env}
            try:
                processes._start(processes.find(), 1)
                said.append("started")
            except UserError as error:
                said.append(str(error))
print(json.dumps(said), flush=True)
os._exit(0)  # threads of JAX may wait
"""


def test_every_part_of_slurm_s_variables():
    """A shell in an allocation, a container that inherits some of them, a script that sets one."""
    done = subprocess.run(
        [sys.executable, "-c", SUBSETS],
        env=runs.environment(),
        cwd=starts.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert len(said) == 16 + 32 - 1  # subsets, and each with each of its names wrong, but all of them right
    wrong_node_list = [line for line in said if "incomplete or wrong" not in line]
    assert wrong_node_list == [], wrong_node_list


# --- Users ------------------------------------------------------------------------------------------------


def unknown_user(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a user without an entry in passwd, as `docker run --user=12345` has it."""
    unshare = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"]).returncode:
        pytest.skip("this system lets nobody be another user")
    env = {key: value for key, value in runs.environment(**environment).items() if value}
    words = [*unshare, sys.executable, "-m", "alexnet_jax", *map(str, arguments)]
    return subprocess.run(words, env=env, cwd=starts.ROOT, capture_output=True, text=True, timeout=400)


NOBODY = {"HOME": "", "XDG_CACHE_HOME": "", "JAX_COMPILATION_CACHE_DIR": "", "USER": "", "LOGNAME": ""}


@pytest.mark.parametrize("home", ["", "/proc/nonexistent"])
def test_a_user_without_home_and_passwd_entry(home, images, net):  # noqa: F811
    """cactus#1803, `docker run --user`: each command ended with `Could not determine home directory`."""
    where = {**NOBODY, "HOME": home}
    done = unknown_user("predict", images / "test", f"--weights={net}", "--json", **where)
    assert done.returncode == 0 and done.stdout.count("\n") == 10, done.stderr


@pytest.mark.slow
def test_a_user_without_home_trains(images, tmp_path):
    where = {
        key: value for key, value in NOBODY.items() if not key.startswith("JAX")
    }  # compiled code is kept
    keys = {**tiny.NET, "data.source": f"folder:{images}", "run.total_steps": 2}
    flags = [f"--config.{key}={value}".replace(" ", "") for key, value in keys.items()]
    done = unknown_user("train", f"--workdir={tmp_path / 'run'}", *flags, **where)
    assert done.returncode == 0, done.stderr
    assert not (starts.ROOT / "~").exists()  # where TensorFlow's part of Keras wrote its settings


@pytest.mark.slow
def test_a_home_that_is_needed_and_unknown(images):
    a_line(unknown_user("predict", "~/x.png", **NOBODY), "~/x.png: there is no such home directory")
    a_line(unknown_user("train", "--workdir=~/run", **NOBODY), "~/run: there is no such home directory")
    a_line(
        unknown_user("predict", images, "--weights=caffe", **NOBODY), "set ALEXNET_JAX_CACHE to a directory"
    )


# --- Terminals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1"])
def test_an_output_that_cannot_print_a_class_name(encoding, images, net, tmp_path):  # noqa: F811
    """acd_cli#168, maxdevtools#20: UnicodeEncodeError under PYTHONIOENCODING=ascii or LANG=C."""
    from alexnet_jax.weights import pretrained

    loaded = pretrained.read(net)
    classes = ("Käfer", "日本", "ant", "bee", "😀")
    pretrained.save_pretrained(
        tmp_path / "net.npz", loaded.model, loaded.variables, loaded.preprocess, classes
    )
    name = os.fsencode(tmp_path) + b"/\xff.png"  # not UTF-8, printed as it is
    with open(name, "wb") as file:
        file.write(next(images.glob("test/*/*.png")).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "alexnet_jax", "predict", name, f"--weights={tmp_path / 'net.npz'}"],
        env=runs.environment(PYTHONIOENCODING=encoding, PYTHONPATH=str(starts.ROOT)),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == name
    codec = encoding.partition(":")[0]
    expected = {c.encode(codec, "backslashreplace") for c in classes}
    assert {line.split(b" %  ")[1] for line in lines[1:]} == expected


# --- Paths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "words"), [
    (["predict", "~/none.png", "--weights={net}"], "{home}/none.png: no such file"),
    (["predict", "~/pictures", "--weights=~/none"], "{home}/none: no such file"),
    (["features", "~/none", "--weights={net}", "--out=x.npz"], "{home}/none: no such file"),
    (["features", "~/pictures", "--weights={net}", "--out=~/none/x.npz"], "no folder {home}/none"),
    (["probe", "~/none.npz", "~/none.npz"], "{home}/none.npz: not a file of features"),
    (["nearest", "~/none.npz"], "{home}/none.npz: not a file of features"),
    (["nearest", "~/f.npz", "--queries=~/none.npz"], "{home}/none.npz: not a file of features"),
    (["nearest", "~/f.npz", "--figure=~/none/x.png"], "no folder {home}/none"),
    (["ensemble", "~/none.npz", "--source=embedded"], "{home}/none.npz: no such file"),
    (["ensemble", "{net}", "--images=~/none"], "{home}/none: no such file"),
    (["ensemble", "{net}", "--source=folder:~/none"], "{home}/none does not exist"),
    (["ensemble", "{net}", "--submission=~/none/x"], "no folder {home}/none"),
    (["ensemble", "{net}", "--submission=x", "--devkit=~/none"], "--devkit={home}/none: no meta.mat"),
    (["export", "~/none.npz", "~/x.npz"], "{home}/none.npz: no such file"),
    (["export", "{net}", "~/none/x.npz"], "no folder {home}/none"),
    (["prepare", "--source=folder:~/none", "--out=x"], "{home}/none does not exist"),
    (["prepare", "--source=embedded", "--out=~/pictures"], "{home}/pictures exists already"),
    (["demo", "--weights={net}", "--gallery=~/none"], "{home}/none: no such file"),
])  # fmt: skip
def test_a_tilde_is_the_home_directory(arguments, words, net, images, tmp_path, monkeypatch):  # noqa: F811
    """lightning#19058: taken literally by some flags, refused by others, expanded by the rest."""
    home = tmp_path / "home"
    shutil.copytree(images / "test", home / "pictures")
    np.savez(home / "f.npz", files=["a.png", "b.png"], features=np.eye(2, dtype=np.float32))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    arguments = [word.replace("{net}", str(net)) for word in arguments]
    with pytest.raises(UserError, match=re.escape(words.replace("{home}", str(home)))):
        __main__.main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert sorted(path.name for path in home.iterdir()) == ["f.npz", "pictures"]


FLAGS = [
    (["--config=~/none.py"], "--config={home}/none.py: no such file"),
    (["--mode=eval", "--workdir=~/none"], "{home}/none/config.json"),
    (["--workdir=~/file"], "--workdir={home}/file: cannot be written"),
    (["--workdir=~/run", "--config.data.source=folder:~/none"], "{home}/none does not exist"),
    (["--workdir=~/run", "--config.init.path=~/none.npz"], "{home}/none.npz: no such file"),
]


@pytest.mark.parametrize(("arguments", "words"), FLAGS)
def test_a_tilde_in_the_flags_of_a_run(arguments, words, tmp_path):
    """lightning#19058: `--workdir=~/run` made a folder called `~`."""
    (tmp_path / "file").write_text("")
    done = starts.run(arguments, env=runs.environment(HOME=str(tmp_path)), cwd=tmp_path)
    a_line(done, words.replace("{home}", str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_tilde_in_data_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"in {tmp_path}/t/downloads/manual; missing"):
        sources.open_source("tfds:imagenet2012", "train", data_dir="~/t")


OUTS = [
    (["features", "x"], "--out={}", ".npz"),
    (["ensemble", "x"], "--out={}", ".npz"),
    (["ensemble", "x"], "--submission={}", ""),
    (["nearest", "x"], "--figure={}", ".png"),
    (["export", "x"], "{}", ".npz"),
]


@pytest.mark.parametrize(("before", "flag", "ending"), OUTS)
def test_every_output_is_checked_before_the_work(before, flag, ending, tmp_path):
    """A missing folder, a folder, a wrong ending, a name too long for the temporary file beside it."""
    (tmp_path / f"folder{ending}").mkdir()
    (tmp_path / "file").write_text("")
    long = "x" * (250 - len(ending))  # fits by itself
    wrong = {f"none/x{ending}": "no folder", f"folder{ending}": "is a folder", f"file/x{ending}": "no folder"}
    wrong |= {f"{long}{ending}": "File name too long", f"{long * 2}{ending}": "File name too long"}
    if ending:
        wrong |= {"x.other": "must end in "}
    for name, words in wrong.items():
        with pytest.raises(UserError, match=words):
            __main__.main([*before, flag.format(tmp_path / name)])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["file", f"folder{ending}"])


@needs_linux
@pytest.mark.parametrize(
    ("before", "flag", "ending"), [*OUTS, (["prepare", "--source=embedded"], "--out={}", "")]
)
def test_an_output_without_the_right_to_write(before, flag, ending, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    done = command(*before, flag.format(folder / f"x{ending}"), obedient=True)
    a_line(done, f"{folder}", "written")


@pytest.mark.parametrize("name", ["x" * 300, f"{'x' * 250}/../{'y' * 300}/a"])
def test_a_directory_s_name_too_long(name, tmp_path):
    with pytest.raises(UserError, match="File name too long"):
        __main__.main(["prepare", "--source=embedded", f"--out={tmp_path / name}"])


def test_paths_without_a_tilde_stay_as_they_are():
    for name in ("a/~/b", "a~", "./~", "", ".", "/x//y"):
        assert paths.expanded(name) == pathlib.Path(name)


def test_a_file_whose_name_begins_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~$photo.jpg").write_bytes(b"")
    assert inference.find(["~$photo.jpg"]) == ["~$photo.jpg"]
