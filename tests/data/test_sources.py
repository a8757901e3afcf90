"""Every kind of source gives its images, labels and names; wrong ones say what to fix."""

import contextlib
import http.server
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.common.errors import Fault, UserError
from alexnet_jax.data import record_files, sources, tfds_metadata

# The label as features.json describes it, and a text in its place.
LABEL = re.search(r'"label": \{.*?\}.*?\}', (sources.EMBEDDED / "features.json").read_text(), re.S)[0]
TEXT = """"label": {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}"""


@pytest.mark.parametrize(("file", "before", "after", "message"), [
    ("features.json", LABEL, TEXT, "not images with one class label"),
    ("features.json", "featuresDict", "tensor", "is no TFDS directory of images"),
    ("features.json", "{", "[", "is no TFDS directory of images"),
    ("dataset_info.json", "shardLengths", "lengths", "is no TFDS directory of images"),
    ("dataset_info.json", "12000", "many", "is no TFDS directory of images"),
])  # fmt: skip
def test_broken_metadata(file, before, after, message, tmp_path):
    for name in ("dataset_info.json", "features.json"):
        text = (sources.EMBEDDED / name).read_text()
        (tmp_path / name).write_text(text.replace(before, after) if name == file else text)
    with pytest.raises(UserError, match=message) as raised:
        sources.open_source(f"prepared:{tmp_path}", "train")
    assert str(raised.value).startswith(f"data.source=prepared:{tmp_path}: ")
    assert ("is no TFDS" in str(raised.value)) == ("is no TFDS" in message)


def make_folder(root: pathlib.Path, layout: dict[str, int]) -> None:
    """Makes `count` small images in each folder of `layout`."""
    for where, count in layout.items():
        (root / where).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(root / where / f"{i}.png")


@pytest.mark.parametrize(
    ("file_format", "message"),
    [
        ("array_record", r"fashion_mnist-train\.array_record-00000-of-00001 is missing from the data set"),
        ("tfrecord", r"fashion_mnist-train\.tfrecord-00000-of-00001 is missing from the data set"),
        ("riegeli", "riegeli has no random access; prepare the set as array_record"),
        ("parquet", "parquet has no random access; prepare the set as array_record"),
    ],
)
def test_a_missing_shard_and_formats_without_random_access(file_format, message, tmp_path):
    for name in ("dataset_info.json", "features.json", "label.labels.txt"):
        text = (sources.EMBEDDED / name).read_text()
        (tmp_path / name).write_text(text.replace('"array_record"', f'"{file_format}"'))
    with pytest.raises(UserError, match=message) as raised:
        sources.open_source(f"prepared:{tmp_path}", "train")
    assert "\n" not in str(raised.value)


def modules_by_reading(spec: str) -> tuple[set[str], set[str]]:
    """The modules after a fresh process has opened a source, and those that reading adds."""
    code = (
        "import json, sys, numpy as np\n"
        "from alexnet_jax.data import sources\n"
        f"source = sources.open_source({spec!r}, 'train')\n"
        "opened = set(sys.modules)\n"
        "source.read(np.arange(len(source))), source.name(0)\n"
        "print(json.dumps([sorted(opened), sorted(set(sys.modules) - opened)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    opened, added = json.loads(done.stdout)
    return set(opened), set(added)


def test_what_reading_needs_is_imported_before_threads_start(tmp_path):
    """While TFDS is imported, relative imports in other threads fail."""
    opened, added = modules_by_reading("embedded")
    assert "tensorflow_datasets" in opened and "tensorflow" not in opened and added == set()
    make_folder(tmp_path, {"train/a": 1, "train/b": 1})
    opened, added = modules_by_reading(f"folder:{tmp_path}")
    assert "tensorflow_datasets" not in opened and added == set()


def test_embedded():
    train, test = (sources.open_source("embedded", split) for split in ("train", "test"))
    assert (len(train), len(test), train.num_classes) == (12_000, 2_000, 10)
    for source, each in ((train, 1200), (test, 200)):
        labels = source.read(np.arange(len(source)))[1]
        assert np.bincount(labels).tolist() == [each] * 10 and labels.dtype == np.int32
    assert train.class_names[9] == "Ankle boot" and train.class_ids == train.class_names
    assert train.name(3) == "train-images-idx3-ubyte[3]"
    assert train.statistics is not None and train.statistics.mean_image is not None
    assert train.statistics.mean_image.shape == (28, 28, 3)
    assert train.statistics.pca_sqrt_eigenvalues[:2].tolist() == [
        0,
        0,
    ]  # grey varies along one direction only
    assert train.description == "fashion_mnist: 12,000 train images in 10 classes"


def test_embedded_is_small_and_licensed():
    files = list(sources.EMBEDDED.iterdir())
    assert sum(file.stat().st_size for file in files) < 8_000_000
    assert "Zalando" in (sources.EMBEDDED / "LICENSE").read_text()


def test_embedded_is_read_by_plain_tfds():
    tfds = pytest.importorskip("tensorflow_datasets")
    data = tfds.builder_from_directory(sources.EMBEDDED).as_data_source("test")
    assert len(data) == 2000 and data[5]["image"].shape == (28, 28, 1)


def test_reading_is_by_index_in_any_order():
    source = sources.open_source("embedded", "train")
    images, labels = source.read(np.array([7, 3, 7]))
    assert images[0] == images[2] != images[1] and labels[0] == labels[2]


def test_folder(tmp_path):
    make_folder(tmp_path, {"train/cat": 3, "train/dog": 2, "val/dog": 1, "val/cat": 1, "test/cat": 1})
    train, test = (sources.open_source(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert train.class_names == ("cat", "dog")
    assert train.read(np.arange(5))[1].tolist() == [0, 0, 0, 1, 1]
    assert train.name(3) == "dog/0.png"
    assert test.description.endswith("2 val images in 2 classes")
    assert test.read(np.array([1]))[0][0] == (tmp_path / "val/dog/0.png").read_bytes()


def test_links_to_themselves_are_skipped(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.png").write_bytes(b"")
            (tmp_path / split / name / "loop.png").symlink_to("loop.png")
        (tmp_path / split / "loop").symlink_to("loop")
    source = sources.open_source(f"folder:{tmp_path}", "train")
    assert len(source) == 2 and source.class_ids == ("a", "b")


def test_a_class_without_test_images_does_not_shift_the_labels(tmp_path):
    make_folder(tmp_path, {"train/a": 1, "train/b": 1, "train/c": 1, "test/a": 1, "test/c": 1})
    assert sources.open_source(f"folder:{tmp_path}", "test").read(np.arange(2))[1].tolist() == [0, 2]


def test_a_file_that_vanishes_is_a_fault_that_names_it(tmp_path):
    make_folder(tmp_path, {"train/a": 2, "train/b": 1})
    source = sources.open_source(f"folder:{tmp_path}", "train")
    (tmp_path / "train/a/1.png").unlink()
    assert source.read(np.array([0, 2]))[0][0] != b""
    with pytest.raises(Fault, match=r"train/a/1\.png: disappeared during the run"):
        source.read(np.arange(3))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("embeded", r"data\.source=embeded: .*did you mean embedded"),
        ("folder", "name one after the colon"),
        ("tfds:", "tfds:cifar10"),
        ("tfds:imagenet2021", "did you mean imagenet2012"),
        ("tfds:imagenet", "did you mean imagenet2012"),
        ("folder:{tmp}/data/hymenopter", "did you mean .*/data/hymenoptera"),
        ("folder:{tmp}/nowhere/at/all", "the nearest existing folder is"),
        ("folder:{tmp}/data", "needs a folder train .* it has hymenoptera"),
        ("folder:{tmp}/data/one", "two or more classes; it has only x"),
        ("folder:{tmp}/data/one/train/x/0.png", "0.png is a file; give the folder"),
        ("folder:{tmp}/data/none", "no images in the class folders"),
        ("prepared:{tmp}/data", "no dataset_info.json"),
    ],
)
def test_errors_of_wrong_sources(spec, message, tmp_path):
    make_folder(tmp_path / "data", {"hymenoptera": 0, "one/train/x": 1, "none/train/x": 0, "none/train/y": 0})
    with pytest.raises(UserError, match=message) as error:
        sources.open_source(spec.format(tmp=tmp_path), "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("inside", "kind"),
    [
        ("train", "folder"),
        ("dataset_info.json", "prepared"),
        ("ILSVRC", "kaggle"),
        ("ILSVRC2012_img_val.tar", "tars"),
        (None, "folder"),
    ],
)
def test_a_path_without_a_kind_of_source_suggests_one(inside, kind, tmp_path):
    path = tmp_path / "photos"
    if inside:
        (path / inside).mkdir(parents=True)
    with pytest.raises(UserError, match=f"begin with the kind of source: {kind}:{path}$"):
        sources.open_source(str(path), "train")


def test_a_class_that_only_the_test_folder_has(tmp_path):
    make_folder(tmp_path, {"train/a": 1, "train/b": 1, "val/a": 1, "val/z": 1})
    with pytest.raises(UserError, match=r"has z, which is missing from .*train"):
        sources.open_source(f"folder:{tmp_path}", "test")


@pytest.mark.parametrize(("labels", "message"), [([-1, -1], "never published"), ([], "has no images")])
def test_records_that_cannot_be_tested_on(labels, message, tmp_path):
    examples = [
        record_files.encode_example({"image": b"", "label": label, "file_name": b""}) for label in labels
    ]
    record_files.write_shard(tfds_metadata.shard_path(tmp_path, "small", "test", 0, 1), examples)
    tfds_metadata.write_metadata(
        tmp_path,
        name="small",
        shard_lengths={"test": [len(labels)]},
        class_ids=("a", "b"),
        class_names=("a", "b"),
        image_shape=(None, None, 3),
        encoding="jpeg",
        description="Small.",
    )
    with pytest.raises(UserError, match=message):
        sources.open_source(f"prepared:{tmp_path}", "test")


@pytest.mark.parametrize("there", [None, "ILSVRC2012_img_train.tar"])
def test_tfds_without_imagenet_names_files_place_and_ways_and_leaves_no_folder(there, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    manual = tmp_path / "tfds/downloads/manual"
    if there:
        manual.mkdir(parents=True)
        (manual / there).touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        sources.open_source("tfds:imagenet2012", "train", data_dir=str(tmp_path / "tfds"))
    message = str(error.value)
    looked_for, missing = message.split("; missing: ")
    assert {"ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", str(manual)} <= set(looked_for.split())
    assert missing.startswith("ILSVRC2012_img_val.tar. " if there else "ILSVRC2012_img_train.tar, ILSVRC2012")
    for word in ("tfds:", "tars:PATH", "kaggle:PATH", "folder:PATH", "data.data_dir", "docs/imagenet.md"):
        assert word in missing
    assert sorted(tmp_path.rglob("*")) == before


def test_tfds_sets_that_must_be_fetched_by_hand_say_how(tmp_path):
    with pytest.raises(UserError, match=r"downloads/manual is missing or empty: .*ILSVRC2012_img_val\.tar"):
        sources.open_source("tfds:imagenet2012_real", "test", data_dir=str(tmp_path / "tfds"))
    assert list(tmp_path.iterdir()) == []


SLOW_DOWNLOAD = """
import sys
import threading
import time
import tensorflow_datasets as tfds
from alexnet_jax.common import command_line
from alexnet_jax.data import sources
from alexnet_jax.run import signals

class Slow(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        dl_manager.download(sys.argv[1])
        return {}

    def _generate_examples(self):
        yield from ()

def main():
    with signals.Stop():
        sources.open_source("tfds:slow", "train", data_dir=sys.argv[2])

command_line.command(main)
"""


@pytest.fixture
def endless_download():
    """The URL of a file that never ends, and an event for when it is being read."""
    requested, over = threading.Event(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            requested.set()
            with contextlib.suppress(OSError):
                while not over.wait(0.05):
                    self.wfile.write(b"0" * 1024)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/images.bin", requested
    over.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_a_tfds_download_within_seconds(number, endless_download, tmp_path):
    url, requested = endless_download
    command = [sys.executable, "-c", SLOW_DOWNLOAD, url, str(tmp_path / "tfds")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert requested.wait(60)
        time.sleep(0.5)
        process.send_signal(number)
        started = time.monotonic()
        _, said = process.communicate(timeout=30)
    assert time.monotonic() - started < 5
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said and "saving" not in said
    assert not (tmp_path / "tfds/slow").exists()
