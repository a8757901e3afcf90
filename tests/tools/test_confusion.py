"""Folders named after classes: labels, errors by class, the table and the picture."""

import csv
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import __main__
from alexnet_jax.common.errors import UserError
from alexnet_jax.data.classes import imagenet_classes
from alexnet_jax.tools import confusion, predict
from alexnet_jax.tools.confusion import Confusion, folder_labels
from alexnet_jax.weights import pretrained
from tests.tools.test_features import net  # noqa: F401  (a fixture)

NAMES = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Six pictures each of ants, bees and elks, and one that cannot be read."""
    root = tmp_path_factory.mktemp("val")
    rng = np.random.default_rng(0)
    for name, low in (("ant", 0), ("bee", 70), ("elk", 150)):
        (root / name).mkdir()
        for number in range(6):
            pixels = rng.integers(low, low + 100, (80, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    (root / "bee" / "broken.jpg").write_bytes(b"\xff\xd8 nothing more")
    return root


def expected(net, folders) -> np.ndarray:  # noqa: F811
    """Counts by true and predicted class, one image after another."""
    loaded, counts = pretrained.read(net), np.zeros((5, 5), int)
    for path in folders.rglob("*.png"):
        logits = loaded.model.apply(loaded.variables, loaded.preprocess(path)[None])
        counts[NAMES.index(path.parent.name), int(np.argmax(logits))] += 1
    return counts


def of(files):
    return [pathlib.PurePath(file).parent.name for file in files]


def test_labels_are_the_folders_names():
    assert folder_labels(of(["a/elk/1.png", "/b/ant/2.png"]), NAMES) == [4, 0]
    assert folder_labels(of(["a/elk/1.png", "a/fox/2.png"]), NAMES) is None
    wnids, names = zip(*imagenet_classes(), strict=True)
    cranes = [label for label, name in enumerate(names) if name == "crane"]
    assert len(cranes) == 2  # the bird and the machine
    files = [f"val/{wnids[label]}/x.JPEG" for label in (0, 999, *cranes)]
    assert folder_labels(of(files), names) == [0, 999, *cranes]
    assert folder_labels(of(files[:1]), names[:10]) == [0]  # a net for ten of the classes
    assert folder_labels(of(["val/tench, Tinca tinca/x.JPEG"]), names) == [0]
    assert folder_labels(of(["val/great_white_shark/1.png", "val/tench/1.png"]), names) == [2, 0]
    assert folder_labels(of(["val/10/1.png", "val/2/1.png"]), names) == [
        10,
        2,
    ]  # ImageNet-V2's folders
    assert folder_labels(of(["val/crane/1.png"]), names) is None
    assert folder_labels(of(["val/c2/1.png", "val/bee/1.png"]), ("ant", "bee"), ("c1", "c2")) is None  # twice
    assert folder_labels(of(["val/c2/1.png", "val/ant/1.png"]), ("ant", "bee"), ("c1", "c2")) == [
        1,
        0,
    ]


def test_the_summary_counts_by_hand():
    matrix = Confusion(("a", "b", "c", "d", "e", "f"))
    for label, predicted in (
        (0, [0, 1, 2, 3, 4]),
        (0, [1, 0, 2, 3, 4]),
        (0, [1, 5, 2, 3, 4]),  # not among the five
        (0, [2, 0, 1, 3, 4]),
        (5, [5, 0, 1, 2, 3]),
    ):
        matrix.add(label, predicted)
    found = matrix.summary()
    assert (found["examples"], found["accuracy"], found["top1_error"], found["top5_error"]) == (5, 40, 60, 20)
    assert found["classes"] == [
        {"class": "a", "images": 4, "top1_error": 75, "most_often_taken_for": "b", "times": 2},
        {"class": "f", "images": 1, "top1_error": 0, "most_often_taken_for": None, "times": 0},
    ]
    assert matrix.as_text().splitlines() == [
        "accuracy 40.00 %, top-1 error 60.00 %, top-5 error 20.00 % on 5 images of 2 classes",
        "  a:  75.00 % of 4 wrong, 2 of them for b",
        "  f:   0.00 % of 1 wrong",
    ]
    assert Confusion("abcdef", topk=3)._has_top5 is Confusion("abcde")._has_top5 is False


def test_the_command_on_a_folder_of_class_folders(net, folders, tmp_path, capsys):  # noqa: F811
    picture = tmp_path / "confusion.png"
    command = ["predict", str(folders), f"--weights={net}", f"--confusion={picture}", "--topk=2"]
    assert __main__.main(command) == 0
    said, counts = capsys.readouterr(), expected(net, folders)
    right, total = np.trace(counts), counts.sum()
    assert total == 18 and 0 < right < 18  # else the test would show little
    assert (
        f"\naccuracy {100 * right / total:.2f} %, top-1 error {100 - 100 * right / total:.2f} % on 18 "
        in said.out
    )
    assert f"{picture}, {tmp_path / 'confusion.csv'}" in said.err
    header, *rows = csv.reader((tmp_path / "confusion.csv").open())
    used = [i for i in range(5) if counts[i].any() or counts[:, i].any()]
    assert header == ["true \\ predicted", *(NAMES[i] for i in used)]
    assert rows == [[NAMES[i], *map(str, counts[i, used])] for i in used]
    assert min(Image.open(picture).size) > 200
    assert __main__.main(command) == 0  # its own table is replaced as the picture is


def test_a_table_that_is_no_confusion_matrix_stays(net, folders, tmp_path):  # noqa: F811
    (tmp_path / "x.csv").write_text("my,measurements\n1,2\n")
    command = ["predict", str(folders), f"--weights={net}", f"--confusion={tmp_path / 'x.png'}"]
    with pytest.raises(UserError, match=r"--confusion=.*x\.png: .* would replace .*x\.csv, .* another name"):
        __main__.main(command)
    assert (tmp_path / "x.csv").read_text() == "my,measurements\n1,2\n"
    assert not (tmp_path / "x.png").exists()
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"would replace .*folder\.csv, .* another name"):
        confusion.check_table(tmp_path / "folder.png")


def test_as_json_the_summary_is_the_last_object(net, folders, capsys):  # noqa: F811
    assert __main__.main(["predict", str(folders), f"--weights={net}", "--json"]) == 0
    *answers, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(answers) == 19 and all("file" in answer for answer in answers)
    assert summary["examples"] == 18
    by_class = {line["class"]: line["images"] for line in summary["classes"]}
    assert by_class == {"ant": 6, "bee": 6, "elk": 6}


def test_other_folders_and_single_files_have_no_summary(net, folders, tmp_path, capsys):  # noqa: F811
    file = folders / "ant" / "0.png"
    assert __main__.main(["predict", str(file), f"--weights={net}"]) == 0
    assert "accuracy" not in capsys.readouterr().out
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "0.png").write_bytes(file.read_bytes())
    assert __main__.main(["predict", str(tmp_path), f"--weights={net}"]) == 0
    assert "accuracy" not in capsys.readouterr().out
    for images in ([str(tmp_path)], []):
        with pytest.raises(UserError, match=r"--confusion.*: needs images in folders named by class"):
            __main__.main(["predict", *images, f"--weights={net}", f"--confusion={tmp_path / 'c.png'}"])
    assert not list(tmp_path.glob("c.*"))


def test_the_picture_s_squares_are_as_dark_as_the_parts_of_their_row():
    matrix = Confusion([f"class {i}" for i in range(70)])  # too many for names
    for label in range(70):
        matrix.counts[label, label] = 3
    matrix.counts[2, 5] = 1
    framed = np.asarray(confusion._draw(matrix.counts, matrix.classes))
    picture, cell = framed[1:-1, 1:-1], 900 // 70
    assert picture.shape == (70 * cell, 70 * cell, 3) and framed[0, 0].tolist() == [128, 128, 128]
    at = lambda i, j: picture[i * cell + 2, j * cell + 2].tolist()  # noqa: E731
    assert at(0, 0) == [8, 48, 107] and at(0, 1) == [255, 255, 255]
    np.testing.assert_allclose(at(2, 2), 255 + 0.75 * (np.array([8, 48, 107]) - 255), atol=0.6)
    np.testing.assert_allclose(at(2, 5), 255 + 0.25 * (np.array([8, 48, 107]) - 255), atol=0.6)


def test_the_summary_agrees_with_the_predictions_it_comes_from(net, folders):  # noqa: F811
    loaded = pretrained.read(net)
    files = sorted(map(str, folders.rglob("*.png")))
    matrix = Confusion(NAMES)
    labels = folder_labels(of(files), NAMES)
    for label, answer in zip(labels, predict.predictions(loaded, files), strict=True):
        matrix.add(label, [best["label"] for best in answer["predictions"]])
    np.testing.assert_array_equal(matrix.counts, expected(net, folders))
