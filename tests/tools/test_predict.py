"""The command `predict`: files, folders, pipes, bad images, weights without a classifier."""

import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import alexnet_jax
from alexnet_jax import __main__
from alexnet_jax.common.errors import UserError
from alexnet_jax.tools import predict
from alexnet_jax.weights import pretrained
from tests import reference
from tests.tools.test_features import net, photos, run  # noqa: F401  (fixtures)


def probabilities(path: pathlib.Path, name: str) -> np.ndarray:
    model, variables, preprocess = alexnet_jax.load_pretrained(path)
    return reference.softmax(np.asarray(jax.jit(model.apply)(variables, preprocess(name)[None])[0]))


def test_a_folder_as_json(net, photos, capsys):  # noqa: F811
    assert __main__.main(["predict", str(photos), f"--weights={net}", "--json", "--topk=2"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 41
    assert [a["file"] for a in answers if "error" in a] == [str(photos / "dark" / "broken.jpg")]
    for answer in (answers[0], answers[39]):  # from a full batch and from the last one
        expected = probabilities(net, answer["file"])
        order = np.argsort(-expected)[:2]
        assert [p["label"] for p in answer["predictions"]] == order.tolist()
        assert [p["class"] for p in answer["predictions"]] == [
            ("ant", "bee", "cat", "dog", "elk")[i] for i in order
        ]
        np.testing.assert_allclose(
            [p["probability"] for p in answer["predictions"]], expected[order], rtol=1e-3
        )


def test_text_and_bad_images(net, photos, capsys):  # noqa: F811
    good, bad = photos / "dark" / "00.png", photos / "dark" / "broken.jpg"
    assert __main__.main(["predict", str(bad), str(good), f"--weights={net}"]) == 0
    said = capsys.readouterr()
    assert f"{bad}: unreadable, or not a complete image" in said.err
    lines = said.out.splitlines()
    assert lines[0] == str(good) and len(lines) == 6 and " %  " in lines[1]
    with pytest.raises(UserError, match="none of the images can be read"):
        __main__.main(["predict", str(bad), f"--weights={net}"])


def test_ten_views_are_averaged(net, photos):  # noqa: F811
    loaded = pretrained.read(net)
    name = str(photos / "dark" / "00.png")
    (answer,) = predict.predictions(loaded, [name], views=10)
    views = loaded.preprocess.views(loaded.preprocess.stored(name)[None], 10)[:, 0]
    logits = np.asarray(jax.jit(loaded.model.apply)(loaded.variables, views))
    expected = reference.softmax(logits).mean(axis=0)
    by_label = {p["label"]: p["probability"] for p in answer["predictions"]}
    np.testing.assert_allclose([by_label[i] for i in range(5)], expected, rtol=1e-4)


def test_paths_from_a_pipe_are_answered_as_they_come(net, photos):  # noqa: F811
    command = [sys.executable, "-m", "alexnet_jax", "predict", f"--weights={net}", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for name in ("00.png", "broken.jpg", "02.png"):
            process.stdin.write(f"{photos / 'dark' / name}\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())  # before the next path is given
            assert answer["file"].endswith(name) and ("error" in answer) == (name == "broken.jpg")
        process.stdin.close()
        assert process.wait(60) == 0


def test_file_names_that_are_not_utf8_are_printed_unchanged(net, photos, tmp_path):  # noqa: F811
    name = os.fsencode(tmp_path) + b"/\xff.png"
    try:
        with open(name, "wb") as file:
            file.write((photos / "dark" / "00.png").read_bytes())
    except OSError:
        pytest.skip("this file system refuses such names")
    command = [sys.executable, "-m", "alexnet_jax", "predict", os.fsdecode(tmp_path), f"--weights={net}"]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=300)
    assert done.returncode == 0 and done.stdout.splitlines()[0] == name


def test_an_image_from_a_pipe(net, photos, monkeypatch, capsys):  # noqa: F811
    name = photos / "dark" / "00.png"
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(name.read_bytes())))
    monkeypatch.setattr("sys.stdin", stdin)
    assert __main__.main(["predict", "-", f"--weights={net}", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["file"] == "standard input"
    np.testing.assert_allclose(
        answer["predictions"][0]["probability"], probabilities(net, str(name)).max(), rtol=1e-3
    )


def test_standard_input_tells_images_from_paths():
    assert list(predict.standard_input(io.BufferedReader(io.BytesIO(b"\xff\xd8abc\nd")))) == [
        b"\xff\xd8abc\nd"
    ]
    assert list(predict.standard_input(io.BufferedReader(io.BytesIO(b"a b.jpg\r\n\nc.png")))) == [
        "a b.jpg",
        "c.png",
    ]


def test_weights_without_a_classifier_are_refused(tmp_path, net, photos):  # noqa: F811
    loaded = pretrained.read(net)
    convolutions = {k: v for k, v in loaded.variables["params"].items() if k.startswith("conv")}
    path = tmp_path / "convolutions.npz"
    pretrained.save_pretrained(path, loaded.model, {"params": convolutions}, loaded.preprocess)
    with pytest.raises(UserError, match=r"convolutions.npz: no classifier \(fc6, fc7, fc8 missing\)"):
        predict.predictor(pretrained.read(path, partial=True), 5, 1)
    done = run("alexnet_jax", "predict", photos, f"--weights={path}")
    assert done.returncode == 2 and done.stdout == ""
    note, error = done.stderr.splitlines()
    assert note.startswith("note: ") and "notes.txt" in note and "no classifier" in error


def test_the_real_convolutions_have_no_classifier(real_data):
    weights = f"--weights={real_data}/torchvision_alexnet_features.npz"
    with pytest.raises(UserError, match=r"no classifier \(fc6, fc7, fc8 missing\)"):
        __main__.main(["predict", f"{real_data}/imagenet_samples/val", weights])


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["nowhere"], "nowhere: no such file"),
        (["x", "--topk=0"], "--topk: 0: must be a whole number from 1"),
        (["x", "--views=3"], "--views"),
        (["x", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_use(net, arguments, match):  # noqa: F811
    with pytest.raises(UserError, match=match):
        __main__.main(["predict", *arguments, f"--weights={net}"])
