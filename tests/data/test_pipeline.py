"""The order of examples, and the batches made of them."""

import io
import itertools
import pathlib
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
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import decode, pipeline, record_files, records, sources, tfds_metadata
from alexnet_jax.data.batches import on_device
from alexnet_jax.run import logs, meter
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


@pytest.fixture(params=["tf.data", "threads"])
def engine(request, monkeypatch):
    """Both engines, for any source."""
    if request.param == "tf.data":
        monkeypatch.setattr(pipeline, "_ahead_by_threads", pipeline._ahead_by_tf_data)


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


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_train_batches_depend_neither_on_the_number_of_hosts_nor_on_the_start(hosts, engine):
    source, steps, start = Numbered(50), 19, 8  # three epochs of 50, and a start in the middle of the second
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
                    host_index=h,
                    host_count=hosts,
                ),
                steps - first,
            )
            for h in range(hosts)
        ]
        got = [np.concatenate([part[i]["index"] for part in parts]) for i in range(steps - first)]
        np.testing.assert_array_equal(got, expected[first:])


def test_a_batch_holds_the_images_of_its_indices(engine):
    (batch,) = take(pipeline.train_batches(Numbered(100), batch_size=40, resize_size=4, seed=0), 1)
    assert batch["image"].shape == (40, 4, 4, 3) and batch["image"].dtype == np.uint8
    np.testing.assert_array_equal(batch["image"][:, 1, 2, 0], batch["index"])
    np.testing.assert_array_equal(batch["label"], batch["index"])
    assert [batch[k].dtype for k in ("label", "weight", "index")] == [np.int32, np.float32, np.int64]


@pytest.mark.parametrize(("batch_size", "hosts"), [(1, 1), (4, 4), (6, 2), (20, 1), (20, 4), (64, 2)])
def test_eval_batches_have_every_example_once(batch_size, hosts, engine):
    parts = [
        list(
            pipeline.eval_batches(
                Numbered(21, bad=(5,)), batch_size=batch_size, resize_size=2, host_index=h, host_count=hosts
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


def test_a_bad_image_keeps_its_place_and_has_weight_0(engine):
    (batch,) = take(pipeline.eval_batches(Numbered(8, bad=(2, 7)), batch_size=8, resize_size=4), 1)
    assert batch["weight"].tolist() == [1, 1, 0, 1, 1, 1, 1, 0]
    assert batch["image"][2].max() == 0 and batch["label"][2] == 2


def test_batch_size_that_the_hosts_do_not_divide():
    with pytest.raises(UserError, match=r"data\.batch_size: 6 .* 4 hosts"):
        next(pipeline.train_batches(Numbered(9), batch_size=6, resize_size=4, seed=0, host_count=4))


def test_an_error_of_the_source_reaches_the_reader(engine):
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


@pytest.mark.parametrize(
    ("decoder", "tensorflow", "size", "way"),
    [
        (True, True, 16, "_ahead_by_threads"),
        (False, True, 16, "_ahead_by_tf_data"),
        (False, False, 16, "_ahead_by_threads"),
        (False, True, 8, "_ahead_by_threads"),
    ],
)
def test_tf_data_decodes_prepared_squares_without_simplejpeg(
    decoder, tensorflow, size, way, tmp_path, monkeypatch
):
    source = prepared(
        tmp_path, [record_files.encode_example({"image": jpeg(0), "label": 0, "file_name": b"x"})]
    )
    monkeypatch.setattr(decode, "simplejpeg", (decode.simplejpeg or object()) if decoder else None)
    monkeypatch.setattr(host, "has_tensorflow", lambda: tensorflow)
    (batch,) = pipeline.eval_batches(source, batch_size=1, resize_size=size)
    assert batch["weight"] == [1]
    batches = pipeline.eval_batches(source, batch_size=1, resize_size=size)
    assert batches.gi_code.co_name == way  # type: ignore[attr-defined]
    batches.close()


def test_no_batches_of_no_examples(engine):
    assert list(pipeline.eval_batches(Numbered(0), batch_size=4, resize_size=2)) == []


PROGRAM = """
import sys
from alexnet_jax.data import pipeline, sources
source = sources.open_source("embedded", "train")
batches = pipeline.train_batches(source, batch_size=64, resize_size=64, seed=0)
print(next(batches)["weight"].sum())
{end}
"""


@pytest.mark.parametrize("end", ["batches.close()", "sys.exit(75)", "raise KeyboardInterrupt"])
def test_a_program_ends_while_batches_are_being_decoded(end):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(end=end)], capture_output=True, text=True, timeout=60
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


@peak.needed
@pytest.mark.parametrize("count", [1_281_167, 15_000_000])
@pytest.mark.parametrize("epoch", [0, 7.5])
def test_imagenet_starts_at_any_step_in_little_time_and_memory(count, epoch):
    seconds, kilobytes = start(count, epoch)
    assert seconds < 5 and kilobytes < START_KILOBYTES


@peak.needed
def test_a_start_that_takes_much_memory_is_detected():
    assert start(15_000_000, 0, AS_A_LIST)[1] > START_KILOBYTES


class Disk(Numbered):
    """Serves one request at a time, each in `seconds`."""

    def __init__(self, count: int, seconds: float) -> None:
        super().__init__(count)
        self.seconds, self.head = seconds, threading.Lock()

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        with self.head:
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
    [(0.0, 0.3, 0.0, 0.0), (0.2, 0.02, 0.5, 3.0)],
    ids=["fast", "slow"],
)
def test_a_slow_source_shows_in_the_wait_for_input(read_seconds, step_seconds, least, most):
    mesh, source = columns.make_mesh(1, 1), Disk(100, read_seconds)
    host = pipeline.train_batches(source, batch_size=8, resize_size=4, seed=0)
    in_flight = meter.InFlight(mesh)
    batches = meter.TrainingBatches(host, mesh, source, logs.NoLog("here"), in_flight)
    for step in range(5):  # as the loop of train.py, except for the step
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
        if n < 3:  # one batch further, and no more than one
            assert len(taken) == n + 2 and len(following) == arrays
            assert all(isinstance(one, jax.Array) and one.sharding.mesh == mesh for one in following)
            np.testing.assert_array_equal(following[1], taken[n + 1]["label"])
    assert next(ahead, None) is None and len(taken) == 4


def jpeg(level: int, width: int = 16) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((width, 16)).point(lambda v: (v + level) % 256).convert("RGB").save(
        out, "JPEG"
    )
    return out.getvalue()


def prepared(path: pathlib.Path, examples: list[bytes]) -> sources.Source:
    """Prepared records of 16 x 16."""
    record_files.write_shard(tfds_metadata.shard_path(path, "small", "train", 0, 1), examples)
    tfds_metadata.write_metadata(
        path,
        name="small",
        shard_lengths={"train": [len(examples)]},
        class_ids=("a", "b"),
        class_names=("a", "b"),
        image_shape=(16, 16, 3),
        encoding="jpeg",
        description="Small.",
    )
    return sources.open_source(f"prepared:{path}", "train")


def test_both_engines_give_the_same_bits_of_prepared_records(tmp_path):
    # tf.data decodes square JPEGs itself; any other record must take the common path.
    encoded = [jpeg(level) for level in range(70)]
    encoded[3], encoded[40], encoded[41], encoded[69] = encoded[3][:-30], b"", png(7), jpeg(9, width=24)
    examples = [
        record_files.encode_example({"image": data, "label": i % 2, "file_name": b"x"})
        for i, data in enumerate(encoded)
    ]
    examples[50] = b"\xff\xff"
    source = prepared(tmp_path, examples)
    assert isinstance(source, records.RecordSource) and source.jpeg_size == 16
    for size in (16, 20):
        slices = [np.arange(0, 64), np.concatenate([np.arange(64, 70), np.full(58, -1)])]
        engines = (pipeline._ahead_by_tf_data, pipeline._ahead_by_threads)
        ways = [list(engine(source, iter(slices), size)) for engine in engines]
        for one, other in zip(*ways, strict=True):
            for key in one:
                np.testing.assert_array_equal(one[key], other[key], err_msg=key)
        index, weight = (np.concatenate([batch[key] for batch in ways[0]]) for key in ("index", "weight"))
        assert index[(index >= 0) & (weight == 0)].tolist() == [3, 40, 50]
