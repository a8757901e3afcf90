"""Predictions and their files, ensembles and submissions, against NumPy and cases computed by hand."""

import dataclasses
import io
import json
import math
import tarfile

import jax
import numpy as np
import pytest

from alexnet_jax import UserError, __main__, evaluate
from alexnet_jax import config as configs
from alexnet_jax import train as training
from alexnet_jax.data import sources, tars
from alexnet_jax.tools import ensemble, weight_search
from alexnet_jax.tools import predictions as predicting
from alexnet_jax.tools.predictions import Predictions
from alexnet_jax.weights import pretrained
from configs import default
from tests import reference
from tests import tiny as narrow

CLASSES = tuple(f"n{number:08d}" for number in range(6))


def made(seed=0, count=7, classes=CLASSES, **changes):
    rng = np.random.default_rng(seed)
    values = {
        "ids": tuple(f"image{number}.jpg" for number in range(count)),
        "labels": (np.arange(count) % len(classes)).astype(np.int32),
        "probabilities": reference.softmax(3 * rng.standard_normal((count, len(classes)))).astype(np.float32),
        "bad": np.zeros(count, bool),
        "classes": classes,
    }
    return Predictions(**{**values, **changes})


def by_hand(probabilities, labels, k):
    """Top-k error in % by sorting; there are no ties."""
    best = np.argsort(-probabilities, axis=1)[:, :k]
    return 100 * np.mean([label not in row for label, row in zip(labels, best, strict=True)])


def test_errors_by_hand():
    some = made()
    found = predicting.errors(some)
    own = some.probabilities.astype(np.float64)[np.arange(7), some.labels]
    assert found.top1_error == pytest.approx(by_hand(some.probabilities, some.labels, 1))
    assert found.top5_error == pytest.approx(by_hand(some.probabilities, some.labels, 5))
    assert found.loss == pytest.approx(-np.log(own).mean(), rel=1e-6)
    assert (found.examples, found.bad_images) == (7, 0)


def test_bad_images_and_images_without_a_label_are_not_counted():
    some = made(bad=np.arange(7) == 2, labels=np.array([0, 1, 2, 3, -1, 5, 0], np.int32))
    judged = [0, 1, 3, 5, 6]
    found = predicting.errors(some)
    assert found.examples == 5
    assert found.top1_error == pytest.approx(by_hand(some.probabilities[judged], some.labels[judged], 1))
    assert predicting.errors(made(labels=np.full(7, -1, np.int32))) is None


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [0.5, 2.0, 0.0]])
def test_an_ensemble_is_the_weighted_mean(weights):
    members = [made(seed) for seed in range(3)]
    shares = np.array(weights or [1, 1, 1], np.float64)
    stacked = np.stack([m.probabilities.astype(np.float64) for m in members])
    expected = np.einsum("m,mnk->nk", shares / shares.sum(), stacked)
    mean = predicting.average(members, weights)
    np.testing.assert_allclose(mean.probabilities, expected, rtol=1e-6)
    np.testing.assert_allclose(mean.probabilities.sum(axis=1), 1, rtol=1e-6)
    assert (mean.ids, mean.classes) == (members[0].ids, CLASSES)


@pytest.mark.parametrize(
    ("other", "weights", "words"),
    [
        (
            made(ids=tuple(f"picture{number}.jpg" for number in range(7))),
            None,
            "number 1 is image0.jpg against",
        ),
        (made(count=6), None, "7 against 6"),
        (made(classes=CLASSES[::-1]), None, "other classes"),
        (made(labels=np.ones(7, np.int32)), None, "other labels"),
        (made(), [1.0], "give 2 weights"),
        (made(), [1.0, -1.0], "none below 0"),
        (made(), [0.0, 0.0], "not all 0"),
    ],
)
def test_mismatched_members_are_refused(other, weights, words):
    with pytest.raises(UserError, match=words):
        predicting.average([made(), other], weights)


def compositions(parts, members):
    """All ways to divide `parts` among the members."""
    if members == 1:
        return [[parts]]
    return [[n, *rest] for n in range(parts + 1) for rest in compositions(parts - n, members - 1)]


def brute_force(members, parts, counted):
    """(top-1 error in %, loss, weights) of equal weights and of each point of the grid, in float64."""
    stacked = np.stack([member.probabilities.astype(np.float64) for member in members])[:, counted]
    labels = members[0].labels[counted]
    found = []
    for weights in (
        np.full(len(members), 1 / len(members)),
        *np.array(compositions(parts, len(members))) / parts,
    ):
        mean = sum(weight * one for weight, one in zip(weights, stacked, strict=True))
        own = mean[np.arange(len(labels)), labels]
        others = mean[np.arange(mean.shape[1]) != labels[:, None]].reshape(len(labels), -1)
        errors = (others >= own[:, None]).any(axis=1)
        found.append((100 * np.mean(errors), np.mean(-np.log(own)), tuple(weights)))
    return found


def learned(seed, strength, count=300):
    """Predictions that favour the label, and the more the stronger they are."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((count, len(CLASSES)))
    logits[np.arange(count), np.arange(count) % len(CLASSES)] += strength
    labels = np.where(np.arange(count) % 50 == 7, predicting.UNKNOWN, np.arange(count) % len(CLASSES))
    probabilities = reference.softmax(logits).astype(np.float32)
    return made(count=count, labels=labels.astype(np.int32), probabilities=probabilities)


@pytest.mark.parametrize(
    ("strengths", "parts"), [((0.5, 2.0), 100), ((1.5, 1.2, 0.2), 100), ((1, 2, 1, 0), 20)]
)
def test_the_search_of_weights_against_brute_force(strengths, parts):
    members = [learned(seed, strength) for seed, strength in enumerate(strengths)]
    bad = np.arange(300) % 40 == 3
    members[1] = dataclasses.replace(members[1], bad=bad)
    points = weight_search.grid(len(members))
    assert len(points) == 1 + len(compositions(parts, len(members)))
    table = brute_force(members, parts, ~bad & (members[0].labels != predicting.UNKNOWN))
    best = min(table)
    found = weight_search.search(members)
    np.testing.assert_allclose(found, best[2], atol=1e-12)
    assert (min(found), sum(found)) == (pytest.approx(min(best[2])), pytest.approx(1))
    errors = predicting.errors(predicting.average(members, found))
    assert (errors.top1_error, errors.loss) == pytest.approx(best[:2], rel=1e-6)
    assert errors.top1_error < table[0][0]  # of equal weights
    assert weight_search.search(members) == found


def test_a_search_among_equals_takes_the_smallest_loss_then_equal_weights():
    sure, unsure = learned(0, 20.0), learned(1, 8.0)
    assert weight_search.search([unsure, sure]) == [0.0, 1.0]  # without an error for most weights
    assert weight_search.search([unsure, unsure, unsure]) == [0.3333] * 3
    tied = made(probabilities=np.full((7, 6), 1 / 6, np.float32))  # a tie is an error, as in errors()
    assert weight_search.search([tied, tied]) == [0.5, 0.5]
    with pytest.raises(UserError, match="--search_weights: none of the images has a label"):
        weight_search.search([made(labels=np.full(7, -1, np.int32))] * 2)
    with pytest.raises(UserError, match="other labels"):
        weight_search.search([made(), made(labels=np.ones(7, np.int32))])


@pytest.mark.parametrize(("members", "parts"), [(2, 100), (3, 100), (5, 20), (7, 10), (10, 5), (30, 2)])
def test_the_grid_of_weights(members, parts):
    points = weight_search.grid(members)
    assert len(points) - 1 == math.comb(parts + members - 1, members - 1) <= 20_000
    assert len(np.unique(points[1:], axis=0)) == len(points) - 1
    assert points.min() >= 0
    np.testing.assert_allclose(points.sum(axis=1), 1)
    np.testing.assert_allclose(points[1:] * parts, np.round(points[1:] * parts), atol=1e-9)
    np.testing.assert_array_equal(points[0], np.full(members, 1 / members))


def test_chunks_of_the_search_change_nothing(monkeypatch):
    members = [learned(seed, 1.0) for seed in range(3)]
    found = weight_search.search(members)
    monkeypatch.setattr(weight_search, "MOST_LEADS", 10)  # fewer than there are at a point
    monkeypatch.setattr(weight_search, "BLOCK", 150)
    assert weight_search.search(members) == found


def test_weights_chosen_on_one_set_are_applied_to_another(tmp_path, capsys):
    for name, shift in (("valid", 0), ("test", 10)):
        for number, strength in enumerate((0.5, 2.0)):
            predicting.save(tmp_path / f"{name}{number}.npz", learned(number + shift, strength))
    valid, test = ([str(tmp_path / f"{name}{number}.npz") for number in (0, 1)] for name in ("valid", "test"))
    assert __main__.main(["ensemble", *valid, "--search_weights", "--json"]) == 0
    printed, said = capsys.readouterr()
    found = json.loads(printed)
    members = [predicting.load(path) for path in valid]
    assert found["member_weights"] == weight_search.search(members)
    equal = predicting.errors(predicting.average(members))
    assert found["equal_weights_top1_error"] == equal.top1_error > found["top1_error"]
    assert (found["equal_weights_top5_error"], found["equal_weights_loss"]) == (equal.top5_error, equal.loss)
    assert "the weights flatter their error; --member_weights tests others" in said
    assert __main__.main(["ensemble", *valid, "--search_weights"]) == 0
    weights = capsys.readouterr().out.splitlines()[-1].removeprefix("member weights").strip()
    assert __main__.main(["ensemble", *test, f"--member_weights={weights}", "--json"]) == 0
    applied = json.loads(capsys.readouterr().out)
    others = predicting.average([predicting.load(path) for path in test], found["member_weights"])
    assert applied["top1_error"] == predicting.errors(others).top1_error


def test_predictions_survive_a_round_trip_through_a_file(tmp_path):
    path = tmp_path / "predictions.npz"
    some = made(bad=np.arange(7) == 2)
    predicting.save(path, some)
    assert predicting.holds_predictions(path)
    read = predicting.load(path)
    assert (read.ids, read.classes) == (some.ids, some.classes)
    for name in ("labels", "probabilities", "bad"):
        np.testing.assert_array_equal(getattr(read, name), getattr(some, name))
        assert getattr(read, name).dtype == getattr(some, name).dtype


def test_other_files_are_not_taken_for_predictions(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **{"features.0.weight": np.zeros(3)})
    assert not predicting.holds_predictions(path)
    with pytest.raises(UserError, match=r"weights\.npz: not a file of predictions"):
        predicting.load(path)
    with pytest.raises(UserError, match=r"predictions\.csv: must end in \.npz"):
        predicting.save(tmp_path / "predictions.csv", made())


# --- The test server --------------------------------------------------------------------------------------


def kit(tmp_path, ids):
    """A development kit that numbers the classes in reverse; the official one has its own order, too."""
    scipy_io = pytest.importorskip("scipy.io")
    synsets = np.zeros(len(ids), dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O")])
    synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["words"] = np.arange(len(ids), 0, -1), ids, ids
    meta = io.BytesIO()
    scipy_io.savemat(meta, {"synsets": synsets})
    path = tmp_path / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("ILSVRC2012_devkit_t12/data/meta.mat")
        member.size = meta.getbuffer().nbytes
        tar.addfile(member, io.BytesIO(meta.getvalue()))
    return path


def test_the_class_numbers_of_a_development_kit_packed_or_not(tmp_path):
    packed = kit(tmp_path, CLASSES)
    expected = {class_id: len(CLASSES) - label for label, class_id in enumerate(CLASSES)}
    assert tars.numbers(packed) == expected
    assert tars.numbers(tmp_path) == expected
    with tarfile.open(packed) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert tars.numbers(tmp_path / "unpacked") == expected
    assert tars.numbers(tmp_path / "unpacked" / "ILSVRC2012_devkit_t12" / "data" / "meta.mat") == expected
    with pytest.raises(UserError, match=r"no meta\.mat"):
        tars.numbers(tmp_path / "nothing_here")


def test_a_submission_has_five_class_numbers_per_line():
    some = made()
    numbers = {class_id: 100 - label for label, class_id in enumerate(CLASSES)}
    lines = ensemble.submission(some, numbers).splitlines()
    assert len(lines) == 7
    for line, row in zip(lines, some.probabilities, strict=True):
        best = sorted(range(6), key=lambda label: -row[label])[:5]
        assert line == " ".join(str(100 - label) for label in best)
    with pytest.raises(UserError, match="n00000005"):
        ensemble.submission(some, {class_id: 1 for class_id in CLASSES[:5]})
    with pytest.raises(UserError, match="5 classes or more, not 4"):
        ensemble.submission(made(classes=CLASSES[:4]), numbers)


# --- Nets -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return narrow.make_images(tmp_path_factory.mktemp("images"), train=3, test=2)


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """The workdir of a narrow net after a few training steps."""
    workdir = tmp_path_factory.mktemp("run")
    overrides = {"data.source": f"folder:{images}", **narrow.NET, "run.total_steps": 4, "mesh.data": 1}
    config = configs.resolve(default.get_config(), {**overrides, "run.eval_every_steps": 4})
    training.train(config, workdir)
    return workdir


@pytest.mark.parametrize("views", [1, 10])
def test_probabilities_of_a_net_against_numpy(run, images, views):
    """Each view by itself through the net, then softmax and mean in float64."""
    loaded = pretrained.read(run)
    source = sources.open_source(f"folder:{images}", "test")
    found = predicting.predict(loaded, source, views=views)
    encoded, labels = source.read(np.arange(len(source)))
    stored = np.stack([loaded.preprocess.decode(data) for data in encoded]).astype(np.float64)
    size, margin = loaded.preprocess.crop_size, loaded.preprocess.resize_size - loaded.preprocess.crop_size
    corners = [(0, 0), (0, margin), (margin, 0), (margin, margin), (margin // 2, margin // 2)]
    boxes = corners[4:] if views == 1 else corners
    patches = [
        stored[:, top : top + size, left : left + size] - loaded.preprocess.mean for top, left in boxes
    ]
    patches += [patch[:, :, ::-1] for patch in patches] if views == 10 else []
    apply = jax.jit(loaded.model.apply)
    logits = [apply(loaded.variables, patch.astype(np.float32)) for patch in patches]
    expected = np.mean([reference.softmax(np.asarray(one, np.float64)) for one in logits], axis=0)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.ids == tuple(source.name(i) for i in range(len(source)))
    # The evaluator measures the same errors.
    config = configs.of_workdir(run, {"run.eval_views": views})
    result, _ = evaluate.evaluate_workdir(config, run)
    errors = predicting.errors(found)
    assert (errors.top1_error, errors.top5_error) == (result.top1_error, result.top5_error)
    assert errors.loss == pytest.approx(result.loss, rel=1e-5)
    assert errors.examples == result.examples == 20


def test_the_command_takes_workdirs_predictions_and_weights(run, images, tmp_path, capsys):
    out = tmp_path / "predictions.npz"
    assert __main__.main(["ensemble", str(run), "--views=10", f"--out={out}", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["members"], first["images"], first["views"], first["examples"]) == (1, 20, 10, 20)
    weights = tmp_path / "net.npz"
    loaded = pretrained.read(run)
    pretrained.save_pretrained(weights, loaded.model, loaded.variables, loaded.preprocess, loaded.classes)
    both = [
        str(out),
        str(weights),
        f"--source=folder:{images}",
        "--views=10",
        "--member_weights=3,1",
        "--json",
    ]
    assert __main__.main(["ensemble", *both]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert again["members"] == 2


def test_a_submission_of_images_without_labels(run, images, tmp_path, capsys):
    names = sorted((images / "test").rglob("*.png"), key=lambda path: path.name)[:8]
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    for path in names:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "zz_broken.png").write_bytes(b"no image")
    labelled = tmp_path / "labelled.npz"
    __main__.main(["ensemble", str(run), f"--out={labelled}"])
    known = predicting.load(labelled)
    devkit = kit(tmp_path, [f"class{label}" for label in range(10)])
    capsys.readouterr()
    sheet = tmp_path / "submission.txt"
    arguments = [f"--images={folder}", f"--submission={sheet}", f"--devkit={devkit}", "--json"]
    assert __main__.main(["ensemble", str(run), *arguments]) == 0
    assert "top1_error" not in json.loads(capsys.readouterr().out)
    lines = sheet.read_text().splitlines()
    assert len(lines) == 9  # the unreadable image has a line, too
    by_name = {name.rpartition("/")[2]: row for name, row in zip(known.ids, known.probabilities, strict=True)}
    for line, path in zip(lines, names, strict=False):
        best = np.argsort(-by_name[path.name], kind="stable")[:5]
        assert line == " ".join(str(10 - label) for label in best)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "--source: missing"),
        (["{run}", "--submission=x.txt"], "--submission: needs --devkit"),
        (["{run}", "--source=embedded", "--images=x"], "give one of them"),
        (["{run}", "--member_weights=a"], "--member_weights: a: give numbers such as 2,1,1"),
        (["{run}", "--source=folder:nowhere", "--member_weights=1,2"], "give 1 weights"),  # before any work
        (["{run}", "--search_weights"], "--search_weights: needs two members"),
        (
            ["{run}", "{run}", "--search_weights", "--images=x"],
            "--search_weights: needs two members or more, lab",
        ),
        (["{run}", "{run}", "--search_weights", "--member_weights=1,2"], "and no --member_weights"),
        (["{run}", "--views=3"], "--views"),
        (["{run}", "--out=x.parquet"], "x.parquet: must end in .npz"),
    ],
)
def test_wrong_arguments_are_one_line(run, images, arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        __main__.main(["ensemble", *(a.format(run=run, images=images) for a in arguments)])
    assert "\n" not in str(caught.value)
