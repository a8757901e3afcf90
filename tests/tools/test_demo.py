"""The demo page: its answers, and a session in a real browser."""

import dataclasses
import functools
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import __main__
from alexnet_jax.common.errors import UserError
from alexnet_jax.tools import demo, occlusion
from alexnet_jax.tools import explain as explaining
from alexnet_jax.weights import pretrained
from tests.data.test_decode import JPEG, png_header
from tests.tools.test_features import net, photos  # noqa: F401  (fixtures)

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def explain(net, photos):  # noqa: F811
    loaded = pretrained.read(net)
    return explaining.explainer(loaded, explaining.make_gallery(loaded, photos))


def test_an_answer_agrees_with_the_net(explain, net, photos):  # noqa: F811
    name = photos / "bright" / "07.png"
    answer = explain(name.read_bytes())
    loaded = pretrained.read(net)
    square = loaded.preprocess.stored(name)
    np.testing.assert_array_equal(answer.square, square)
    views = loaded.preprocess.views(square[None], 10)[:, 0]
    logits = jax.jit(loaded.model.apply)(loaded.variables, views)
    expected = np.asarray(jax.nn.softmax(logits)).mean(axis=0)
    names, probabilities = zip(*answer.classes, strict=True)
    assert list(names) == [loaded.classes[i] for i in np.argsort(-expected)]
    np.testing.assert_allclose(probabilities, np.sort(expected)[::-1], rtol=1e-4)
    # The picture is in the gallery, so it is its own nearest image, at distance 0.
    nearest, caption = answer.similar[0]
    np.testing.assert_array_equal(nearest, square)
    assert len(answer.similar) == explaining.SIMILAR and caption.startswith("07.png")
    assert float(caption.split()[-1]) < 0.01


def test_a_gallery_says_what_takes_its_time(net, photos, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(explaining, "GALLERY_IMAGES", 3)
    explaining.make_gallery(pretrained.read(net), photos)
    assert f"gallery: 3 images of {photos} (at most 3)\n" in capsys.readouterr().err


def test_two_classes_of_one_name_are_both_shown(net, photos):  # noqa: F811
    """ImageNet has two cranes, and a dictionary by name lost one."""
    loaded = dataclasses.replace(pretrained.read(net), classes=("crane", "bee", "crane", "dog", "elk"))
    answer = explaining.explainer(loaded, None)((photos / "dark" / "00.png").read_bytes())
    assert sorted(name for name, _ in answer.classes) == ["bee", "crane", "crane", "dog", "elk"]
    assert demo.bars(answer.classes).count("<span>crane</span>") == 2


@pytest.mark.parametrize(
    ("probability", "text"),
    [
        (0.0, "less than 0.1 %"),
        (0.0004, "less than 0.1 %"),
        (0.0006, "0.1 %"),
        (0.054, "5.4 %"),
        (0.9994, "99.9 %"),
        (1.0, "more than 99.9 %"),
    ],
)
def test_percentages_as_people_read_them(probability, text):
    assert explaining.percent(probability) == text


def test_the_heat_map_agrees_with_hiding_one_square_after_another(explain, net, photos):  # noqa: F811
    """Against the net applied to one image at a time, pixel by pixel from the squares' corners."""
    answer = explain((photos / "bright" / "07.png").read_bytes())
    loaded = pretrained.read(net)
    side, label = len(answer.square), loaded.classes.index(answer.classes[0][0])

    @jax.jit
    def probabilities(square):
        return jax.nn.softmax(loaded.model.apply(loaded.variables, loaded.preprocess.view(square[None])))[0]

    def probability(square):
        return float(probabilities(square)[label])

    whole, width = probability(answer.square), side // 4
    total, count, lowest = np.zeros((side, side)), np.zeros((side, side)), 1.0
    for top in np.round(np.arange(7) * (side - width) / 6).astype(int):
        for left in np.round(np.arange(7) * (side - width) / 6).astype(int):
            hidden = answer.square.copy()
            hidden[top : top + width, left : left + width] = np.round(loaded.preprocess.mean)
            part = probability(hidden)
            lowest = min(lowest, part)
            total[top : top + width, left : left + width] += whole - part
            count[top : top + width, left : left + width] += 1
    assert count.min() >= 1  # no pixel is left out
    picture, words = answer.find_heat()
    np.testing.assert_allclose(
        picture.astype(int), occlusion.overlay(answer.square, total / count).astype(int), atol=2
    )
    assert explaining.percent(whole) in words
    assert explaining.percent(lowest) in words or lowest >= whole


def test_the_heat_map_is_red_where_a_classifier_looks_and_blue_where_it_is_disturbed():
    """The "classifier" reads two corners, so the answer is known without any net."""
    image = np.full((64, 64, 3), 200, np.uint8)

    def probability(images):
        return 0.5 + (images[:, :8, :8].mean((1, 2, 3)) - images[:, -8:, -8:].mean((1, 2, 3))) / 1000

    heat, whole, lowest = occlusion.heat_map(probability, image, np.zeros(3))
    assert (whole, lowest) == (pytest.approx(0.5), pytest.approx(0.3))
    assert heat[0, 0] == pytest.approx(0.2) and heat[-1, -1] == pytest.approx(-0.2)
    assert heat[0, -1] == heat[-1, 0] == heat[32, 32] == 0
    picture = occlusion.overlay(image, heat).astype(int)
    red, blue, grey = picture[2, 2], picture[-3, -3], picture[32, 32]
    assert red[0] > red[2] + 50 and blue[2] > blue[0] + 50 and len(set(grey)) == 1


def test_maps_are_tiled_row_by_row_and_no_activation_is_black():
    maps = np.full((5, 5, 8), -1.0, np.float32)
    maps[2, 3, 5] = 4.0  # eight maps in two rows of four: the second map of the second row
    picture = explaining.maps_picture(maps)
    tile = picture.shape[1] // 4
    assert picture.shape == (2 * tile, 4 * tile)
    top, left = np.argwhere(picture == 255).min(axis=0)
    zoom = (tile - 2) // 5
    assert (top, left) == (tile + 2 * zoom, tile + 3 * zoom)
    assert (picture == 255).sum() == zoom**2
    assert set(np.unique(picture)) == {0, 96, 255}


def test_each_map_is_scaled_to_its_own_maximum():
    maps = np.zeros((4, 4, 2), np.float32)
    maps[0, 0], maps[1, 1] = (1e-3, 100.0), (1e-3 / 4, 25.0)
    picture = explaining.maps_picture(maps)
    first, second = np.split(picture, 2, axis=1)
    np.testing.assert_array_equal(first, second)
    assert sorted(set(np.unique(first))) == [0, 96, 128, 255]  # 128: half of white at a quarter, by the root


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png_header(20_000, 20_000), "more than 100 million pixels"),
        (png_header(10_001, 10_001), "more than 100 million pixels"),
        (SVG, "not a picture in a known format"),
        (b"hello", "not a picture in a known format"),
        (b"", "not a picture in a known format"),
        (JPEG[: len(JPEG) // 2], "damaged or cut short"),
    ],
)
@pytest.mark.filterwarnings("ignore:::PIL")
def test_an_unreadable_picture_is_a_one_line_error(explain, data, said):
    with pytest.raises(UserError, match=said):
        explain(data)


def test_weights_without_a_classifier_still_show_activations(net, photos, tmp_path):  # noqa: F811
    loaded = pretrained.read(net)
    convolutions = {k: v for k, v in loaded.variables["params"].items() if k.startswith("conv")}
    pretrained.save_pretrained(
        tmp_path / "convolutions.npz", loaded.model, {"params": convolutions}, loaded.preprocess
    )
    partial = pretrained.read(tmp_path / "convolutions.npz", partial=True)
    answer = explaining.explainer(partial, None)((photos / "dark" / "00.png").read_bytes())
    assert answer.classes == [] and answer.similar == [] and answer.find_heat is None
    x = loaded.preprocess.view(answer.square[None])
    seen = loaded.model.apply(loaded.variables, x, capture=("conv5",))[1]["conv5"]
    np.testing.assert_array_equal(answer.conv5, explaining.maps_picture(np.asarray(jnp.asarray(seen)[0])))


def wait_for(found, seconds=90.0):
    """Calls `found` until it returns something true, since the browser and the net take a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if result := found():
                return result
        except Exception:
            pass
        time.sleep(0.2)
    raise AssertionError(f"nothing within {seconds} seconds")


@pytest.fixture(scope="module")
def served(net, photos, tmp_path_factory):  # noqa: F811
    """The page served by its command: its address, and the file of what the command said."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [f"--weights={net}", f"--gallery={photos}", f"--port={port}"]
    file = tmp_path_factory.mktemp("served") / "said"
    with (
        open(file, "w") as said,
        subprocess.Popen(
            [sys.executable, "-m", "alexnet_jax", "demo", *arguments], stdout=said, stderr=said
        ) as process,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(functools.partial(urlopen, address, timeout=5))
            yield address, file
        finally:
            process.terminate()


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
def test_a_real_browser_shows_classes_maps_and_messages(served, photos, tmp_path):  # noqa: F811
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,1400"):
        options.add_argument(f"--{argument}")
    options.binary_location = CHROMIUM
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    def find(css: str):
        return browser.find_elements("css selector", css)

    def upload(path: pathlib.Path) -> None:
        wait_for(lambda: find("#upload input[type=file]"))[0].send_keys(str(path))

    try:
        browser.get(served[0])
        wait_for(lambda: len(find("#examples img")) == len(demo.EXAMPLES) == 4)
        find("#examples img")[1].click()
        wait_for(lambda: "cat" in find("#upload")[0].text)
        assert wait_for(lambda: find("#heat img")[0].get_property("naturalWidth")) == 3 * 72
        assert "(central patch)" in find("#classes")[0].text
        find("#upload button[aria-label=Clear]")[0].click()
        wait_for(lambda: not find("#conv5 img"))
        upload(photos / "bright" / "07.png")
        assert wait_for(lambda: find("#conv5 img")[0].get_property("naturalWidth")) > 100
        page = wait_for(lambda: (text := find("body")[0].text) and "07.png" in text and text)
        assert any(name in page for name in ("ant", "bee", "cat", "dog", "elk")) and "%" in page
        (tmp_path / "page.svg").write_bytes(SVG)
        find("#upload button[aria-label=Clear]")[0].click()
        wait_for(lambda: not find("#conv5 img"))
        upload(tmp_path / "page.svg")
        message = wait_for(lambda: find("#message")[0].text)
        assert message.startswith("page.svg: not a picture in a known format")
    finally:
        browser.quit()


def test_a_port_in_use_is_a_one_line_error(net, capsys):  # noqa: F811
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port={port}: cannot serve at 127\.0\.0\.1:{port} .*in use"):
            __main__.main(["demo", "--weights=not-even-read.pth", f"--port={port}"])
    assert "open http" not in capsys.readouterr().out
    with pytest.raises(UserError, match="--port=99999: cannot serve"):
        __main__.main(["demo", f"--weights={net}", "--port=99999"])


def test_the_page_opens_when_it_is_served_and_not_before(served):
    url, said = served
    wait_for(lambda: f"open {url} (Ctrl-C to stop)" in said.read_text(), 10)
    assert wait_for(functools.partial(urlopen, url, timeout=5)).status == 200


@pytest.fixture
def texts(monkeypatch):
    """`texts(loaded)`: what the page says, texts and labels of what is visible."""
    pytest.importorskip("gradio")
    monkeypatch.setattr(explaining, "explainer", lambda loaded, gallery: None)  # only called for a picture
    return _texts


def _texts(loaded):
    found = []
    for component in demo.page(loaded, None).get_config_file()["components"]:
        if component["props"].get("visible", True):
            found += [str(component["props"].get(key)) for key in ("value", "label")]
    return "\n".join(found)


def test_the_page_speaks_of_the_classes_there_are(net, texts):  # noqa: F811
    loaded = pretrained.read(net)
    few = dataclasses.replace(loaded, model=loaded.model.clone(num_classes=2))
    assert "names the most probable of its 2 classes" in texts(few)
    assert "all classes, ten views" in texts(few) and "five" not in texts(few)
    many = dataclasses.replace(loaded, model=loaded.model.clone(num_classes=1000))
    assert "of its 1,000 classes" in texts(many)
    assert "the five most probable of 1,000 classes, ten views" in texts(many)
    none = dataclasses.replace(many, missing=("fc6", "fc7", "fc8"))
    assert "has no classifier" in texts(none)
    assert "1,000" not in texts(none) and "ten views" not in texts(none)


def test_the_page_of_a_net_without_columns_does_not_speak_of_them(net, texts):  # noqa: F811
    loaded = pretrained.read(net)
    two, one = (dataclasses.replace(loaded, model=loaded.model.clone(columns=columns)) for columns in (2, 1))
    assert "the first column's maps, then the second's" in texts(two)
    assert "column" not in texts(one)
