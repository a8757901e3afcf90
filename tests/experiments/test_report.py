"""Figures, reports and records: the pages as the records make them, the report in a real browser."""

import contextlib
import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from alexnet_jax import UserError
from alexnet_jax import config as configs
from alexnet_jax import train as training
from alexnet_jax.run import logs
from alexnet_jax.tools import predictions
from alexnet_jax.weights import pretrained
from configs import default
from tests import reference
from tests import tiny as narrow

pytest.importorskip("matplotlib")
from experiments import (
    figure1,
    figure3,
    figure4,
    index,
    record,
    report,
    report_mistakes,
    report_runs,
    run_picture,
    sweep,
)

ROOT = pathlib.Path(__file__).parents[2]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return narrow.make_images(tmp_path_factory.mktemp("images"), train=3, test=2)


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "a run"
    overrides = {"data.source": f"folder:{images}", **narrow.NET, "run.total_steps": 4, "mesh.data": 1}
    more = {"run.eval_every_steps": 2, "run.log_every_steps": 1}
    training.train(configs.resolve(default.get_config(), {**overrides, **more}), workdir)
    return workdir


# --- Arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (figure1, ["--source=nowhere", "--out={file}/record"], "record: .*file is not a folder that can be"),
        (figure3, ["--weights=nowhere", "--out={folder}/filters.svg"], "filters.svg: must end in .png"),
        (figure4, ["--source=nowhere", "--out={folder}/nowhere/a.svg"], "there is no folder .*nowhere"),
        (report, ["nowhere", "--out={folder}"], "must end in .html"),
        (run_picture, ["--workdir=nowhere", "--out={file}/run.png"], "there is no folder .*file"),
        (sweep, ["nowhere.py", "--out={file}"], "--out: .*file is not a folder that can be written"),
    ],
)
def test_a_wrong_place_for_the_result_is_refused_before_any_work(tmp_path, command, arguments, words):
    (tmp_path / "file").touch()
    places = {"file": tmp_path / "file", "folder": tmp_path}
    with pytest.raises(UserError, match=words):
        command.main([argument.format(**places) for argument in arguments])


# Not a time limit, which a busy machine would exceed.
SLOW_TO_IMPORT = {"jax", "matplotlib", "orbax", "scipy", "tensorboard", "tensorflow"}
COMMANDS = [path.stem for path in (ROOT / "experiments").glob("*.py") if "__main__" in path.read_text()]


@pytest.mark.parametrize("module", sorted(COMMANDS))
def test_help_does_not_wait_for_jax(module):
    """Of every command, including those still to come; before, `report --help` took 5 s on a free machine."""
    code = (
        f"import runpy, sys; sys.argv[1:] = ['--help']\n"
        f"try: runpy.run_module('experiments.{module}', run_name='__main__')\n"
        f"except SystemExit as end: sys.exit(end.code or {SLOW_TO_IMPORT} & sys.modules.keys() or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and f"python -m experiments.{module}" in done.stdout, done.stderr


# --- Figures ----------------------------------------------------------------------------------------------


def test_figure_3_has_the_first_column_s_filters_above_the_second_s(run, tmp_path, capsys):
    assert figure3.main([f"--weights={run}", f"--out={tmp_path / 'filters.png'}", "--across=4"]) == 0
    with Image.open(tmp_path / "filters.png") as opened:
        pixels = np.asarray(opened)
    kernel = np.asarray(pretrained.read(run).variables["params"]["conv1"]["kernel"])  # [2, 11, 11, 3, 4]
    side = 3 * 11
    for column in (0, 1):
        top = column * (side + 2 + 6) + 1
        for number in range(4):
            left = number * (side + 2) + 1
            tile = pixels[top : top + side : 3, left : left + side : 3]
            filter_ = kernel[column, :, :, :, number]
            expected = np.round(127.5 + 127.5 * filter_ / np.abs(filter_).max())
            np.testing.assert_allclose(tile, expected, atol=1)
    assert capsys.readouterr().out.startswith("column 1: 4 filters")


def test_colourfulness_is_the_share_of_energy_beside_grey():
    grey = np.ones((11, 11, 3))
    red_green = np.ones((11, 11, 3)) * [1, -1, 0]
    kernel = np.stack([np.stack([grey, grey], -1), np.stack([red_green, grey + red_green], -1)])
    # Of (2, 0, 1) the grey part is (1, 1, 1): 2 of 5 parts of the energy are colour.
    assert figure3.colourfulness(kernel) == pytest.approx([0.0, (1 + 2 / 5) / 2])


def test_figure_4_finds_the_image_itself_where_it_is_among_the_others(run, images, tmp_path):
    """What is nearest to a copy of a training image is that image."""
    copy = tmp_path / "images"
    shutil.copytree(images, copy)
    for folder in (copy / "test").iterdir():
        first = min((copy / "train" / folder.name).iterdir())
        for path in folder.iterdir():
            path.unlink()
        shutil.copy(first, folder / "0.png")
    loaded = pretrained.read(run)
    from alexnet_jax.data import sources
    from alexnet_jax.tools import nearest

    train, test = (sources.open_source(f"folder:{copy}", split) for split in ("train", "test"))
    chosen = figure4.spread_over_classes(test, 10, seed=0)
    assert sorted(test.read(chosen)[1]) == list(range(10))
    # By a layer that tells images apart after so few steps, as the last does not.
    queries, _ = figure4.points(test, chosen, loaded, "pool1")
    others, kept = figure4.points(train, np.arange(len(train)), loaded, "pool1")
    found, distances = nearest.nearest(queries, others, 2)
    np.testing.assert_allclose(distances[:, 0], 0, atol=1e-3)
    for query, row in zip(chosen, found, strict=True):
        assert train.read(kept[row[:1]])[0] == test.read(np.array([query]))[0]
    assert figure4.same_class(np.array([[1, 2], [3, 3]]), np.array([2, 3])) == 0.75
    for name in ("figure.png", "figure.svg"):
        figure4.main([f"--weights={run}", f"--source=folder:{copy}", f"--out={tmp_path / name}", "--k=2"])
    with Image.open(tmp_path / "figure.png") as opened:
        assert min(opened.size) > 300
    drawn = (tmp_path / "figure.svg").read_text()
    assert drawn.count("<image") == 8 + 5 * 3
    assert "class3" in drawn


def test_the_picture_of_a_run_shows_what_its_filters_respond_to(run, tmp_path):
    loaded = pretrained.read(run)
    square, maps = run_picture.responses(loaded, run_picture.PHOTOGRAPHS / "cat.jpg")
    assert square.shape == (224, 224, 3) and maps.shape[2] == 2 * 4 and maps.min() == 0  # after the ReLU
    # In the middle, by hand: the second column's filters times the pixels there, less the mean colour.
    kernel, bias = (np.asarray(loaded.variables["params"]["conv1"][name])[1] for name in ("kernel", "bias"))
    pixels = square - loaded.preprocess.mean.reshape(-1, 3).mean(axis=0)
    top = 4 * 25  # stride 4; the padding is at the right and at the bottom
    expected = np.tensordot(pixels[top : top + 11, top : top + 11], kernel, axes=3) + bias
    np.testing.assert_allclose(maps[25, 25, 4:], np.maximum(expected, 0), rtol=1e-4, atol=1e-4)
    assert run_picture.main([f"--workdir={run}", f"--out={tmp_path / 'run.png'}"]) == 0
    with Image.open(tmp_path / "run.png") as opened:
        assert opened.size == (1200, 528)


# --- The report -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(run, images, tmp_path_factory):
    """A report of a run, of another that differs in a key, and of a sweep."""
    folder = tmp_path_factory.mktemp("report")
    other = folder / "other"
    shutil.copytree(run, other)
    config = json.loads((other / configs.FILE_NAME).read_text())
    config["optimizer"]["momentum"] = 0.8
    (other / configs.FILE_NAME).write_text(json.dumps(config))
    file = folder / "small.py"
    rows = 'SEEDS = (0,)\nROWS = {"a & b": {"model.norm": False}}'
    file.write_text(f'"""A <small> sweep."""\nCONFIG = "configs/default.py"\n{rows}\n')
    # Its runs are those above, by other names.
    for name, seed in (("parent", 0), ("a-b", 0)):
        shutil.copytree(run, folder / "runs" / f"{name}-{seed}")
    assert sweep.main([str(file), f"--runs={folder / 'runs'}", "--table"]) == 0
    out = folder / "report.html"
    arguments = [str(run), str(other), str(folder / "runs"), f"--out={out}", f"--figure4=folder:{images}"]
    assert report.main(arguments) == 0
    return out


def test_a_report_holds_everything_itself(page, run):
    text = page.read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert text.count("data:image/svg+xml") == 3
    assert text.count("data:image/png") == 6  # confusion matrix, filters and Figure 4 of two runs
    assert "A &lt;small&gt; sweep." in text
    assert "a &amp; b" in text
    last = json.loads((run / logs.STATUS).read_text())["eval"]["top1_error"]
    assert f"<td>top-1 error</td><td>{last:.2f} %</td><td>{last:.2f} %</td>" in text
    differ = text[text.index("<h2>Configs</h2>") :].partition("<details>")[0]
    assert "optimizer.momentum" in differ
    assert "0.8" in differ
    assert "optimizer.learning_rate" not in differ


def test_the_mistakes_are_those_of_the_net(page, run, images):
    """Against the net applied to one image after another."""
    net, wrong = pretrained.read(run), []
    apply = jax.jit(net.model.apply)
    files = sorted((images / "test").rglob("*.png"))
    for path in files:
        logits = np.asarray(apply(net.variables, net.preprocess(path)[None])[0])
        best, own = net.classes[int(logits.argmax())], path.parent.name
        if best != own:
            wrong.append((100 * reference.softmax(logits).max(), own, best))
    assert 0 < len(wrong) < len(files)
    text, right = page.read_text(), 100 - 100 * len(wrong) / len(files)
    assert text.count(f"{right:.2f} % of {len(files)} test images are classified correctly") == 2
    of_this_run = text[text.index("<h3>a run</h3>") : text.index("<h3>other</h3>")]
    shown = re.findall(r"<figcaption>(\w+), taken for (\w+): ([\d.]+) %", of_this_run)
    expected = sorted(wrong, reverse=True)[: report_mistakes.WORST]
    assert {(own, best) for own, best, _ in shown} <= {(own, best) for _, own, best in wrong}
    np.testing.assert_allclose([float(line[2]) for line in shown], [line[0] for line in expected], atol=0.06)
    assert of_this_run.count("data:image/jpeg") == len(expected)


def test_worst_mistakes_by_hand():
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]], np.float32)
    labels, bad = np.array([1, 1, 1, predictions.UNKNOWN, 0]), np.array([False, False, False, False, True])
    found = predictions.Predictions(tuple("abcde"), labels, probabilities, bad, ("x", "y"))
    assert report_mistakes.worst_mistakes(found) == [1, 0]


def test_a_run_says_when_it_was_and_how_long_it_took(run, tmp_path):
    """By event files: two spans with a pause between them, and an event that a crash cut short."""
    assert report_runs.timing(tmp_path) is None
    monday = 1_700_000_000.0
    for number, times in enumerate([(monday, monday + 20, monday + 90), (monday + 5000, monday + 5030)]):
        path = tmp_path / f"events.out.tfevents.{number}"
        with contextlib.closing(RecordWriter(open(path, "wb"))) as writer:
            for when in times:
                writer.write(Event(wall_time=when, file_version="brain.Event:2").SerializeToString())
    path.write_bytes(path.read_bytes() + path.read_bytes()[:30])
    begun, seconds = report_runs.timing(tmp_path)
    assert (begun.timestamp(), seconds) == (monday, 120)
    assert report_runs.timing(run)[1] > 0


def test_a_report_without_the_test_images_says_so(run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    config = json.loads((moved / configs.FILE_NAME).read_text())
    config["data"]["source"] = f"folder:{tmp_path / 'gone'}"
    (moved / configs.FILE_NAME).write_text(json.dumps(config))
    out = tmp_path / "report.html"
    assert report.main([str(moved), f"--out={out}"]) == 0
    assert "Not tested again, without its test images: data.source=folder:" in out.read_text()
    assert report.main([str(moved), f"--out={out}", "--skip_test"]) == 0
    assert "Not tested again" not in out.read_text() and "<h2>Filters</h2>" in out.read_text()


def test_what_is_no_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        report.main([str(tmp_path), f"--out={tmp_path / 'report.html'}"])


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
def test_a_report_in_a_real_browser_on_a_phone(page):
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.add_experimental_option(
        "mobileEmulation", {"deviceMetrics": {"width": 375, "height": 812, "pixelRatio": 2.0}}
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = CHROMIUM
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        browser.get(page.as_uri())
        assert browser.execute_script("return document.documentElement.clientWidth") == 375
        assert browser.execute_script("return document.documentElement.scrollWidth") == 375
        pictures = browser.find_elements("css selector", "img")
        assert len(pictures) > 9
        for one in pictures:
            assert one.get_property("naturalWidth") > 0
            assert one.size["width"] <= 375
        # A table that is wider than the screen scrolls by itself.
        widths = browser.execute_script(
            "return [...document.querySelectorAll('.wide')].map(e => [e.clientWidth, e.scrollWidth])"
        )
        assert all(own <= 375 for own, _ in widths)
        assert any(inside > own for own, inside in widths)
        words = browser.find_element("css selector", "body").text
        assert "a row is a true class" in words and "by the row's own runs" in words  # the two intervals
        (details,) = (e for e in browser.find_elements("css selector", "details") if "keys" in e.text)
        details.find_element("css selector", "summary").click()
        assert "optimizer.learning_rate" in details.text
        assert "What the rows change" in browser.find_element("css selector", "body").text
        assert browser.get_log("browser") == []
    finally:
        browser.quit()


# --- Records ----------------------------------------------------------------------------------------------


def test_the_pages_are_what_the_records_make_of_them():
    for path, text in index.pages(record.DIRECTORY).items():
        assert path.read_text() == text, f"{path}: python -m experiments.index"


def test_records_are_whole(tmp_path):
    """Each says what it must, its links lead somewhere, and no two have one number."""
    for path in record.find():
        values = record.read(path)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", values["date"])
        for name in re.findall(r"\]\(([^)#:]+)\)", record.page(path)):
            assert (path / name).exists(), name
    for name in ("001-a", "001-b"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="has that number, too"):
        record.find(tmp_path)


def test_a_record_that_lacks_something_says_what(tmp_path):
    path = tmp_path / "experiments" / "001-x"
    path.mkdir(parents=True)
    with pytest.raises(UserError, match=r"needs record\.json and verdict\.md"):
        record.read(path)
    values = dict.fromkeys(record.KEYS, "said")
    (path / record.VERDICT).write_text("So it is.\n")
    record.write_json(path / record.FILE, {**values, "reason": ""})
    with pytest.raises(UserError, match="lacks reason: why it was done"):
        record.read(path)
    record.write_json(path / record.FILE, {**values, "mood": "good"})
    with pytest.raises(UserError, match="mood is no key"):
        record.read(path)
    record.write_json(path / record.FILE, {**values, "versions": {"jax": "1"}})
    (tmp_path / "README.md").write_text(f"Before.\n{index.BEGIN}\nold\n{index.END}\nAfter.\n")
    arguments = [f"--directory={path.parent}"]
    with pytest.raises(UserError, match="differs from what the records say"):
        index.main([*arguments, "--check"])
    assert index.main(arguments) == 0
    assert index.main([*arguments, "--check"]) == 0
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("Before.\n") and readme.endswith("After.\n") and "old" not in readme
    assert "| 001 | [said](experiments/001-x/README.md) | said |" in readme

    newer = path.parent / "002-y"
    newer.mkdir()
    (newer / record.VERDICT).write_text("So it is now.\n")
    record.write_json(newer / record.FILE, {**values, "versions": {"jax": "1"}, record.SUPERSEDES: ["001"]})
    assert index.main(arguments) == 0
    rows = [line for line in (tmp_path / "README.md").read_text().splitlines() if "[said]" in line]
    assert [row[:7] for row in rows] == ["| 002 |", "| 001 |"] and "superseded by 002" in rows[1]
    assert "- **Supersedes**: 001" in (newer / record.PAGE).read_text()
