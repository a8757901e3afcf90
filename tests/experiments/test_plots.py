"""The plots, made again from the records' results: one width, a legend, text that a phone shows legibly."""

import json
import re

import pytest

from experiments import figure1, lrn_on_cifar, plots, pretraining, record, sweep_table, transfer_table

PHONE = 400  # pixels


def results(number):
    (path,) = record.DIRECTORY.glob(f"{number}-*/results.json")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def svgs(tmp_path_factory):
    """The text of each plot by name, as the experiments' own code draws it."""
    out = tmp_path_factory.mktemp("plots")
    for number in ("003", "004"):
        (out / number).mkdir()
        sweep_table.write(results(number), out / number)
    lrn_on_cifar.plot(out / "005.svg", results("005")["histories"])
    figure1.plot(out / "006.svg", results("006")["histories"])
    transfer_table.plot(out / "009.svg", results("009"))
    lines = [{"epoch": epoch, pretraining.ERROR: 10 - epoch} for epoch in (1, 2)]
    pretraining.plot(out / "001.svg", {arm: [lines] for arm in pretraining.ARMS}, 9.0)
    return {str(path.relative_to(out)): path.read_text() for path in out.rglob("*.svg")}


def test_plots_are_equally_wide_and_legible_on_a_phone(svgs):
    assert len(svgs) == 7  # 004 has no differences
    for name, text in svgs.items():
        width = float(re.search(r'<svg .*?width="([\d.]+)pt"', text, re.DOTALL)[1])
        assert width == 360, name
        sizes = {
            float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", text)
        }  # in the picture's points
        assert min(sizes) * PHONE / width > 8.5, (name, sizes)


def texts(svg):
    return re.findall(r"<text [^>]*>([^<]+)</text>", svg)


@pytest.mark.parametrize(
    ("name", "legend"),
    [
        ("001.svg", "the same net from scratch"),
        ("003/curves.svg", "mean of parent"),
        ("003/differences.svg", "here, 95 % interval"),
        ("004/curves.svg", "a run of the row"),  # a single panel once had no legend
        ("005.svg", "with LRN"),
        ("006.svg", "tanh"),
        ("009.svg", "always the commoner class"),
    ],
)
def test_each_plot_has_a_legend_and_says_what_its_axes_are(svgs, name, legend):
    found = texts(svgs[name])
    assert legend in found
    labels = {"epoch", "difference in error, points of %", "training photographs of each class"}
    assert labels & set(found)


def test_no_label_is_longer_than_its_axis_and_the_tests_are_shown(svgs):
    """The text compares test errors; there were only training errors, with a label as tall as the plot."""
    found = texts(svgs["005.svg"])
    assert "test error at the end, %" in found
    assert max(map(len, found)) <= 24  # 24 letters of 9 points are less than two of the plot's three inches


def test_each_claim_has_its_verdict_and_number_beyond_the_scale_too(svgs):
    found = texts(svgs["003/differences.svg"])
    words = {"holds", "reversed", "worse", "better", "not decided"}
    assert sum(text in words for text in found) == sum(" ± " in text for text in found) == 19
    assert any(abs(float(text.split(" ± ")[0])) > plots.FARTHEST for text in found if " ± " in text)
