"""A net meets images of other classes, or of the same in another order: eval, ensemble, resume, init.path.

Expected values are of the net's logits in float64 NumPy; each case names the public report behind it.
"""

import json
import shutil

import jax
import numpy as np
import pytest

from alexnet_jax import __main__, evaluate
from alexnet_jax import config as configs
from alexnet_jax import train as training
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import sources
from alexnet_jax.run import logs
from alexnet_jax.tools import predictions as predicting
from alexnet_jax.weights import pretrained
from configs import default
from tests import reference
from tests import tiny as narrow

# Twelve of ImageNet's classes in the order of their ids, which is that of the labels; two are called crane.
WORDS = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n01484850": "great_white_shark",
    "n01514668": "cock",
    "n01514859": "hen",
    "n02012849": "crane",
    "n02123045": "tabby",
    "n02125311": "cougar",
    "n02206856": "bee",
    "n02219486": "ant",
    "n03126707": "crane",
    "n04153751": "screw",
}
IDS = tuple(WORDS)
READABLE = [label for label, word in enumerate(WORDS.values()) if word != "crane"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of four training and three test images a class, of random embedded images."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, per_class in (("train", 4), ("test", 3)):
        chosen = rng.permutation(2000)[: 12 * per_class].reshape(12, per_class)
        source = sources.open_source("embedded", split)
        for class_id, indices in zip(IDS, chosen, strict=True):
            (root / split / class_id).mkdir(parents=True)
            for number, data in enumerate(source.read(indices)[0]):
                (root / split / class_id / f"{number}.png").write_bytes(data)
    return root


def config_for(images, **overrides):
    base = {"data.source": f"folder:{images}", **narrow.NET, "mesh.data": 1, "run.total_steps": 30}
    return configs.resolve(default.get_config(), {**base, "data.num_classes": 12, **overrides})


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """The workdir of a net trained on the twelve ids."""
    workdir = tmp_path_factory.mktemp("run")
    training.train(config_for(images, **{"optimizer.learning_rate": 0.005}), workdir)
    return workdir


def copy_of(images, root, names):
    """The test images with the classes at the labels in `names` only, under other names."""
    for label, name in names.items():
        shutil.copytree(images / "test" / IDS[label], root / "val" / name)
    return f"folder:{root}"


@pytest.fixture(scope="module")
def logits(run, images):
    """By the number of views: the net's logits of the test images, float64 `[views, 12 classes, 3, 12]`."""
    loaded = pretrained.read(run)
    files = [path for class_id in IDS for path in sorted((images / "test" / class_id).iterdir())]
    stored = np.stack([loaded.preprocess.stored(path) for path in files])
    apply = jax.jit(lambda view: loaded.model.apply(loaded.variables, view))
    shown = {1: [loaded.preprocess.view(stored)], 10: loaded.preprocess.views(stored, 10)}
    return {
        views: np.reshape([apply(view) for view in some], (views, 12, 3, 12)).astype(np.float64)
        for views, some in shown.items()
    }


def expected(logits, labels):
    """Top-1 and top-5 error in %, loss, and probabilities `[N, K]`: the classes `labels` compete alone.

    The images are those of the classes in this order, as in the data set's.
    """
    own = logits[:, labels][..., labels].reshape(len(logits), -1, len(labels))
    probabilities = reference.softmax(own).mean(axis=0)
    truth = np.repeat(np.arange(len(labels)), 3)
    place = np.argmax(np.argsort(-probabilities, axis=1) == truth[:, None], axis=1)
    loss = -np.log(probabilities[np.arange(len(truth)), truth]).mean()
    return 100 * np.mean(place >= 1), 100 * np.mean(place >= 5), loss, probabilities


# Names of test folders by the net's label.
CASES = {
    "the same ids": {label: IDS[label] for label in range(12)},
    # As text they would be 0, 1, 10, 11, 2, ...
    "numbers, modestyachts/ImageNetV2#10": {label: str(label) for label in range(12)},
    "some numbers, modestyachts/ImageNetV2#10": {10: "10", 2: "2", 0: "0", 9: "9"},
    "some ids, huggingface/pytorch-image-models#2456": {k: IDS[k] for k in (1, 5, 7, 8, 9, 10, 11)},
    "words in another order": {label: list(WORDS.values())[label] for label in READABLE},
    "ids and words": {3: "cock", 5: IDS[5], 8: "Bee", 10: IDS[10], 9: "pismire"},
}


@pytest.mark.parametrize(("case", "views"), [*((case, 1) for case in CASES), ("ids and words", 10)])
def test_numbers_are_those_of_the_data_set_s_classes(run, images, logits, tmp_path, capsys, case, views):
    names = CASES[case]
    numeric = all(name.isdigit() for name in names.values())
    labels = sorted(names, key=lambda label: int(names[label]) if numeric else names[label])
    source = copy_of(images, tmp_path, names)
    loaded = pretrained.read(run)
    top1, top5, loss, probabilities = expected(logits[views], labels)
    capsys.readouterr()
    config = configs.of_workdir(run, {"data.source": source, "run.eval_views": views})
    result, _ = evaluate.evaluate_workdir(config, run)
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert (result.top1_error, result.top5_error) == pytest.approx((top1, top5))
    assert result.loss == pytest.approx(loss, rel=1e-4)
    assert result.examples == 3 * len(names)
    assert len(said) == (len(names) < 12)
    assert all(f"{len(names)} of the 12 classes of {run}; the other logits are left out" in s for s in said)

    found = predicting.predict(loaded, sources.open_source(source, "test"), views=views)
    np.testing.assert_allclose(found.probabilities, probabilities, rtol=1e-3)
    assert found.classes == tuple(names[label] for label in labels)
    assert predicting.errors(found).loss == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize(
    ("names", "lacking"),
    [
        ({label: IDS[label] if label != 4 else "n99999999" for label in range(12)}, "n99999999"),
        ({**{label: IDS[label] for label in range(12)}, 0: "zebra crossing"}, "zebra crossing"),
        ({8: "bee", 0: "cat"}, "cat"),
        ({5: "crane", 8: "bee"}, "crane"),
        ({0: "11", 1: "12"}, "12"),
    ],
)
def test_a_class_that_the_net_lacks_is_named(run, images, tmp_path, names, lacking):
    """A net of (ant, bee) tested on (bee, cat): LINs-lab/RDED#10."""
    source = copy_of(images, tmp_path, names)
    message = rf"no certain match for {lacking} among the net's 12 classes \(n01440764, .*use images of these"
    with pytest.raises(UserError, match=message):
        evaluate.evaluate_workdir(configs.of_workdir(run, {"data.source": source}), run)
    with pytest.raises(UserError, match=message) as caught:
        predicting.predict(pretrained.read(run), sources.open_source(source, "test"))
    assert "\n" not in str(caught.value)


# --- Files and ensembles ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(run, tmp_path_factory):
    """The net as a file without classes, and another whose outputs are in the reverse order, by words."""
    folder, loaded = tmp_path_factory.mktemp("files"), pretrained.read(run)
    params = loaded.variables["params"]
    # fc8 is [columns, inputs, half of the classes]
    turned = {key: np.asarray(value)[::-1, ..., ::-1] for key, value in params["fc8"].items()}
    reverse = (loaded.model, {"params": {**params, "fc8": turned}}, loaded.preprocess)
    pretrained.save_pretrained(folder / "reverse.npz", *reverse, loaded.classes[::-1], IDS[::-1])
    pretrained.save_pretrained(folder / "unknown.npz", loaded.model, loaded.variables, loaded.preprocess)
    return folder


def test_a_net_of_unknown_classes_needs_as_many(images, logits, files, tmp_path):
    unknown = pretrained.read(files / "unknown.npz")
    assert unknown.classes is None and unknown.class_ids is None
    renamed = copy_of(images, tmp_path / "all", {label: f"class{label:02}" for label in range(12)})
    found = predicting.predict(unknown, sources.open_source(renamed, "test"))
    np.testing.assert_allclose(found.probabilities, expected(logits[1], range(12))[3], rtol=1e-3)
    some = copy_of(images, tmp_path / "some", {label: IDS[label] for label in (1, 2)})
    with pytest.raises(
        UserError, match=r"unknown.npz and some: .*: the names of the net's 12 classes are unknown"
    ):
        predicting.predict(unknown, sources.open_source(some, "test"))


def test_members_with_their_classes_in_another_order(run, images, logits, files, tmp_path, capsys):
    """The reverse net has the same probabilities, class by class, of images with labels and without."""
    assert __main__.main(["export", str(run), str(tmp_path / "exported.safetensors")]) == 0
    members = [str(tmp_path / "exported.safetensors"), str(files / "reverse.npz"), "--json"]
    out = tmp_path / "predictions.npz"
    capsys.readouterr()
    assert __main__.main(["ensemble", *members, f"--source=folder:{images}", f"--out={out}"]) == 0
    top1, _, loss, probabilities = expected(logits[1], range(12))
    found = json.loads(capsys.readouterr().out)
    assert found["top1_error"] == pytest.approx(top1) and found["loss"] == pytest.approx(loss, rel=1e-4)
    np.testing.assert_allclose(predicting.load(out).probabilities, probabilities, rtol=1e-3)
    assert predicting.load(out).classes == IDS
    assert __main__.main(["ensemble", *members, f"--images={images / 'test'}", f"--out={out}"]) == 0
    unlabelled = predicting.load(out)
    names = [str(images / "test" / class_id / f"{number}.png") for class_id in IDS for number in range(3)]
    rows = [names.index(name) for name in unlabelled.ids]
    np.testing.assert_allclose(unlabelled.probabilities, probabilities[rows], rtol=1e-3)
    assert unlabelled.classes == IDS


# --- Training ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def started(images, tmp_path_factory):
    """A run of one step and its own copy of the images."""
    own, workdir = tmp_path_factory.mktemp("own") / "images", tmp_path_factory.mktemp("started")
    shutil.copytree(images, own)
    training.train(config_for(own, **{"data.num_classes": None, "run.total_steps": 1}), workdir)
    return own, workdir


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            IDS[3],
            "n01514669",
            r"label 3 was n01514668 when .* is n01514669; .* set run.allow_changes if only",
        ),
        (
            IDS[3],
            "n09",
            r"label 3 was n01514668 when the run in .* now it is n01514859; use the same classes$",
        ),
        (IDS[11], None, r"label 11 was n04153751 when .* now it is no class; use the same classes$"),
        (None, "n0300", r"label 10 was n03126707 when .* now it is n0300; use the same classes$"),
    ],
)
def test_other_classes_than_when_the_run_started(started, tmp_path, old, new, message):
    """Renamed, moved, removed and added between two starts: open-mmlab/mmpretrain#11."""
    own, workdir, away = started[0], tmp_path / "run", tmp_path / "images"
    shutil.copytree(started[1], workdir)
    own.rename(away)
    names = [name for name in IDS if name != old]
    for split in ("train", "test"):
        for name in names:
            shutil.copytree(away / split / name, own / split / name)
        if new is not None:
            shutil.copytree(away / split / (old or IDS[0]), own / split / new)
    keys = {"data.num_classes": None, "run.total_steps": 2}
    allowed = config_for(own, **keys, **{"run.allow_changes": True})
    description = (workdir / pretrained.DESCRIPTION).read_text()
    try:
        with pytest.raises(UserError, match=message):
            training.train(config_for(own, **keys), workdir)
        assert (workdir / pretrained.DESCRIPTION).read_text() == description
        assert json.loads((workdir / logs.STATUS).read_text())["status"] == "failed"
        if "allow_changes" in message:
            assert training.train(allowed, workdir) == "done"
            assert pretrained.read(workdir).class_ids == tuple(new if name == old else name for name in IDS)
        else:
            with pytest.raises(UserError, match=message):
                training.train(allowed, workdir)
    finally:
        shutil.rmtree(own)
        away.rename(own)


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        ({label: IDS[label] for label in range(12)}, True),
        (dict(enumerate(map(str, range(12)))), True),
        ({label: f"class{label:02}" for label in range(12)}, False),  # as many, but others
        ({label: IDS[label] for label in range(11)}, False),
        ({label: f"{IDS[label] if label in (5, 10) else WORDS[IDS[label]]}" for label in range(12)}, False),
    ],
)
def test_the_last_layer_is_kept_for_the_same_classes_only(run, images, tmp_path, names, kept):
    """As many classes are not the same classes (LINs-lab/RDED#10); numbers are labels."""
    for split in ("train", "val"):
        for label, name in names.items():
            shutil.copytree(images / "train" / IDS[label], tmp_path / split / name)
    config = config_for(tmp_path, **{"init.path": str(run), "data.num_classes": None})
    start = training.Run(config, tmp_path / "unused").start
    assert ("fc8" in start) == kept and "fc7" in start
