"""Decoding: a catalogue of all sorts of images, and agreement with Pillow's plain resize and crop."""

import io
import itertools
import os
import pathlib
import random
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import config as configs
from alexnet_jax import train
from alexnet_jax.data import decode, pipeline, sources
from alexnet_jax.run import logs
from configs import default
from tests import peak, tiny

# pytest undoes the filter that decode.py sets.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")

SIZE = 32
BAD = None  # the outcome: a placeholder of weight 0


def photograph(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def plain(image: Image.Image, size: int = SIZE) -> np.ndarray:
    """The paper's description in Pillow: shorter side to `size`, antialiased, then the central square."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def sixteen_bits(image: Image.Image) -> bytes:
    grey = np.asarray(image.convert("L")).astype(np.uint16)
    return encode(Image.fromarray(grey * 257), "PNG")


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its pixel data does not have."""
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    body = zlib.compress(b"\0" * 100)
    parts = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4) for name, data in parts
    )


PHOTO = photograph()
JPEG = encode(PHOTO, quality=95)
ROTATED = Image.Exif()
ROTATED[0x0112] = 6
FRAMES = [photograph(seed=seed) for seed in (0, 1, 2)]
GREY = PHOTO.convert("L").convert("RGB")
HALF_CLEAR = PHOTO.convert("RGBA")
HALF_CLEAR.putalpha(Image.linear_gradient("L").resize(PHOTO.size))

# name: (bytes, expected image or BAD, mean difference allowed in grey levels)
CATALOGUE: dict[str, tuple[bytes, Image.Image | None, float]] = {
    "jpeg": (JPEG, PHOTO, 1),
    "progressive jpeg": (encode(PHOTO, quality=95, progressive=True), PHOTO, 1),
    "jpeg without chroma subsampling": (encode(PHOTO, quality=95, subsampling=0), PHOTO, 1),
    "grey jpeg": (encode(PHOTO.convert("L"), quality=95), GREY, 1),
    "cmyk jpeg": (encode(PHOTO.convert("CMYK"), quality=95), PHOTO, 2),
    "jpeg rotated by exif, left as stored": (encode(PHOTO, quality=95, exif=ROTATED), PHOTO, 1),
    "jpeg with broken exif": (encode(PHOTO, quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), PHOTO, 1),
    "jpeg with a broken colour profile": (encode(PHOTO, quality=95, icc_profile=b"nonsense"), PHOTO, 1),
    "jpeg with a comment": (encode(PHOTO, quality=95, comment="x" * 60_000), PHOTO, 1),
    "jpeg with bytes after its end": (JPEG + b"\0" * 5000, PHOTO, 1),
    "mpo, the jpeg of stereo cameras": (
        encode(PHOTO, "MPO", save_all=True, append_images=FRAMES[1:], quality=95),
        PHOTO,
        1,
    ),
    "png": (encode(PHOTO, "PNG"), PHOTO, 0.3),
    "interlaced palette gif": (encode(PHOTO.quantize(256), "GIF", interlace=1), PHOTO, 5),
    "animated gif, its first frame": (
        encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
        FRAMES[0],
        5,
    ),
    "webp": (encode(PHOTO, "WEBP", quality=95), PHOTO, 2),
    "lossless webp": (encode(PHOTO, "WEBP", lossless=True), PHOTO, 0.3),
    "animated webp, its first frame": (
        encode(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True),
        FRAMES[0],
        0.3,
    ),
    "bmp": (encode(PHOTO, "BMP"), PHOTO, 0.3),
    "tiff": (encode(PHOTO, "TIFF"), PHOTO, 0.3),
    "portable pixmap": (encode(PHOTO, "PPM"), PHOTO, 0.3),
    "grey png": (encode(PHOTO.convert("L"), "PNG"), GREY, 0.3),
    "16-bit grey png": (sixteen_bits(PHOTO), GREY, 0.3),
    "16-bit grey tiff": (
        encode(Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257), "TIFF"),
        GREY,
        0.3,
    ),
    "one-bit png": (encode(PHOTO.convert("1"), "PNG"), PHOTO.convert("1"), 0.3),
    "palette png": (encode(PHOTO.quantize(256), "PNG"), PHOTO, 5),
    "palette png with transparency": (
        encode(PHOTO.quantize(255), "PNG", transparency=b"\x80" * 255),
        PHOTO,
        5,
    ),
    "transparent png, its transparency dropped": (encode(HALF_CLEAR, "PNG"), PHOTO, 0.3),
    "grey png with transparency": (encode(PHOTO.convert("LA"), "PNG"), GREY, 0.3),
    "transparent webp": (encode(HALF_CLEAR, "WEBP", lossless=True, exact=True), PHOTO, 0.3),
    "one pixel": (
        encode(Image.new("RGB", (1, 1), (9, 99, 199)), "PNG"),
        Image.new("RGB", (1, 1), (9, 99, 199)),
        0,
    ),
    "one pixel high": (encode(PHOTO.resize((300, 1)), "PNG"), PHOTO.resize((300, 1)), 0.5),
    "one pixel wide": (encode(PHOTO.resize((1, 300)), "PNG"), PHOTO.resize((1, 300)), 0.5),
    "exactly the target size": (encode(PHOTO.resize((SIZE, SIZE)), "PNG"), PHOTO.resize((SIZE, SIZE)), 0),
    "one pixel larger": (encode(PHOTO.resize((33, 33)), "PNG"), PHOTO.resize((33, 33)), 0.3),
    "smaller than the target size": (encode(PHOTO.resize((9, 7)), "PNG"), PHOTO.resize((9, 7)), 0.5),
    "much larger, decoded at a fraction": (
        encode(photograph(1300, 700), quality=95),
        photograph(1300, 700),
        1,
    ),
    "very long and thin": (encode(photograph(4000, 40), quality=95), photograph(4000, 40), 1),
    "jpeg cut in half": (JPEG[: len(JPEG) // 2], BAD, 0),
    "jpeg without its last bytes": (JPEG[:-20], BAD, 0),
    "jpeg header alone": (JPEG[:200], BAD, 0),
    "progressive jpeg cut in half": (encode(PHOTO, progressive=True)[:900], BAD, 0),
    "png cut in half": (encode(PHOTO, "PNG")[:2000], BAD, 0),
    "gif cut in half": (encode(PHOTO, "GIF")[:1000], BAD, 0),
    "webp cut in half": (encode(PHOTO, "WEBP")[:300], BAD, 0),
    "png with a wrong checksum": (
        encode(PHOTO, "PNG")[:60] + b"\xff" * 8 + encode(PHOTO, "PNG")[68:],
        BAD,
        0,
    ),
    "zero bytes": (b"", BAD, 0),
    "one byte": (b"\xff", BAD, 0),
    "zeros": (b"\0" * 10_000, BAD, 0),
    "jpeg's first bytes, then noise": (b"\xff\xd8\xff\xe0" + bytes(range(256)) * 20, BAD, 0),
    "text": (b"This photo is no longer available.\n" * 50, BAD, 0),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", BAD, 0),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', BAD, 0),
    "a zip archive": (b"PK\x03\x04" + bytes(500), BAD, 0),
    "a claim of 20,000 x 20,000 pixels": (png_header(20_000, 20_000), BAD, 0),
    "a claim of four thousand million pixels a side": (png_header(2**31 - 1, 2**31 - 1), BAD, 0),
    "a claim of no pixels": (png_header(0, 0), BAD, 0),
}


def test_the_catalogue_is_long_enough():
    assert len(CATALOGUE) >= 40


@pytest.mark.parametrize("name", CATALOGUE)
def test_catalogue(name, tmp_path):
    data, image, tolerance = CATALOGUE[name]
    # Through the complete pipeline, with a suffix of the wrong format, between two good images.
    for folder, content in {"a/0.JPEG": JPEG, "a/1.JPEG": data, "b/0.JPEG": JPEG}.items():
        path = tmp_path / "train" / folder
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    source = sources.open_source(f"folder:{tmp_path}", "train")
    (batch,) = pipeline.eval_batches(source, batch_size=3, resize_size=SIZE)
    assert batch["label"].tolist() == [0, 0, 1]
    np.testing.assert_array_equal(batch["image"][0], batch["image"][2])
    if image is BAD:
        assert batch["weight"].tolist() == [1, 0, 1] and not batch["image"][1].any()
        assert source.name(int(batch["index"][1])) == "a/1.JPEG"
    else:
        assert batch["weight"].tolist() == [1, 1, 1]
        difference = batch["image"][1].astype(float) - plain(image)
        assert abs(difference).mean() <= tolerance


DECODE = """
import pathlib, sys
from PIL import JpegImagePlugin
from alexnet_jax.data import decode
from tests import peak
data = pathlib.Path(sys.argv[1]).read_bytes()
{change}
before = peak.kilobytes()
square = decode.decode_square(data, 256)
print(square is None, peak.kilobytes() - before)
"""
WITHOUT_A_LIMIT = "decode.MAX_PIXELS = 10**9"
WITHOUT_DRAFT = "JpegImagePlugin.JpegImageFile.draft = lambda *arguments: None"


def decoded(path: pathlib.Path, change: str = "") -> tuple[bool, int]:
    """Whether a new process rejects an image file, and the kilobytes of memory it needs."""
    bad, kilobytes = peak.said_by(DECODE.format(change=change), path)
    return bad == "True", int(kilobytes)


@peak.needed
@pytest.mark.parametrize(("name", "side"), [("huge.jpg", 20_000), ("huge.png", 10_100)])
def test_a_huge_image_takes_bounded_memory(name, side, tmp_path):
    Image.new("L", (side, side), 128).save(tmp_path / name, quality=10)
    bad, kilobytes = decoded(tmp_path / name)
    assert bad and kilobytes < 50_000
    if side < 15_000:  # Pillow itself refuses a larger one
        bad, kilobytes = decoded(tmp_path / name, WITHOUT_A_LIMIT)
        assert not bad and kilobytes > 50_000


@peak.needed
def test_the_largest_photograph_takes_bounded_memory(tmp_path):
    path = tmp_path / "large.jpg"
    path.write_bytes(encode(photograph(9_900, 9_900), quality=50))
    # Decoded at an eighth of its sides it takes 6 MB; at full size four bytes a pixel.
    bad, kilobytes = decoded(path)
    assert not bad and kilobytes < 100_000
    bad, kilobytes = decoded(path, WITHOUT_DRAFT)
    assert not bad and kilobytes > 100_000


def test_pillow_decodes_large_images():
    for size in [(300, 60_000), (1_100, 1_030)]:
        data = encode(photograph(*size), quality=50)
        assert decode._decode_jpeg(data, 256) is None
        assert decode.decode_square(data, 256) is not None


@pytest.mark.parametrize("simd", [decode.simd, None], ids=["vector instructions", "Pillow alone"])
@pytest.mark.parametrize(
    ("width", "height"), [(500, 375), (375, 500), (500, 334), (333, 500), (257, 256), (640, 480)]
)
def test_agrees_with_plain_resize_and_crop(width, height, simd, monkeypatch):
    monkeypatch.setattr(decode, "simd", simd)
    photo = photograph(width, height)
    ours = decode.decode_square(encode(photo, "PNG"), 256)
    assert ours is not None
    assert abs(ours.astype(float) - plain(photo, 256)).mean() < 0.3  # the order of rounding


def both_decoders(data: bytes, size: int, monkeypatch) -> list[np.ndarray | None]:
    """Decoded with simplejpeg if it accepts the image, and with Pillow only."""
    ways = [decode.decode_square(data, size)]
    with monkeypatch.context() as without:
        without.setattr(decode, "simplejpeg", None)
        return [*ways, decode.decode_square(data, size)]


needs_simplejpeg = pytest.mark.skipif(decode.simplejpeg is None, reason="simplejpeg is not installed")


@needs_simplejpeg
@pytest.mark.parametrize("simd", [decode.simd, None], ids=["vector instructions", "Pillow alone"])
@pytest.mark.parametrize("options", [
    {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}, {"subsampling": "4:2:0"}, {"quality": 30},
    {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}, {"keep_rgb": True},
    {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\1\3\0\1\0\0\0\x06\0\0\0\0\0\0\0"},
], ids=lambda options: next(iter(options)))  # fmt: skip
def test_both_decoders_give_the_same_pixels(options, simd, monkeypatch):
    monkeypatch.setattr(decode, "simd", simd)
    sizes = [(90, 60), (61, 97), (32, 32), (33, 32), (128, 131), (7, 300), (1, 1)]
    for (width, height), mode in itertools.product(sizes, ("RGB", "L")):
        data = encode(photograph(width, height).convert(mode), **options)
        by_pillow = min(width, height) >= 4 * SIZE or (mode == "RGB" and "keep_rgb" in options)
        assert (decode._decode_jpeg(data, SIZE) is None) == by_pillow
        fast, plain = both_decoders(data, SIZE, monkeypatch)
        assert fast is not None and plain is not None
        np.testing.assert_array_equal(fast, plain, err_msg=f"{width} x {height}, {mode}")


@needs_simplejpeg
def test_both_decoders_have_the_same_bad_images(monkeypatch):
    """Truncated at any byte, and with any byte changed."""
    data = encode(photograph(), quality=80)
    rng = np.random.default_rng(0)
    broken = [data[:n] for n in range(0, len(data), 17)]
    for place in rng.integers(0, len(data), 400):
        broken.append(data[:place] + bytes([rng.integers(256)]) + data[place + 1 :])
    outcomes = set()
    for one in broken:
        fast, plain = both_decoders(one, SIZE, monkeypatch)
        assert (fast is None) == (plain is None)
        outcomes.add(fast is None)
        if fast is not None and plain is not None:
            np.testing.assert_array_equal(fast, plain)
    assert outcomes == {True, False}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "MPO", "DDS", "SGI"])
def test_damaged_files_are_bad_images_not_errors(kind):
    """Cut, changed, shortened and lengthened at random places, often in the header."""
    original, rng = encode(photograph(40, 30), kind), random.Random(0)
    bad = 0
    for _ in range(300):
        data = bytearray(original)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.choice([1, 1, 4, 16]) if data else 0):
            place = rng.randrange(max(1, min(len(data), rng.choice([64, 400, len(data)]))))
            data[place : place + rng.choice([0, 1, 1, 1, 5])] = bytes(
                [rng.choice([0, 255, rng.randrange(256)])]
            )
        bad += decode.decode_square(bytes(data), SIZE) is None
    assert 0 < bad < 300


@pytest.mark.parametrize("error", [MemoryError, ImportError, AttributeError, ValueError, OSError])
def test_errors_outside_the_decoders_are_raised(error):
    def square(image: Image.Image) -> np.ndarray:
        raise error("not the data's fault")

    with pytest.raises(error, match="not the data's fault"):
        decode.decode(JPEG, square)


def test_an_import_held_open_by_etils_is_not_a_bad_image():
    """While etils imports lazily in one thread, relative imports in Pillow's functions fail in all others."""
    lazy_imports = pytest.importorskip("etils.epy").lazy_imports
    opened, decoded = threading.Event(), threading.Event()

    def hold() -> None:
        with lazy_imports():
            opened.set()
            decoded.wait(60)

    decode.set_up()
    data = encode(PHOTO, "BMP")
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold)
        assert opened.wait(60)
        try:
            with pytest.raises(ValueError, match="Relative import statements not supported"):
                decode.decode_square(data, SIZE)
        finally:
            decoded.set()
        held.result()
    assert decode.decode_square(data, SIZE) is not None


def test_any_size_can_be_cropped():
    # 1313 x 58 at 224 gives a box that is 7e-15 pixels too high.
    for width, height in [(1313, 58), *((w, 7 * w % 501 + 1) for w in range(1, 1400, 3))]:
        square = decode.central_square(Image.new("RGB", (width, height), (9, 99, 199)), 224)
        assert (square == (9, 99, 199)).all(), (width, height)


def test_agrees_with_pillow_on_photographs(real_data, monkeypatch):
    paths = sorted((real_data / "imagenet_samples").rglob("*.JPEG"))
    differences = []
    for path in paths:
        ours = decode.decode_square(path.read_bytes(), 256)
        assert ours is not None
        fast, by_pillow = both_decoders(path.read_bytes(), 256, monkeypatch)
        np.testing.assert_array_equal(fast, by_pillow)
        differences.append(abs(ours.astype(float) - plain(Image.open(path), 256)).mean())
    assert len(paths) == 200
    assert np.mean(differences) < 0.2 and np.max(differences) < 1


class TestFolders:
    """Unusual files in a folder of images."""

    @pytest.fixture
    def root(self, tmp_path) -> pathlib.Path:
        for name in ("a/0.jpg", "b/0.jpg"):
            path = tmp_path / "train" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(JPEG)
        return tmp_path

    def names(self, root: pathlib.Path) -> list[str]:
        source = sources.open_source(f"folder:{root}", "train")
        return [source.name(i) for i in range(len(source))]

    def weights(self, root: pathlib.Path) -> list[float]:
        source = sources.open_source(f"folder:{root}", "train")
        (batch,) = pipeline.eval_batches(source, batch_size=len(source), resize_size=SIZE)
        return batch["weight"].tolist()

    def test_hidden_files_and_folders_are_skipped(self, root):
        for name in ("train/.DS_Store", "train/a/.hidden.jpg", "train/.git/x"):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(JPEG)
        assert self.names(root) == ["a/0.jpg", "b/0.jpg"]

    def test_an_empty_folder_named_as_an_image_is_skipped(self, root):
        (root / "train/a/more.jpg").mkdir()
        assert self.names(root) == ["a/0.jpg", "b/0.jpg"]

    def test_a_file_among_the_classes_is_skipped(self, root):
        (root / "train/README.txt").write_text("classes")
        assert self.names(root) == ["a/0.jpg", "b/0.jpg"]

    def test_text_among_the_images_is_left_out(self, root):
        (root / "train/a/README.txt").write_text("images")
        assert self.weights(root) == [1, 1]

    def test_text_named_as_an_image_is_a_bad_image(self, root):
        (root / "train/a/README.jpg").write_text("images")
        assert self.weights(root) == [1, 0, 1]

    def test_symbolic_links_are_followed(self, root):
        (root / "train/a/1.jpg").symlink_to(root / "train/b/0.jpg")
        (root / "train/c").symlink_to(root / "train/b")
        assert self.names(root) == ["a/0.jpg", "a/1.jpg", "b/0.jpg", "c/0.jpg"]
        assert self.weights(root) == [1, 1, 1, 1]

    def test_a_broken_symbolic_link_is_skipped(self, root):
        (root / "train/a/1.jpg").symlink_to(root / "gone.jpg")
        assert self.names(root) == ["a/0.jpg", "b/0.jpg"]

    @pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not allow such names")
    def test_a_name_that_is_not_utf8(self, root):
        (root / "train/a" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(JPEG)
        assert self.names(root) == ["a/0.jpg", "a/caf\\xe9.jpg", "b/0.jpg"]
        assert self.weights(root) == [1, 1, 1]

    @pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not allow such names")
    def test_a_class_whose_name_is_not_utf8(self, root):
        (root / "train" / os.fsdecode(b"caf\xe9")).mkdir()
        (root / "train" / os.fsdecode(b"caf\xe9") / "0.jpg").write_bytes(JPEG)
        assert sources.open_source(f"folder:{root}", "train").class_names == ("a", "b", "caf\\xe9")
        assert self.weights(root) == [1, 1, 1]

    def test_very_long_and_odd_names(self, root):
        odd = [
            "x" * 251 + ".jpg",
            "new\nline.jpg",
            "sp ace.jpg",
            "quo\"te'.jpg",
            "日本.jpg",
            "-rf.jpg",
            "no suffix",
        ]
        for name in odd:
            (root / "train/a" / name).write_bytes(JPEG)
        assert set(self.names(root)) == {
            "b/0.jpg",
            "a/0.jpg",
            *("a/" + name.replace("\n", "\\n") for name in odd),
        }
        assert self.weights(root) == [1] * 9

    def test_an_empty_class_keeps_its_label(self, root):
        (root / "train/aa").mkdir()
        source = sources.open_source(f"folder:{root}", "train")
        assert source.class_names == ("a", "aa", "b") and source.read(np.arange(2))[1].tolist() == [0, 2]
        assert source.description.endswith("in 3 classes (1 of them empty)")

    def test_an_unreadable_file_is_a_bad_image(self, root, monkeypatch):
        # Nobody can open a link to itself, whereas root, who may run the tests, ignores permissions.
        source = sources.open_source(f"folder:{root}", "train")
        (root / "train/a/0.jpg").unlink()
        (root / "train/a/0.jpg").symlink_to("0.jpg")
        assert source.read(np.arange(2))[0] == [b"", JPEG]


NOT_FOUND = "ants/imageNotFound.gif"  # a placeholder picture in the right format


@pytest.fixture
def hymenoptera(real_data) -> pathlib.Path:
    return real_data / "hymenoptera"


def bad_names(root: pathlib.Path, split: str) -> list[str]:
    source = sources.open_source(f"folder:{root}", split)
    batches = list(pipeline.eval_batches(source, batch_size=64, resize_size=64))
    index, weight = (np.concatenate([batch[key] for batch in batches]) for key in ("index", "weight"))
    assert sorted(index[index >= 0]) == list(range(len(source)))
    return [source.name(i) for i in index[(index >= 0) & (weight == 0)].tolist()]


@pytest.fixture
def with_a_bad_image(hymenoptera, tmp_path) -> pathlib.Path:
    """Links to the photographs, and one truncated image."""
    root = tmp_path / "hymenoptera"
    for split, theirs in (("train", "train"), ("test", "val")):
        for path in (hymenoptera / theirs).glob("*/*"):
            link = root / split / path.parent.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    bad = root / "train" / NOT_FOUND
    data = bad.read_bytes()
    bad.unlink()
    bad.write_bytes(data[: len(data) // 2])
    return root


def test_hymenoptera_unchanged(hymenoptera):
    for split, count in (("train", 245), ("test", 153)):
        source = sources.open_source(f"folder:{hymenoptera}", split)
        assert len(source) == count and source.class_names == ("ants", "bees")
        assert bad_names(hymenoptera, split) == []
        assert (NOT_FOUND in [source.name(i) for i in range(count)]) == (split == "train")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "bad"), [("hymenoptera", []), ("with_a_bad_image", [NOT_FOUND])], ids=["as it is", "cut off"]
)
def test_a_run_counts_the_bad_images_of_hymenoptera(folder, bad, request, tmp_path, capsys):
    root = request.getfixturevalue(folder)
    assert bad_names(root, "train") == bad
    keys = {"data.source": f"folder:{root}", "mesh.data": 1, "run.total_steps": 2, "run.log_every_steps": 1}
    # A batch is an epoch: each step sees each image once.
    keys |= {**tiny.NET, "data.batch_size": 245}
    config = configs.resolve(default.get_config(), keys)
    assert train.train(config, tmp_path / "run") == "done"
    lines = [line for line in logs.read_metrics(tmp_path / "run") if "train/bad_images" in line]
    assert [line["train/bad_images"] for line in lines] == [len(bad), 2 * len(bad)]
    assert capsys.readouterr().err.count("bad image, left out") == len(bad)
