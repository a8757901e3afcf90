"""The command `split`: the same fraction of each class, the same choice again, links, and what is refused."""

import os
import pathlib

import numpy as np
import pytest

from alexnet_jax import __main__
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import sources, split


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    """Ten ants, five bees and two cats, each file with its own content."""
    for name, count in (("ant", 10), ("bee", 5), ("cat", 2)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "photos" / name / f"{i}.jpg").write_text(f"{name} {i}")
    (tmp_path / "photos" / "ant" / ".hidden.jpg").write_text("")
    (tmp_path / "photos" / "ant" / "nowhere.jpg").symlink_to("gone.jpg")
    (tmp_path / "photos" / "readme.txt").write_text("")
    return tmp_path / "photos"


def files(folder: pathlib.Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_each_class_gives_its_fraction_and_nothing_is_lost(photos, capsys, monkeypatch):
    monkeypatch.chdir(photos.parent)
    before = files(photos)
    assert __main__.main(["split", "photos", "--val=0.2", "--seed=0"]) == 0
    out = photos.parent / "photos-split"
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: 13 train and 4 val images in 3 classes (hard links)\n")
    assert f"--config.data.source=folder:{out}" in said
    train, val = files(out / "train"), files(out / "val")
    assert [sum(name.startswith(c) for name in val) for c in ("ant", "bee", "cat")] == [2, 1, 1]
    images = {name: text for name, text in before.items() if name.count("/") and ".hidden" not in name}
    assert {**train, **val} == images and len(train) + len(val) == 17  # so none is on both sides
    assert files(photos) == before
    name = next(iter(val))
    assert os.path.samefile(out / "val" / name, photos / name)
    assert not (photos.parent / "photos-split.partial").exists()


def test_what_it_makes_is_a_source(photos):
    assert __main__.main(["split", str(photos)]) == 0
    source = sources.open_source(f"folder:{photos}-split", "train")
    assert source.class_names == ("ant", "bee", "cat") and len(source) == 13
    assert source.read(np.array([12]))[0][0].startswith(b"cat ")
    assert len(sources.open_source(f"folder:{photos}-split", "test")) == 4


def test_the_choice_depends_on_the_seed_and_on_a_class_s_own_files(photos):
    def chosen(seed: int = 0) -> list[str]:
        return split.plan(photos, 0.3, seed)["val"]

    first = chosen()
    assert chosen() == first and any(chosen(seed) != first for seed in (1, 2, 3))
    assert len(first) == 3 + 2 + 1
    (photos / "bee" / "new.jpg").write_text("new")
    ants = [name for name in first if name.startswith("ant/")]
    assert [name for name in chosen() if name.startswith("ant/")] == ants


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.25, 2), (0.5, 5), (0.99, 9)])
def test_at_least_one_image_is_on_either_side(fraction, count):
    names = [f"{i}.jpg" for i in range(10)]
    assert len(split.choose(names, fraction, [0, 1])) == count


def test_every_image_is_as_likely_to_be_chosen():
    names = [str(i) for i in range(10)]
    counts = np.zeros(10)
    for seed in range(2000):
        counts[[int(name) for name in split.choose(names, 0.2, [seed])]] += 1
    assert counts.sum() == 4000
    assert np.abs(counts - 400).max() < 4.5 * np.sqrt(2000 * 0.2 * 0.8)  # 4.5 sigma


def test_copies_when_asked_or_where_there_are_no_links(photos, capsys, monkeypatch):
    assert __main__.main(["split", str(photos), "--copy", f"--out={photos}1"]) == 0
    assert "(17 copies)" in capsys.readouterr().out

    def no_links(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    assert __main__.main(["split", str(photos), f"--out={photos}2"]) == 0
    assert "(17 copies)" in capsys.readouterr().out
    assert files(pathlib.Path(f"{photos}1")) == files(pathlib.Path(f"{photos}2"))
    path = next(pathlib.Path(f"{photos}2").rglob("*.jpg"))
    assert path.stat().st_nlink == 1


def test_an_interrupted_try_is_begun_again(photos):
    partial = pathlib.Path(f"{photos}-split.partial")
    (partial / "train" / "old").mkdir(parents=True)
    assert __main__.main(["split", str(photos)]) == 0
    assert not partial.exists() and not (photos.parent / "photos-split" / "train" / "old").exists()


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda p: (p / "val").mkdir(), [], r"has a folder val: if it is split already, .*source=folder:"),
        (lambda p: (p / "dog").mkdir(), [], r"dog has 0 image\(s\), but each class needs one to train on"),
        (lambda p: (p.parent / "photos-split").mkdir(), [], r"--out=.*photos-split: exists; remove it"),
        (lambda p: None, ["--out=photos/new"], r"--out=photos/new: is inside photos"),
        (lambda p: None, ["--val=0"], r"--val: 0: must be above 0 and below 1"),
        (lambda p: None, ["--val=20%"], r"--val: 20%: must be above 0 and below 1"),
        (lambda p: None, ["--seed=-1"], r"--seed=-1: must be 0 or more"),
    ],
)
def test_what_is_refused(photos, monkeypatch, change, arguments, message):
    monkeypatch.chdir(photos.parent)
    change(photos)
    with pytest.raises(UserError, match=message):
        __main__.main(["split", "photos", *arguments])
    assert not list(photos.parent.glob("*.partial"))


def test_folders_that_are_no_classes(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        __main__.main(["split", "nowhere"])
    (tmp_path / "one").mkdir()
    with pytest.raises(UserError, match=r"needs a folder for each of two or more classes; it has \['one'\]"):
        __main__.main(["split", str(tmp_path)])
    with pytest.raises(UserError, match=r"python -m alexnet_jax split makes both"):
        sources.open_source(f"folder:{tmp_path}", "train")


def test_images_and_classes_are_those_of_training(photos, capsys):
    """Sub-folders belong to their class; other files are left out, with a line (datasets#4015, vision#79)."""
    (photos / "bee" / "batch2").mkdir()
    for i in range(5):
        (photos / "bee" / "batch2" / f"{i}.jpg").write_text(f"second bee {i}")
    (photos / "cat" / "labels.csv").write_text("a,b")
    (photos / "__MACOSX").mkdir()
    assert __main__.main(["split", str(photos), "--val=0.2"]) == 0
    out = photos.with_name("photos-split")
    placed = {**files(out / "train"), **files(out / "val")}
    assert len(placed) == 22
    assert sum(name.startswith("bee/batch2/") for name in placed) == 5
    assert not any(name.endswith(".csv") for name in placed)
    said = capsys.readouterr()
    assert "in 3 classes" in said.out
    assert "left out as no images: 2 (ant/nowhere.jpg, cat/labels.csv)" in said.err
    assert len(sources.open_source(f"folder:{out}", "train")) == 17


@pytest.mark.parametrize("out", ["/proc/none/x", "/sys/none"])
def test_where_nothing_can_be_written(photos, out):
    with pytest.raises(UserError, match=f"--out={out}: cannot be written"):
        __main__.main(["split", str(photos), f"--out={out}"])
