"""Multi-process runs: launcher detection, agreement, deaths, resuming."""

import json
import re
import shutil
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest

from alexnet_jax import columns, evaluate
from alexnet_jax import config as configs
from alexnet_jax import train as training
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import batches
from alexnet_jax.run import checkpoint, logs, processes
from alexnet_jax.run import workdir as workdirs
from configs import default
from tests import tiny
from tests.processes import ROOT, RUN, Job, arguments, command, environment


def losses(workdir):
    return [line["train/loss"] for line in logs.read_metrics(workdir) if "train/loss" in line]


def untimed(workdir):
    return [{k: v for k, v in line.items() if "second" not in k} for line in logs.read_metrics(workdir)]


def params(workdir):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.device_get(checkpoint.restore_params(workdir, sharding)[0])


def status(workdir):
    return json.loads((workdir / logs.STATUS).read_text())


# --- launcher detection ----------------------------------------------------------------------------------

OMPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
OMPI4 = {**OMPI, "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "5",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NODELIST": "node[1-3]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_NODES": "3",
}


def place(coordinator=None, count=None, index=None, devices=()):
    """Arguments of `jax.distributed.initialize`; what is None, JAX asks the launcher for."""
    own = None if devices is None else list(devices)
    return {
        "coordinator_address": coordinator,
        "num_processes": count,
        "process_id": index,
        "local_device_ids": own,
    }


@pytest.mark.parametrize(
    ("environment", "flags", "expected"),
    [
        ({}, {}, None),
        ({}, {"count": 1}, None),
        ({}, {"coordinator": "a:1", "count": 2, "index": 1}, place("a:1", 2, 1)),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, {}, None),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, {"count": 2, "index": 0}, place("a:1", 2, 0)),
        (OMPI4, {}, place(devices=[1])),
        (OMPI4, {"count": 1}, None),
        (OMPI, {"coordinator": "b:2"}, place("b:2", 4, 3, [1])),
        ({**OMPI4, "OMPI_COMM_WORLD_SIZE": "1"}, {}, None),
        ({**OMPI4, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, {}, place()),
        (SLURM, {}, place(devices=None)),  # JAX gives a process the device of its number on its host
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "1"}, {}, place()),
        ({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1"}, {}, place(devices=None)),
        ({**SLURM, "SLURM_STEP_NUM_NODES": "5"}, {}, place()),  # one per host: it has all devices
        ({**SLURM, **OMPI4}, {}, place(devices=[1])),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, {}, None),
        # A batch script without srun: the job has tasks, but the process is alone.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "5", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, {}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, {}, None),  # a notebook on a cluster
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, {}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}, place(devices=None)),
    ],
)
def test_a_launcher_is_detected_only_with_several_processes(environment, flags, expected):
    assert processes.find(**flags, environment=environment) == expected


@pytest.mark.parametrize(
    ("environment", "flags", "words"),
    [
        ({}, {"count": 2}, ["--coordinator_address, --process_id: missing"]),
        ({}, {"index": 0}, ["--coordinator_address, --num_processes: missing"]),
        ({}, {"coordinator": "a:1", "count": 2, "index": 2}, ["--process_id=2", "--num_processes=2"]),
        ({}, {"coordinator": "a:1", "count": 2, "index": -1}, ["--process_id=-1"]),
        ({}, {"coordinator": "a", "count": 2, "index": 0}, ["--coordinator_address=a", "host:port"]),
        ({}, {"count": 0}, ["--num_processes=0"]),
        (OMPI, {}, ["--coordinator_address: missing", "the host of process 0"]),
    ],
)
def test_incomplete_or_contradictory_flags(environment, flags, words):
    with pytest.raises(UserError) as error:
        processes.find(**flags, environment=environment)
    for word in words:
        assert word in str(error.value)


def test_half_of_a_launcher_s_variables_is_one_line(tmp_path):
    half = {key: SLURM[key] for key in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")}
    done = subprocess.run(
        command(f"--workdir={tmp_path}"), env={**environment(), **half}, capture_output=True, text=True
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: the launcher's variables are incomplete or wrong")
    assert "--num_processes=1" in last


def test_a_port_in_use_is_one_line():
    with socket.create_server(("", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with (
            pytest.raises(
                UserError, match=f"--coordinator_address={address}: .*in use.*; choose a free port"
            ),
            processes.job(place(address, 2, 0)),
        ):
            pass


def test_no_module_of_jax_s_own_is_used():
    private = re.compile(r"jax\._src|jaxlib\._|\bxla_client\b|\bxla_extension\b")
    folders = ("alexnet_jax", "benchmarks", "configs", "experiments", "notebooks", "scripts")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    assert [str(path) for path in [*files, ROOT / "main.py"] if private.search(path.read_text())] == []


class _Device:
    def __init__(self, index, process):
        self.id, self.process_index = index, process


def mesh_of(data, column, processes):
    """A mesh of devices that belong to `processes`, in order."""
    return columns.make_mesh(data, column, [_Device(i, p) for i, p in enumerate(processes)])


@pytest.mark.parametrize(
    ("mesh", "processes", "me", "share"),
    [
        ((4, 1), [0, 0, 1, 1], 0, (0, 2)),
        ((4, 1), [0, 0, 1, 1], 1, (1, 2)),
        ((4, 1), [1, 0, 1, 0], 1, (1, 2)),  # numbered across the processes, as on some TPU slices
        ((2, 2), [0, 0, 1, 1], 1, (1, 2)),
        ((1, 2), [0, 1], 1, (0, 1)),  # one column per process: both read the entire batch
        ((2, 2), [0, 1, 2, 3], 1, (0, 2)),
        ((2, 2), [0, 1, 2, 3], 2, (1, 2)),
        ((2, 2), [0, 0, 0, 0], 0, (0, 1)),
    ],
)
def test_each_process_reads_the_rows_that_it_computes(monkeypatch, mesh, processes, me, share):
    monkeypatch.setattr(jax, "process_index", lambda: me)
    assert batches.process_slice(mesh_of(*mesh, processes)) == share


def test_meshes_that_do_not_fit_the_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with pytest.raises(UserError, match=r"mesh.column=2: does not fit the 3 devices"):
        batches.process_slice(mesh_of(3, 2, [0, 0, 0, 1, 1, 1]))
    with pytest.raises(UserError, match=r"leaves process 1 without any"):
        mesh_of(1, 1, [0, 1])


# --- the same on any number of devices and processes -----------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 60 training and 30 test images."""
    return tiny.make_images(tmp_path_factory.mktemp("images"), train=6, test=3)


def alone(images, workdir, data, column):
    """Trains `RUN` in this process, on forced host devices; returns the workdir."""
    values = {**RUN, "data.source": f"folder:{images}", "mesh.data": data, "mesh.column": column}
    config = configs.resolve(default.get_config(), values)
    assert training.train(config, workdir) == "done"
    return workdir


@pytest.fixture(scope="module")
def one_device(images, tmp_path_factory):
    return alone(images, tmp_path_factory.mktemp("one") / "run", 1, 1)


@pytest.fixture(scope="module")
def two_processes(images, tmp_path_factory):
    """An undisturbed run of two processes."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    job = Job(2, workdir.parent / "logs", *arguments(images, workdir))
    assert job.codes() == [0, 0], job.said(0) + job.said(1)
    return workdir, job


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 2), (4, 2)])  # 2 x 1 and 2 x 2 follow, in several processes
def test_fifty_steps_on_forced_devices(images, one_device, tmp_path, mesh):
    expected = losses(one_device)
    assert len(expected) == 10
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(losses(alone(images, tmp_path / "run", *mesh)), expected, rtol=1e-4)


@pytest.mark.slow
def test_fifty_steps_in_two_processes(one_device, two_processes):
    workdir, job = two_processes
    np.testing.assert_allclose(losses(workdir), losses(one_device), rtol=1e-4)
    assert "2 x 1 (data x column)" in job.said(0)
    # Only the first process says and writes anything.
    assert "step" not in job.said(1)
    assert len(list(workdir.glob("events.out.tfevents*"))) == 1
    assert status(workdir)["eval"]["examples"] == 30


@pytest.mark.slow
def test_fifty_steps_in_four_processes_with_each_column_in_its_own(images, one_device, tmp_path):
    workdir = tmp_path / "run"
    job = Job(4, tmp_path / "logs", *arguments(images, workdir, **{"mesh.column": 2}))
    assert job.codes() == [0] * 4, "".join(job.said(index) for index in range(4))
    assert "2 x 2 (data x column)" in job.said(0)
    np.testing.assert_allclose(losses(workdir), losses(one_device), rtol=1e-4)
    # The checkpoint of four processes on 2 x 2 has the same errors here on one device and on 1 x 2.
    results = []
    for mesh in ((1, 1), (1, 2)):
        config = configs.of_workdir(workdir, {"mesh.data": mesh[0], "mesh.column": mesh[1]})
        result, step = evaluate.evaluate_workdir(config, workdir)
        assert step == 50
        results.append(result)
        assert result.top1_error == status(workdir)["eval"]["top1_error"]
        assert result.loss == pytest.approx(status(workdir)["eval"]["loss"], rel=1e-6)
    assert results[0].top5_error == results[1].top5_error


@pytest.mark.slow
def test_two_processes_resume_a_run_of_one(images, one_device, tmp_path):
    """And evaluate its checkpoint."""
    config = configs.of_workdir(one_device, {"run.total_steps": 20})
    assert training.train(config, tmp_path / "run") == "done"
    job = Job(2, tmp_path / "logs", *arguments(images, tmp_path / "run"))
    assert job.codes() == [0, 0], job.said(0) + job.said(1)
    assert "steps      20 to 50" in job.said(0)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(one_device), rtol=1e-4)
    tested = Job(2, tmp_path / "logs", "--mode=eval", "--json", f"--workdir={tmp_path / 'run'}")
    assert tested.codes() == [0, 0], tested.said(0) + tested.said(1)
    result = json.loads(tested.said(0).splitlines()[-1])
    assert result["top1_error"] == status(tmp_path / "run")["eval"]["top1_error"]
    assert "top1_error" not in tested.said(1)


# --- shutdown --------------------------------------------------------------------------------------------

RESUME = "start the same command again in all processes to resume from the last checkpoint"


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_a_death_ends_all_and_both_resume(images, two_processes, tmp_path):
    workdir = tmp_path / "run"
    job = Job(2, tmp_path / "logs", *arguments(images, workdir))
    job.wait_until(r"step 15/50")
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.codes() == [75, 75], job.said(0) + job.said(1)
    stopped = status(workdir)
    assert f"interrupted after step {stopped['step']}: by SIGTERM\n" in job.said(0)
    assert stopped["status"] == "interrupted"
    assert 15 <= stopped["step"] < 50

    job = Job(2, tmp_path / "logs", *arguments(images, workdir))
    job.wait_until(r"step 40/50")
    killed = time.monotonic()
    job.processes[1].kill()
    code = job.processes[0].wait(timeout=60)
    assert code != 0
    assert time.monotonic() - killed < 60
    job.wait_until(f"error: .*{RESUME}", alive=False, seconds=10)

    job = Job(2, tmp_path / "logs", *arguments(images, workdir))
    assert job.codes() == [0, 0], job.said(0) + job.said(1)
    jax.tree.map(np.testing.assert_array_equal, params(workdir), params(two_processes[0]))
    assert untimed(workdir) == untimed(two_processes[0])


@pytest.mark.slow
def test_the_death_of_process_0_ends_the_others(images, tmp_path):
    run = arguments(images, tmp_path / "run", **{"data.batch_size": 6, "run.total_steps": 100000})
    job = Job(3, tmp_path / "logs", *run)
    job.wait_until(r"step 10/")
    job.processes[0].kill()
    for index in (1, 2):
        assert job.processes[index].wait(timeout=60) != 0
        job.wait_until(f"error: .*{RESUME}", index, alive=False, seconds=10)
    assert status(tmp_path / "run")["status"] == "running"  # process 0 alone writes it
    assert workdirs.read_status(tmp_path / "run")["status"] == "failed"


@pytest.mark.slow
def test_other_flags_and_other_images_end_all_with_one_line(images, tmp_path):
    """The images have the same path on both hosts, but on one of them some or all are missing."""
    whole, some, none = (tmp_path / name for name in ("whole", "some", "none"))
    for host in (whole, some):
        shutil.copytree(images, host / "images")
    next((some / "images/train").glob("*/*.png")).unlink()
    none.mkdir()

    def job(name, source, **kwargs):
        return Job(2, tmp_path / f"logs_{name}", *arguments(source, tmp_path / name), **kwargs)

    jobs = [  # at the same time, because each mostly waits
        job("flags", images, each=lambda i: ["--config.run.seed=3"] * i),
        job("fewer", "images", folders=[whole, some]),
        job("none", "images", folders=[whole, none]),
    ]
    assert [job.codes() for job in jobs] == [[2, 2]] * 3
    flags, fewer, absent = ([job.said(i).strip().splitlines()[-1] for i in (0, 1)] for job in jobs)
    for last in flags:
        assert last.startswith("error: process 1 was given other flags than process 0 (run.seed: 0 -> 3)")
    for last in fewer:
        assert "has 60 train images" in last
        assert "but 59 train images of 10 classes for process 1" in last
    assert absent[0].startswith("error: process 1: data.source=folder:images")


@pytest.mark.slow
def test_a_process_left_alone_at_start_up_says_so(images, tmp_path):
    of_two = [*arguments(images, tmp_path / "run"), "--num_processes=2", "--start_timeout_seconds=4"]
    jobs = [Job(1, tmp_path / f"logs{index}", *of_two, f"--process_id={index}") for index in (0, 1)]
    for index, job in enumerate(jobs):
        assert job.codes() == [1]
        last = job.said(0).strip().splitlines()[-1]
        assert last.startswith(f"error: process {index} of 2: not all other processes started within 4 s")
