"""The order of examples, and the batches made of them."""

import hashlib
import io
import itertools
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from alexnet_jax import columns
from alexnet_jax.common import host
from alexnet_jax.common.errors import Fault, UserError
from alexnet_jax.data import pipeline, record_files, sources, tfds_metadata
from alexnet_jax.data.batches import on_device
from alexnet_jax.run import logs, pace
from tests import peak


class Numbered:
    """Example i has label i and is a grey image of level i % 256; those in `bad` are not images."""

    num_classes, class_names, class_ids, statistics, description = 2, ("a", "b"), ("a", "b"), None, "numbered"

    def __init__(self, count: int, bad: tuple[int, ...] = ()) -> None:
        self.count, self.bad = count, bad

    def __len__(self) -> int:
        return self.count

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        return [b"text" if i in self.bad else png(int(i) % 256) for i in indices], indices.astype(np.int32)

    def name(self, index: int) -> str:
        return f"number {index}"


def png(level: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (2, 2), level).save(out, "PNG")
    return out.getvalue()


def take(batches, count: int) -> list[dict[str, np.ndarray]]:
    found = list(itertools.islice(batches, count))
    batches.close()
    return found


def test_epoch_order_is_a_permutation_that_never_changes():
    order = pipeline.epoch_order(1000, seed=3, epoch=7)
    assert sorted(order) == list(range(1000))
    assert pipeline.epoch_order(10, seed=0, epoch=0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


@pytest.mark.parametrize("other", [(1000, 4, 7), (1000, 3, 8)])
def test_epoch_order_depends_on_seed_and_epoch(other):
    assert np.any(pipeline.epoch_order(1000, 3, 7) != pipeline.epoch_order(*other))


def test_epoch_order_is_uniform():
    orders = np.array([pipeline.epoch_order(4, seed, 0) for seed in range(4800)])
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert abs(counts - 200).max() < 5 * np.sqrt(200)


@pytest.mark.parametrize("batch_size", [3, 10, 25])
def test_batches_are_the_concatenation_of_epochs(batch_size):
    row = np.concatenate([pipeline.epoch_order(10, 5, epoch) for epoch in range(9)])
    got = [pipeline.batch_indices(step, 10, batch_size, 5) for step in range(3)]
    np.testing.assert_array_equal(np.concatenate(got), row[: 3 * batch_size])


def test_the_order_of_2012_is_that_of_the_first_epoch():
    """Ten images in files of four, read in turn forever; every second epoch begins within a batch."""
    written = pipeline.epoch_order(10, 5, 0).tolist()
    files = [written[:4], written[4:8], written[8:]]
    read = itertools.chain.from_iterable(itertools.chain.from_iterable(itertools.repeat(files)))
    batches = take(
        pipeline.train_batches(Numbered(10), batch_size=4, resize_size=2, seed=5, order="fixed"), 6
    )
    for batch in batches:
        assert batch["index"].tolist() == list(itertools.islice(read, 4))
    assert batches[5]["index"].tolist() == batches[0]["index"].tolist()  # 20 images later


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_train_batches_depend_neither_on_the_number_of_hosts_nor_on_the_start(hosts):
    source, steps, start = Numbered(50), 19, 8  # three epochs of 50; the second start is within epoch 1
    expected = np.stack([pipeline.batch_indices(step, 50, 8, 1) for step in range(steps)])
    assert np.bincount(np.concatenate(expected)[:150], minlength=50).tolist() == [3] * 50
    for first in (0, start):
        parts = [
            take(
                pipeline.train_batches(
                    source,
                    batch_size=8,
                    resize_size=4,
                    seed=1,
                    start_step=first,
                    host=(h, hosts),
                ),
                steps - first,
            )
            for h in range(hosts)
        ]
        got = [np.concatenate([part[i]["index"] for part in parts]) for i in range(steps - first)]
        np.testing.assert_array_equal(got, expected[first:])


def test_a_batch_holds_the_images_of_its_indices():
    (batch,) = take(pipeline.train_batches(Numbered(100), batch_size=40, resize_size=4, seed=0), 1)
    assert batch["image"].shape == (40, 4, 4, 3) and batch["image"].dtype == np.uint8
    np.testing.assert_array_equal(batch["image"][:, 1, 2, 0], batch["index"])
    np.testing.assert_array_equal(batch["label"], batch["index"])
    assert [batch[k].dtype for k in ("label", "weight", "index")] == [np.int32, np.float32, np.int64]


@pytest.mark.parametrize(("batch_size", "hosts"), [(1, 1), (4, 4), (6, 2), (20, 1), (20, 4), (64, 2)])
def test_eval_batches_have_every_example_once(batch_size, hosts):
    parts = [
        list(
            pipeline.eval_batches(
                Numbered(21, bad=(5,)), batch_size=batch_size, resize_size=2, host=(h, hosts)
            )
        )
        for h in range(hosts)
    ]
    assert len({len(part) for part in parts}) == 1
    batches = [batch for part in parts for batch in part]
    index, weight = (np.concatenate([batch[k] for batch in batches]) for k in ("index", "weight"))
    assert sorted(index[index >= 0]) == list(range(21))
    assert index[(index >= 0) & (weight == 0)].tolist() == [5]
    assert weight.sum() == 20


def test_a_bad_image_keeps_its_place_and_has_weight_0():
    (batch,) = take(pipeline.eval_batches(Numbered(8, bad=(2, 7)), batch_size=8, resize_size=4), 1)
    assert batch["weight"].tolist() == [1, 1, 0, 1, 1, 1, 1, 0]
    assert batch["image"][2].max() == 0 and batch["label"][2] == 2


def test_batch_size_that_the_hosts_do_not_divide():
    with pytest.raises(UserError, match=r"data\.batch_size: 6 .* 4 hosts"):
        next(pipeline.train_batches(Numbered(9), batch_size=6, resize_size=4, seed=0, host=(0, 4)))


def test_an_error_of_the_source_reaches_the_reader():
    class Broken(Numbered):
        def read(self, indices):
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        next(pipeline.eval_batches(Broken(4), batch_size=2, resize_size=4))


def test_embedded_set_through_the_pipeline():
    source = sources.open_source("embedded", "test")
    batches = list(pipeline.eval_batches(source, batch_size=512, resize_size=28))
    images = np.concatenate([b["image"][b["weight"] > 0] for b in batches])
    assert images.shape == (2000, 28, 28, 3)
    assert 70 < images.mean() < 76  # Fashion-MNIST's mean grey is 72.9


def test_no_batches_of_no_examples():
    assert list(pipeline.eval_batches(Numbered(0), batch_size=4, resize_size=2)) == []


PROGRAM = """
import sys
from alexnet_jax.data import pipeline, sources
source = sources.open_source("embedded", "train")
batches = pipeline.train_batches(source, batch_size=64, resize_size=64, seed=0)
print(next(batches)["weight"].sum())
{end}
"""


@pytest.mark.parametrize(
    "end",
    [
        "sys.exit(75)",
        *(
            pytest.param(end, marks=pytest.mark.slow)
            for end in ("batches.close()", "raise KeyboardInterrupt")
        ),
    ],
)
def test_a_program_ends_while_batches_are_being_decoded(end):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(end=end)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == {"b": 0, "s": 75, "r": -signal.SIGINT}[end[0]], done.stderr
    assert done.stdout == "64.0\n"
    assert done.stderr == "" or end[0] == "r"


START = """
import sys, time
import numpy as np
from alexnet_jax.data import pipeline
from tests import peak

class Many:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def read(self, indices):
        return [{image}] * len(indices), indices.astype(np.int32)

def first_batch(count, start_step):
    batches = pipeline.train_batches(
        Many(count), batch_size=128, resize_size=8, seed=1, start_step=start_step
    )
    batch = next(batches)
    batches.close()
    assert batch["weight"].sum() == 128
    return batch["index"]

first_batch(100, 0)
count, start = map(int, sys.argv[1:])
{change}
before, began = peak.kilobytes(), time.monotonic()
indices = first_batch(count, start)
print(time.monotonic() - began, peak.kilobytes() - before)
assert 0 <= indices.min() and indices.max() < count and len(set(indices)) == 128
"""
START_KILOBYTES = 300_000
# The order as Python integers, which take 36 bytes each.
AS_A_LIST = """
order = pipeline.epoch_order
pipeline.epoch_order = lambda *epoch: np.array(order(*epoch).tolist())
"""


def start(count: int, epoch: float, change: str = "") -> tuple[float, float]:
    """Seconds and kilobytes of the first batch in a new process."""
    program = START.format(image=repr(png(7)), change=change)
    seconds, kilobytes = map(float, peak.said_by(program, count, int(epoch * count / 128)))
    return seconds, kilobytes


@pytest.mark.slow
@peak.needed
@pytest.mark.parametrize("count", [1_281_167, 15_000_000])
@pytest.mark.parametrize("epoch", [0, 7.5])
def test_imagenet_starts_at_any_step_in_little_time_and_memory(count, epoch):
    seconds, kilobytes = start(count, epoch)
    assert seconds < 5 and kilobytes < START_KILOBYTES


@pytest.mark.slow
@peak.needed
def test_a_start_that_takes_much_memory_is_detected():
    assert start(15_000_000, 0, AS_A_LIST)[1] > START_KILOBYTES


class Disk(Numbered):
    """Serves one request at a time, each in `seconds`."""

    def __init__(self, count: int, seconds: float) -> None:
        super().__init__(count)
        self.seconds, self.head, self.reads = seconds, threading.Lock(), 0

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        with self.head:
            self.reads += 1
            time.sleep(self.seconds)
        return super().read(indices)


class Step:
    """The result of a step that takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def is_ready(self) -> bool:
        return time.monotonic() >= self.end

    def block_until_ready(self) -> "Step":
        time.sleep(max(0.0, self.end - time.monotonic()))
        return self


@pytest.mark.parametrize(
    ("read_seconds", "step_seconds", "least", "most"),
    [(0.0, 0.3, 0.0, 0.0), (0.2, 0.02, 0.5, 6.0)],
    ids=["fast", "slow"],
)
def test_a_slow_source_shows_in_the_wait_for_input(read_seconds, step_seconds, least, most):
    mesh, source = columns.make_mesh(1, 1), Disk(100, read_seconds)
    host = pipeline.train_batches(source, batch_size=8, resize_size=4, seed=0)
    in_flight = pace.InFlight(mesh)
    batches = pace.TrainingBatches(host, mesh, source, logs.NoLog("here"), in_flight)
    for step in range(12):  # as the loop of train.py, except for the step
        next(batches)
        in_flight.make_room()
        in_flight.add(Step(step_seconds))
        if step == 0:  # the loop leaves out the first wait, which includes compilation
            batches.wait_seconds = 0.0
    host.close()
    assert least <= batches.wait_seconds <= most


def test_the_next_batch_is_on_the_devices_ahead_of_time(monkeypatch):
    mesh, taken, placed = columns.make_mesh(2, 1), [], []
    place = jax.make_array_from_process_local_data

    def recorded(*arguments):
        placed.append(place(*arguments))
        return placed[-1]

    def batches():
        for batch in pipeline.eval_batches(Numbered(32), batch_size=8, resize_size=4):
            taken.append(batch)
            yield batch

    monkeypatch.setattr(jax, "make_array_from_process_local_data", recorded)
    ahead, arrays = on_device(batches(), mesh), len(("image", "label", "weight"))
    assert not taken
    for n in range(4):
        host, batch = next(ahead)
        current, following = placed[n * arrays : (n + 1) * arrays], placed[(n + 1) * arrays :]
        assert host is taken[n] and all(
            one is other for one, other in zip(batch.values(), current, strict=True)
        )
        np.testing.assert_array_equal(batch["label"], host["label"])
        if n < 3:  # exactly one batch ahead
            assert len(taken) == n + 2 and len(following) == arrays
            assert all(isinstance(one, jax.Array) and one.sharding.mesh == mesh for one in following)
            np.testing.assert_array_equal(following[1], taken[n + 1]["label"])
    assert next(ahead, None) is None and len(taken) == 4


# --- Recorded batches -----------------------------------------------------------------------------


def gradient(kind: str, number: int) -> bytes:
    """An image file of 16 x 16."""
    out = io.BytesIO()
    image = Image.linear_gradient("L").resize((16, 16)).point(lambda v: (v + 3 * number) % 256)
    image.convert("RGB").save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="module")
def specs(tmp_path_factory) -> dict[str, str]:
    """Sources of 23 images, two of them bad, and the embedded one."""
    folder, records = (tmp_path_factory.mktemp(name) for name in ("folder", "records"))
    for i in range(23):
        path = folder / "train" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gradient("PNG", i)[: 90 if i in (4, 17) else None])
    images = [b"no image" if i == 9 else gradient("JPEG", i) for i in range(23)]
    examples = [
        record_files.encode_example({"image": image, "label": i % 2, "file_name": b"x"})
        for i, image in enumerate(images)
    ]
    examples[3] = b"\xff\xff"
    record_files.write_shard(tfds_metadata.shard_path(records, "small", "train", 0, 1), examples)
    tfds_metadata.write_metadata(
        records,
        name="small",
        shard_lengths={"train": [23]},
        class_ids=("a", "b"),
        class_names=("a", "b"),
        image_shape=(16, 16, 3),
        encoding="jpeg",
        description="Small.",
    )
    return {"embedded": "embedded", "folder": f"folder:{folder}", "prepared": f"prepared:{records}"}


def digest(hosts: list[list[pipeline.Batch]]) -> str:
    """Hash of the bytes, types and shapes of the global batches."""
    found = hashlib.sha256()
    for parts in zip(*hosts, strict=True):
        for key in ("image", "label", "weight", "index"):
            values = np.concatenate([part[key] for part in parts])
            found.update(f"{key} {values.dtype} {values.shape}".encode())
            found.update(values.tobytes())
    return found.hexdigest()[:16]


# Recorded in November 2026 with the thread pool that tf.data replaced: 12 training batches from step 0 and 12
# from step 19 (for 23 images, within the seventh epoch), and all test batches.
RECORDED = {
    "embedded": ("9f2d7486cdd7494e", "5e7d7fe2247e3f9a", "f56bccb263746ae7"),
    "folder": ("9e090bedb6d1248e", "4c2d5c88d72c1759", "361c4a4b84ca7ea7"),
    "prepared": ("d0aa62718d35125c", "54894d099389c88e", "6381ae7ecc884f82"),
}


# Cases of 8,144 images each, whose parts the two others have between them.
LARGE = {("embedded", 2, False), ("embedded", 4, False), ("embedded", 1, True), ("embedded", 2, True)}


@pytest.mark.parametrize(
    ("name", "hosts", "in_parts"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] if case in LARGE else [])
        for case in itertools.product(RECORDED, (1, 2, 4), (False, True))
    ],
)
def test_batches_are_those_recorded(name, hosts, in_parts, specs, monkeypatch):
    size, batch_size = (28, 256) if name == "embedded" else (16, 8)
    if in_parts:  # each at most 3/7 of a host's batch, so the last one is smaller
        most = max(1, batch_size // hosts * 3 // 7)
        monkeypatch.setattr(pipeline, "_CALLS_BYTES", 2 * pipeline.threads() * most * size * size * 3)
        assert pipeline.part_sizes(batch_size // hosts, size, pipeline.threads())[0] >= 2
    source = sources.open_source(specs[name], "train")
    sizes = {"batch_size": batch_size, "resize_size": size}
    slices = [(h, hosts) for h in range(hosts)]
    found = []
    for start in (0, 19):
        options = {**sizes, "seed": 5, "start_step": start}
        found.append(
            digest([take(pipeline.train_batches(source, **options, host=host), 12) for host in slices])
        )
    found.append(digest([list(pipeline.eval_batches(source, **sizes, host=host)) for host in slices]))
    assert tuple(found) == RECORDED[name]


@pytest.mark.parametrize(
    ("size", "resize_size", "at_once"), [(2400, 127, False), (2600, 127, True), (2400, 128, True)]
)
def test_threads_decode_small_images_one_batch_after_another(size, resize_size, at_once, monkeypatch):
    inside, most = [], []

    def decoded(data, size):
        inside.append(data)
        most.append(len(inside))
        time.sleep(0.002)
        inside.pop()

    source = Numbered(64)
    monkeypatch.setattr(source, "read", lambda indices: ([bytes(size)] * len(indices), indices))
    monkeypatch.setattr(pipeline.decode, "decode_square", decoded)
    take(pipeline.train_batches(source, batch_size=8, resize_size=resize_size, seed=0), 12)
    assert (max(most) > 1) == at_once


@pytest.mark.parametrize("module, name", [(pipeline.decode, "decode_square"), (pipeline, "epoch_order")])
def test_pipelines_do_not_wait_for_each_other(module, name, monkeypatch):
    """The garbage collector may close one in a thread that holds the lock of another."""
    begun, waiting, release = threading.Event(), threading.Event(), threading.Event()
    original = getattr(module, name)

    def first_waits(*arguments):
        if not begun.is_set():
            waiting.set()
            begun.set()
            release.wait(5)
            waiting.clear()
        return original(*arguments)

    monkeypatch.setattr(module, name, first_waits)
    a, b = (pipeline.train_batches(Numbered(8), batch_size=8, resize_size=4, seed=seed) for seed in (0, 1))
    first = threading.Thread(target=next, args=(a,))
    first.start()
    begun.wait()
    next(b)
    assert waiting.is_set()
    release.set()
    first.join()
    a.close()
    b.close()


# --- Memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "resize_size", "cores", "parts", "examples"),
    [
        (128, 256, 2, 1, 128),
        (128, 256, 16, 4, 32),
        (1024, 256, 2, 4, 256),
        (1024, 256, 16, 25, 41),
        (1021, 256, 16, 25, 41),  # the last part is smaller
        (1024, 256, 64, 103, 10),
        (4, 4000, 64, 4, 1),
    ],
)
def test_a_large_batch_is_loaded_in_parts(batch_size, resize_size, cores, parts, examples):
    assert pipeline.part_sizes(batch_size, resize_size, cores) == (parts, examples)
    if examples > 1:
        calls = 2 * cores * examples * 3 * resize_size**2
        assert calls <= 256 * 2**20


MEMORY = """
import time
from alexnet_jax.common import host
from alexnet_jax.data import pipeline
from tests import peak
from tests.data.test_pipeline import Numbered

pipeline.threads = lambda: 16
host.tensorflow()
before = peak.kilobytes()
batches = pipeline.train_batches(Numbered(2048), batch_size=1024, resize_size=256, seed=0)
for _ in range(2):
    assert next(batches)["image"].nbytes == 1024 * 256 * 256 * 3
    time.sleep(3)  # until everything that may be loaded ahead is
print(peak.kilobytes() - before)
"""


@pytest.mark.slow
@peak.needed
def test_batches_of_1024_take_less_than_2_gb_on_16_cores():
    (kilobytes,) = map(int, peak.said_by(MEMORY))
    assert 500_000 < kilobytes < 2_000_000


# --- Errors and threads ---------------------------------------------------------------------------


class Failing(Numbered):
    """Raises an error when its example 30 is read."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(40)
        self.error = error

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        if 30 in indices:
            raise self.error
        return super().read(indices)


@pytest.mark.parametrize(
    "error", [UserError("data.source: gone"), Fault("disk"), MemoryError(), ImportError("x")]
)
def test_an_error_of_the_source_is_raised_unchanged_at_its_batch(error):
    batches = pipeline.eval_batches(Failing(error), batch_size=4, resize_size=4)
    for step in range(7):
        assert next(batches)["index"].tolist() == list(range(4 * step, 4 * step + 4))
    with pytest.raises(type(error)) as caught:
        next(batches)
    assert caught.value is error


def test_dropping_the_iterator_stops_the_reading():
    source = Disk(1000, 0.01)
    batches = pipeline.train_batches(source, batch_size=4, resize_size=4, seed=0)
    next(batches)
    del batches
    with source.head:
        reads = source.reads
    time.sleep(0.2)
    assert source.reads == reads


def test_without_tensorflow(monkeypatch):
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: None)
    host.tensorflow.cache_clear()
    with pytest.raises(UserError, match=r"TensorFlow is not installed.*pip install tensorflow-cpu"):
        next(pipeline.eval_batches(Numbered(4), batch_size=2, resize_size=4))
