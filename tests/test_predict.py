"""The command that names what is in images: files, folders, pipes, bad images, no classifier."""

import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import predict, pretrained
from alexnet_jax.errors import UserError
from tests.test_features import net, photos, run  # noqa: F401  (fixtures)

DATA = os.environ.get("ALEXNET_JAX_TEST_DATA")


def probabilities(path: pathlib.Path, name: str) -> np.ndarray:
    model, variables, preprocess = pretrained.load_pretrained(path)
    return np.asarray(jax.nn.softmax(model.apply(variables, jnp.asarray(preprocess(name))[None])[0]))


def test_a_folder_as_json(net, photos):  # noqa: F811
    done = run("alexnet_jax.predict", photos, f"--weights={net}", "--json", "--topk=2")
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 41
    assert [a["file"] for a in answers if "error" in a] == [str(photos / "dark" / "broken.jpg")]
    for answer in (answers[0], answers[39]):  # of a full group, and of the last one
        expected = probabilities(net, answer["file"])
        order = np.argsort(-expected)[:2]
        assert [p["label"] for p in answer["predictions"]] == order.tolist()
        assert [p["class"] for p in answer["predictions"]] == [
            ("ant", "bee", "cat", "dog", "elk")[i] for i in order
        ]
        np.testing.assert_allclose(
            [p["probability"] for p in answer["predictions"]], expected[order], rtol=1e-3
        )


def test_text_and_bad_images(net, photos):  # noqa: F811
    good, bad = photos / "dark" / "00.png", photos / "dark" / "broken.jpg"
    done = run("alexnet_jax.predict", bad, good, f"--weights={net}")
    assert done.returncode == 0
    assert f"{bad}: not a whole image" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == str(good) and len(lines) == 6 and " %  " in lines[1]
    done = run("alexnet_jax.predict", bad, f"--weights={net}")
    assert done.returncode == 2 and "none of the images can be read" in done.stderr


def test_ten_views_are_averaged(net, photos):  # noqa: F811
    loaded = pretrained.read(net)
    name = str(photos / "dark" / "00.png")
    (answer,) = predict.predictions(loaded, [name], views=10)
    views = loaded.preprocess.ten_views(loaded.preprocess.stored(name)[None])[:, 0]
    expected = np.asarray(jax.nn.softmax(loaded.model.apply(loaded.variables, views))).mean(axis=0)
    by_label = {p["label"]: p["probability"] for p in answer["predictions"]}
    np.testing.assert_allclose([by_label[i] for i in range(5)], expected, rtol=1e-4)


def test_paths_from_a_pipe_are_answered_as_they_come(net, photos):  # noqa: F811
    command = [sys.executable, "-m", "alexnet_jax.predict", f"--weights={net}", "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for name in ("00.png", "broken.jpg", "02.png"):
            process.stdin.write(f"{photos / 'dark' / name}\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())  # before the next path is given
            assert answer["file"].endswith(name) and ("error" in answer) == (name == "broken.jpg")
        process.stdin.close()
        assert process.wait(60) == 0


def test_an_image_from_a_pipe(net, photos):  # noqa: F811
    data = (photos / "dark" / "00.png").read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "alexnet_jax.predict", "-", f"--weights={net}", "--json"],
        input=data,
        capture_output=True,
        timeout=300,
    )
    (answer,) = (json.loads(line) for line in done.stdout.splitlines())
    assert answer["file"] == "standard input"
    expected = probabilities(net, str(photos / "dark" / "00.png")).max()
    np.testing.assert_allclose(answer["predictions"][0]["probability"], expected, rtol=1e-3)


def test_standard_input_tells_images_from_paths():
    assert list(predict.standard_input(io.BufferedReader(io.BytesIO(b"\xff\xd8abc\nd")))) == [
        b"\xff\xd8abc\nd"
    ]
    assert list(predict.standard_input(io.BufferedReader(io.BytesIO(b"a b.jpg\r\n\nc.png")))) == [
        "a b.jpg",
        "c.png",
    ]


def test_without_a_classifier_it_says_so(tmp_path, net, photos):  # noqa: F811
    loaded = pretrained.read(net)
    trunk = {k: v for k, v in loaded.variables["params"].items() if k.startswith("conv")}
    path = tmp_path / "trunk.npz"
    pretrained.save_pretrained(path, loaded.model, {"params": trunk}, loaded.preprocess)
    with pytest.raises(UserError, match=r"trunk.npz: no classifier, for fc6, fc7, fc8 are missing"):
        predict.predictor(pretrained.read(path, partial=True), 5, 1)
    done = run("alexnet_jax.predict", photos, f"--weights={path}")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "no classifier" in done.stderr


@pytest.mark.skipif(DATA is None, reason="ALEXNET_JAX_TEST_DATA names no folder of real data")
def test_the_real_convolutions_have_no_classifier():
    done = run(
        "alexnet_jax.predict",
        f"{DATA}/imagenet_samples/val",
        f"--weights={DATA}/torchvision_alexnet_features.npz",
    )
    assert done.returncode == 2 and "no classifier, for fc6, fc7, fc8 are missing" in done.stderr


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["nowhere"], "nowhere: no such file"),
        (["x", "--topk=0"], "--topk=0"),
        (["x", "--views=3"], "--views"),
    ],
)
def test_wrong_use_is_exit_code_2(net, arguments, match):  # noqa: F811
    done = run("alexnet_jax.predict", *arguments, f"--weights={net}")
    assert done.returncode == 2 and match in done.stderr and "Traceback" not in done.stderr
