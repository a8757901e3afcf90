"""Prepared records: their contents, their statistics, and resuming after any interruption."""

import hashlib
import io
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import __main__
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import prepare, sources


def make_folder(root: pathlib.Path, train: int, test: int) -> None:
    """Two classes of smooth random images, with one file that is no image."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", test)):
        for i in range(count):
            path = root / split / "ab"[i % 2] / f"{i:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), np.uint8))
            coarse.resize((50 + i % 20, 40), Image.Resampling.BICUBIC).save(path)
    (root / "train/a/broken.jpg").write_bytes(b"not an image")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("images")
    make_folder(root, 60, 20)
    return root


@pytest.fixture(scope="module")
def prepared(folder) -> pathlib.Path:
    out = folder.parent / "prepared"
    assert prepare.prepare(f"folder:{folder}", out, resize_size=32, shard_examples=25) == [
        "train/a/broken.jpg"
    ]
    return out


def stored(directory: pathlib.Path, split: str) -> np.ndarray:
    """All images of a split, as plain TFDS decodes them."""
    tfds = pytest.importorskip("tensorflow_datasets")
    data = tfds.builder_from_directory(directory).as_data_source(split)
    return np.stack([example["image"] for example in data])


def digests(directory: pathlib.Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("split", ["train", "test"])
def test_directories_are_read_as_tfds_reads_them(prepared, split):
    tfds = pytest.importorskip("tensorflow_datasets")
    data = tfds.builder_from_directory(prepared).as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    source = sources.open_source(f"prepared:{prepared}", split)
    order = np.random.default_rng(0).permutation(len(data))
    images, labels = source.read(order)
    for i, image, label in zip(order.tolist(), images, labels, strict=True):
        assert (image, label, source.name(i).encode()) == tuple(
            data[i][key] for key in ("image", "label", "file_name")
        )


def test_counts_and_files(prepared):
    assert [len(sources.open_source(f"prepared:{prepared}", split)) for split in ("train", "test")] == [
        60,
        20,
    ]
    assert (prepared / "bad_images.txt").read_text() == "train/a/broken.jpg\n"
    assert {path.name for path in prepared.iterdir()} == {
        *(f"prepared-train.array_record-{i:05d}-of-00003" for i in range(3)),
        "prepared-test.array_record-00000-of-00001",
        *("dataset_info.json", "features.json", "label.labels.txt", "statistics.npz", "bad_images.txt"),
    }
    assert not prepared.with_name("prepared.partial").exists()


def test_records_are_square_jpegs_with_names_and_labels(prepared, folder):
    original = sources.open_source(f"folder:{folder}", "train")
    source = sources.open_source(f"prepared:{prepared}", "train")
    names = [original.name(i) for i in range(len(original))]
    labels = dict(zip(names, original.read(np.arange(len(original)))[1], strict=True))
    images, found = source.read(np.arange(len(source)))
    for i, (data, label) in enumerate(zip(images, found, strict=True)):
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (32, 32), "RGB")
        assert labels.pop(source.name(i)) == label
    assert list(labels) == ["a/broken.jpg"]


def test_statistics_agree_with_numpy(prepared):
    statistics = sources.open_source(f"prepared:{prepared}", "train").statistics
    assert statistics is not None and statistics.mean_image is not None
    images = stored(prepared, "train").astype(np.float64)
    pixels = images.reshape(-1, 3)
    np.testing.assert_allclose(statistics.mean_image, images.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(statistics.mean_colour, pixels.mean(axis=0), rtol=1e-6)
    covariance = np.cov(pixels, rowvar=False, bias=True)
    eigenvalues = np.linalg.eigvalsh(covariance)
    np.testing.assert_allclose(statistics.pca_sqrt_eigenvalues, np.sqrt(eigenvalues), rtol=1e-5)
    vectors = statistics.pca_eigenvectors.astype(np.float64)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(vectors * eigenvalues @ vectors.T, covariance, rtol=1e-4)


def test_statistics_of_grey_images_have_one_direction():
    from alexnet_jax.data.statistics import ColourSums

    levels = np.arange(0, 250, 10, dtype=np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (25, 8, 8, 3))
    statistics = ColourSums.of(images).statistics()
    assert statistics.pca_sqrt_eigenvalues[:2].tolist() == [0, 0]
    np.testing.assert_allclose(abs(statistics.pca_eigenvectors[:, 2]), 3**-0.5, rtol=1e-6)
    np.testing.assert_allclose(
        statistics.pca_eigenvectors.T @ statistics.pca_eigenvectors, np.eye(3), atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "exists already; delete it or choose another"),
        ({"out": "/proc/nowhere"}, "cannot be written"),
        ({"quality": 101}, "--quality must be 1 to 100"),
        ({"source": "folder:nowhere", "out": "new"}, "nowhere does not exist"),
    ],
)
def test_errors(prepared, folder, change, message):
    given = {"source": f"folder:{folder}", "out": prepared} | change
    with pytest.raises(UserError, match=message):
        prepare.prepare(given.pop("source"), pathlib.Path(given.pop("out")), **given)


def test_an_unfinished_directory_is_no_source_and_bound_to_its_settings(folder, tmp_path, monkeypatch):
    out = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(f"folder:{folder}", out, resize_size=32, shard_examples=25)
    for path in (out, tmp_path / "set.partial"):
        with pytest.raises(UserError):
            sources.open_source(f"prepared:{path}", "train")
    with pytest.raises(UserError, match="begun with other settings"):
        prepare.prepare(f"folder:{folder}", out, resize_size=33, shard_examples=25)


def test_all_images_bad(tmp_path):
    for name in ("train/a/0.jpg", "train/b/0.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of the train images could be decoded"):
        prepare.prepare(f"folder:{tmp_path / 'images'}", tmp_path / "out", splits=("train",))


def command(folder: pathlib.Path, out: pathlib.Path) -> list[str]:
    return [
        *(sys.executable, "-m", "alexnet_jax", "prepare", f"--source=folder:{folder}", f"--out={out}"),
        *("--resize_size=64", "--shard_examples=20"),
    ]


def test_command_line(folder, tmp_path):
    bad = "train/a/broken.jpg"
    done = subprocess.run(command(folder, tmp_path / "set"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "set: 60 train images in 2 classes",
        "set: 20 test images in 2 classes",
        f"1 bad images were left out, listed in {tmp_path}/set/bad_images.txt. The first: {bad}",
        f"To train on them: --config.data.source=prepared:{tmp_path / 'set'}",
    ]
    again = subprocess.run(command(folder, tmp_path / "set"), capture_output=True, text=True)
    assert (
        again.returncode == 2 and again.stderr.startswith("error: --out:") and again.stderr.count("\n") == 1
    )


SLOW_IMPORTS = """
import contextlib, sys, time
from etils import epy

real = epy.lazy_imports

@contextlib.contextmanager
def slow(**options):
    with real(**options):
        yield
        time.sleep(0.3)  # meanwhile, relative imports fail in other threads

epy.lazy_imports = slow
from alexnet_jax.data import prepare
from alexnet_jax.tools import arguments

sys.exit(prepare.main(arguments.parse("prepare", sys.argv[1:])))
"""


def test_tfds_is_imported_before_threads_decode(folder, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    done = subprocess.run(
        [sys.executable, "-c", SLOW_IMPORTS, *command(folder, tmp_path / "set")[4:]],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "set: 60 train images in 2 classes" in done.stdout


def test_main_in_this_process(folder, tmp_path, monkeypatch, capsys):
    arguments = command(folder, tmp_path / "set")[4:]
    assert __main__.main(["prepare", *arguments]) == 0
    assert "set: 60 train images in 2 classes" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--out: .* exists already"):
        __main__.main(["prepare", *arguments])
    monkeypatch.setattr(prepare, "prepare", lambda **_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert __main__.main(["prepare", *arguments]) == 75
    assert "continues from here" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_at_20_random_moments_it_ends_with_the_same_records(tmp_path):
    make_folder(tmp_path / "images", 1500, 300)
    complete, killed = tmp_path / "complete" / "set", tmp_path / "killed" / "set"
    for out in (complete, killed):
        out.parent.mkdir()
    subprocess.run(command(tmp_path / "images", complete), check=True, capture_output=True)
    moments = random.Random(0)
    for _ in range(20):
        process = subprocess.Popen(command(tmp_path / "images", killed), stdout=subprocess.DEVNULL)
        # At a random moment within one of the next shards: 0 to 5 of the 91 are finished between two kills.
        shards = finished(killed) + moments.randint(0, 5)
        while process.poll() is None and finished(killed) < shards:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert 0 < finished(killed) < 91
    subprocess.run(command(tmp_path / "images", killed), check=True, capture_output=True)
    assert digests(killed) == digests(complete)


def test_interrupted_just_before_the_rename_it_decodes_nothing_again(folder, tmp_path, monkeypatch):
    out = tmp_path / "set"
    with monkeypatch.context() as power_cut:
        power_cut.setattr(pathlib.Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(f"folder:{folder}", out, resize_size=32)
    assert not out.exists()
    monkeypatch.setattr(prepare, "_jpeg", lambda *_: pytest.fail("decoded again"))
    assert prepare.prepare(f"folder:{folder}", out, resize_size=32) == ["train/a/broken.jpg"]
    assert not (out / "reports").exists() and not (out / "settings.json").exists()
    assert len(sources.open_source(f"prepared:{out}", "train")) == 60


@pytest.mark.parametrize("name", ["imagenet2012", "imagenet_resized", "2012"])
def test_a_set_may_have_the_name_of_a_tfds_data_set(name, folder, tmp_path):
    out = tmp_path / name
    prepare.prepare(f"folder:{folder}", out, resize_size=16)
    assert [len(sources.open_source(f"prepared:{out}", split)) for split in ("train", "test")] == [60, 20]


def test_a_class_name_with_a_unicode_line_separator(tmp_path):
    root = tmp_path / "images"
    for split in ("train", "val"):
        for name in ("a", "b\u2028c", "d\x1ce"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(root / split / name / "1.png")
    prepare.prepare(f"folder:{root}", tmp_path / "set", resize_size=16)
    source = sources.open_source(f"prepared:{tmp_path / 'set'}", "train")
    assert source.class_ids == ("a", "b\u2028c", "d\x1ce") and source.num_classes == 3


def finished(out: pathlib.Path) -> int:
    return len(list(out.with_name("set.partial").glob("reports/*.npz")))


@pytest.mark.parametrize(("suffix", "mode"), [("jpg", "RGB"), ("jpg", "L"), ("png", "RGB")])
def test_images_that_have_the_size_are_kept_byte_for_byte(tmp_path, suffix, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    root = tmp_path / "images"
    files = [root / split / name / f"0.{suffix}" for split in ("train", "val") for name in "ab"]
    for file in files:
        file.parent.mkdir(parents=True)
        Image.fromarray(pixels).convert(mode).save(file)
    prepare.prepare(f"folder:{root}", tmp_path / "out", resize_size=32)
    images, _ = sources.open_source(f"prepared:{tmp_path / 'out'}", "train").read(np.array([0]))
    assert images == [files[0].read_bytes()]
    expected = np.asarray(Image.open(files[0]).convert("RGB"))
    np.testing.assert_array_equal(stored(tmp_path / "out", "train")[0], expected)
