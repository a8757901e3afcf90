"""Which files are images and which folders are classes: the same in every command, for generated families."""

import io
import json
import os
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from alexnet_jax import __main__
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import folders, inference, sources
from alexnet_jax.tools import ensemble, explain, predict
from tests.tools.test_features import net  # noqa: F401  (a fixture)


def picture(kind: str = "PNG", level: int = 90) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(level).integers(level, level + 60, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


PNG = picture()

# Files and folders that people's data sets have besides the images, and that are none.
STRAY = {
    ".ipynb_checkpoints/0-checkpoint.png": PNG,  # mmpretrain#507
    "__MACOSX/._0.png": b"\0\5\x16\7\0\2\0\0Mac OS X",  # vision#79
    "__MACOSX/0.png": PNG,
    "@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg": picture("JPEG"),
    "Thumbs.db": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + PNG,  # dreambooth#64
    "desktop.ini": b"[.ShellClassInfo]\r\nIconResource=C:\\x.ico\r\n",
    ".DS_Store": b"\0\0\0\1Bud1",
    "labels.csv": b"BMW/1.png,0\n",  # begins like a bitmap
    "a_boxes.txt": b"0.png\t0\t10\t20\t30\n",  # PFLlib#230
    "annotations.json": b"{}",
    "P5.txt": b"P5010001.JPG\n",  # begins like a portable greymap
    "model.h5": b"\x89HDF\r\n\x1a\n" + bytes(40),
    "sound.wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
    "clip.mp4": b"\0\0\0\x20ftypisom" + bytes(40),
    "photos.zip": b"PK\3\4" + PNG,
    "paper.pdf": b"%PDF-1.4\n",
    "empty": b"",
}
SYSTEM = (".ipynb_checkpoints", "__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini", ".DS_Store")


def write(path: pathlib.Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def clean(tmp_path) -> pathlib.Path:
    """Two classes, ant and bee, of three and two images, each with one to test."""
    root = tmp_path / "clean"
    for split, counts in (("train", (3, 2)), ("val", (1, 1))):
        for name, count in zip(("ant", "bee"), counts, strict=True):
            for i in range(count):
                write(root / split / name / f"{i}.png", picture(level=150 * (name == "bee") + 9 * i))
    return root


def of_source(root: pathlib.Path, split: str = "train") -> list[tuple[str, str]]:
    """Each image of the source `folder:root`, below the split's folder, with its class."""
    source = sources.open_source(f"folder:{root}", split)
    labels = source.read(np.arange(len(source)))[1]
    return [(source.name(i), source.class_ids[label]) for i, label in enumerate(labels)]


def of_find(folder: pathlib.Path) -> list[tuple[str, str]]:
    """Each image that predict, features, ensemble and demo find in a folder, with its class."""
    pairs = inference.find_with_classes([folder])
    assert inference.find([folder]) == [file for file, _ in pairs]
    return [(pathlib.Path(file).relative_to(folder).as_posix(), name) for file, name in pairs]


def test_clean_folders_say_nothing(clean, capsys):
    expected = [("ant/0.png", "ant"), ("ant/1.png", "ant"), ("ant/2.png", "ant")]
    expected += [("bee/0.png", "bee"), ("bee/1.png", "bee")]
    assert of_source(clean) == of_find(clean / "train") == expected
    assert capsys.readouterr().err == ""


NFC, NFD = "caf\u00e9", "cafe\u0301"  # one name: on macOS, a zip may hold the second


@pytest.mark.parametrize(("of_train", "of_test"), [(NFC, NFD), (NFD, NFC)])
def test_a_class_whose_name_has_another_unicode_form_in_the_test_folder(of_train, of_test, clean, capsys):
    write(clean / "train" / of_train / "7.png", PNG)
    write(clean / "val" / of_test / "8.png", PNG)
    assert ("ant/0.png", "ant") in of_source(clean) and (f"{of_train}/7.png", of_train) in of_source(clean)
    expected = [("ant/0.png", "ant"), ("bee/0.png", "bee"), (f"{of_test}/8.png", of_train)]
    assert of_source(clean, "test") == expected
    assert capsys.readouterr().err == ""


def test_two_folders_of_one_name_in_two_unicode_forms_are_two_classes(clean):
    """Linux allows both; images are counted once, in the class of their own form."""
    for name in (NFC, NFD):
        write(clean / "train" / name / "7.png", PNG)
    write(clean / "val" / NFC / "8.png", PNG)
    assert of_source(clean, "test")[2:] == [(f"{NFC}/8.png", NFC)]
    shutil.rmtree(clean / "train" / NFC)
    write(clean / "val" / NFD / "8.png", PNG)
    with pytest.raises(UserError, match=f"has {NFC}, which is missing from"):
        of_source(clean, "test")


@pytest.mark.parametrize("where", ["train", "train/ant", "both"])
@pytest.mark.parametrize("name", STRAY)
def test_a_stray_file_changes_nothing_and_is_counted(name, where, clean, capsys):
    before = of_source(clean)
    for place in ("train", "train/ant") if where == "both" else (where,):
        write(clean / place / name, STRAY[name])
    assert of_source(clean) == before
    said = capsys.readouterr().err
    assert of_find(clean / "train") == before
    for text in (said, capsys.readouterr().err):
        (line,) = text.splitlines()[:1]
        assert line.startswith(f"note: {clean / 'train'}: left out ")
        assert name.split("/")[0] in line
        assert ("as hidden or system files: " in line) == name.startswith(SYSTEM)


def test_all_stray_files_at_once_are_one_line_of_counts(clean, capsys):
    before = of_source(clean)
    for name, data in STRAY.items():
        for place in ("train", "train/ant", "train/bee"):
            write(clean / place / name, data)
    assert of_source(clean) == before
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"note: {clean / 'train'}: left out as no images: 20 (ant/P5.txt, ant/a_boxes.txt, "
        "ant/annotations.json, ...); left out as hidden or system files: 18 (.DS_Store, .ipynb_checkpoints, "
        "@eaDir, ...); left out beside the classes: 10 (P5.txt, a_boxes.txt, annotations.json, ...)"
    )


ENDINGS = sorted(folders.IMAGE_ENDINGS)


@pytest.mark.parametrize("ending", [*ENDINGS, *(e.upper() for e in ENDINGS), ".JpG", ".Jfif"])
def test_a_known_ending_is_an_image_everywhere(ending, clean):
    """jpegview#168: `.jfif` was trained on and not predicted."""
    write(clean / f"train/ant/x{ending}", b"perhaps damaged, and then named as a bad image")
    assert (f"ant/x{ending}", "ant") in of_source(clean)
    assert of_source(clean) == of_find(clean / "train")


def test_the_endings_have_those_of_pillow_and_torchvision():
    """All that Pillow opens as a picture, and torchvision's IMG_EXTENSIONS, were read before."""
    known = ".jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp .jfif .gif .jp2 .avif .tga .ico .psd .qoi .pcx"
    assert set(known.split()) <= folders.IMAGE_ENDINGS


KINDS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "DDS")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x", "x.", "x.image", "x.jpg.download", "0123abcd"])
def test_without_a_known_ending_the_content_decides(kind, name, clean):
    try:
        data = picture(kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {kind}")
    write(clean / "train/ant" / name, data)
    assert (f"ant/{name}", "ant") in of_source(clean)
    assert of_source(clean) == of_find(clean / "train")
    assert list(predict.standard_input(io.BufferedReader(io.BytesIO(data)))) == [data]


@pytest.mark.parametrize("first", ["P5010001.JPG", "BMW/1.png", "RIFF.jpg", "II.png"])
def test_a_pipe_of_paths_is_not_taken_for_an_image(first):
    stream = io.BufferedReader(io.BytesIO(f"{first}\nb.png\n".encode()))
    assert list(predict.standard_input(stream)) == [first, "b.png"]


class TestSubFolders:
    """Images in sub-folders belong to their class."""

    def test_a_batch_within_a_class(self, clean, capsys):
        """datasets#4015: features and probe made `batch2` a class, training passed it over."""
        write(clean / "train/ant/batch2/7.png", PNG)
        expected = [("ant/0.png", "ant"), ("ant/1.png", "ant"), ("ant/2.png", "ant")]
        expected += [("ant/batch2/7.png", "ant"), ("bee/0.png", "bee"), ("bee/1.png", "bee")]
        assert of_source(clean) == expected
        assert "in sub-folders, part of their class: 1 (ant/batch2/7.png)" in capsys.readouterr().err
        assert of_find(clean / "train") == expected

    def test_tiny_imagenet(self, tmp_path, capsys):
        """PFLlib#230: train/<wnid>/images/*.JPEG beside <wnid>_boxes.txt."""
        root = tmp_path / "tiny-imagenet-200"
        for wnid in ("n01443537", "n01629819"):
            write(root / f"train/{wnid}/{wnid}_boxes.txt", b"0.JPEG\t0\t0\t9\t9\n")
            for i in range(2):
                write(root / f"train/{wnid}/images/{wnid}_{i}.JPEG", picture("JPEG"))
        expected = [
            (f"{wnid}/images/{wnid}_{i}.JPEG", wnid) for wnid in ("n01443537", "n01629819") for i in range(2)
        ]
        assert (
            of_source(root) == of_find(root / "train") == of_find(root)
            or of_find(root)[0][1] == expected[0][1]
        )
        assert of_source(root) == expected
        assert [name for _, name in of_find(root)] == [name for _, name in expected]
        said = capsys.readouterr().err
        assert "left out as no images: 2 (n01443537/n01443537_boxes.txt, n01629819/" in said
        assert "in sub-folders, part of their class: 4 (" in said

    @pytest.mark.parametrize(("given", "classes"), [
        ("", {"ant", "bee"}),  # the folder of train and val
        ("train", {"ant", "bee"}),
        ("train/ant", {"ant"}),  # has images of its own: one class, with its sub-folders
        ("train/../train/ant", {"ant"}),
        ("train/ant/0.png", {"ant"}),
    ])  # fmt: skip
    def test_the_class_by_the_folder_given(self, given, classes, clean):
        write(clean / "train/ant/more/9.png", PNG)
        assert {name for _, name in inference.find_with_classes([clean / given])} == classes

    def test_a_class_called_as_a_split(self, clean):
        write(clean / "train/training/0.png", PNG)
        assert {name for _, name in of_find(clean / "train")} == {"ant", "bee", "training"}
        assert of_source(clean) == of_find(clean / "train")

    def test_links_are_followed_but_not_in_circles(self, clean):
        (clean / "train/ant/up").symlink_to(clean / "train")
        (clean / "train/ant/self").symlink_to("self")
        (clean / "train/ant/bees").symlink_to(clean / "train/bee")
        (clean / "train/bee/ants").symlink_to(clean / "train/ant")
        (clean / "train/gone.png").symlink_to("nowhere.png")
        found = of_source(clean)
        assert ("ant/bees/0.png", "ant") in found and ("bee/ants/0.png", "bee") in found
        assert not any("up/" in name or "self" in name or "gone" in name for name, _ in found)
        assert len(found) == 3 + 2 + 2 + 3
        assert of_find(clean / "train") == found


def test_every_command_sees_the_images_of_training(clean, net, tmp_path, capsys):  # noqa: F811
    """datasets#4015, mmpretrain#507, vision#79: one folder with all strays, through each command."""
    for name, data in STRAY.items():
        for place in ("train", "train/ant", "train/bee"):
            write(clean / place / name, data)
    write(clean / "train/ant/batch2/7.JFIF", picture("JPEG"))
    names = [str(clean / "train" / name) for name, _ in of_source(clean)]
    assert len(names) == 6
    folder = str(clean / "train")
    capsys.readouterr()

    assert __main__.main(["predict", folder, f"--weights={net}", "--json"]) == 0
    said = capsys.readouterr()
    *answers, summary = map(json.loads, said.out.splitlines())
    assert [answer["file"] for answer in answers] == names
    assert sum(row["images"] for row in summary["classes"]) == 6
    assert said.err.count("note: ") == 1 and "bad image" not in said.err

    out = tmp_path / "f.npz"
    assert __main__.main(["features", folder, f"--weights={net}", "--layer=pool5", f"--out={out}"]) == 0
    with np.load(out) as arrays:
        assert arrays["files"].tolist() == names
        assert arrays["classes"].tolist() == ["ant"] * 4 + ["bee"] * 2
    capsys.readouterr()
    assert __main__.main(["probe", str(out), str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == 2
    assert __main__.main(["nearest", str(out), "--json", f"--figure={tmp_path / 'near.png'}"]) == 0
    assert [json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()] == names

    gallery = explain.make_gallery(predict.pretrained.read(net), clean / "train")
    assert gallery is not None and sorted(gallery.names) == sorted(os.path.basename(n) for n in names)
    unlabelled = ensemble.unlabelled([folder], ("ant", "bee"))
    assert sorted(unlabelled.name(i) for i in range(len(unlabelled))) == sorted(names)

    capsys.readouterr()
    assert __main__.main(["prepare", f"--source=folder:{clean}", f"--out={tmp_path / 'p'}"]) == 0
    said = capsys.readouterr()
    assert "6 train images in 2 classes" in said.out
    assert said.err.count("note: ") == 1 and "in sub-folders, part of their class: 1" in said.err


def test_features_written_before_classes_were_stored_can_be_probed(tmp_path, capsys):
    path = tmp_path / "old.npz"
    files = [f"photos/{name}/{i}.png" for name in ("ant", "bee") for i in range(4)]
    np.savez(path, files=files, features=np.eye(8, dtype=np.float32), layer="pool5")
    assert __main__.main(["probe", str(path), str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == 2


def test_one_class_cannot_be_probed(tmp_path, clean, net):  # noqa: F811
    out = tmp_path / "f.npz"
    __main__.main(["features", str(clean / "train/ant"), f"--weights={net}", "--layer=pool5", f"--out={out}"])
    with pytest.raises(UserError, match="only one class, ant; give features a folder with one folder per cl"):
        __main__.main(["probe", str(out), str(out)])


def test_a_file_where_the_test_set_should_have_a_class(clean):
    shutil.rmtree(clean / "val/ant")
    (clean / "val/ant").write_bytes(b"")
    assert of_source(clean, "test") == [("bee/0.png", "bee")]


def test_no_image_at_all(clean):
    for path in clean.glob("train/*/*.png"):
        path.rename(path.with_suffix(".txt"))
        path.with_suffix(".txt").write_text("no image")
    with pytest.raises(UserError, match=re.escape(f"no images in the class folders of {clean / 'train'}")):
        of_source(clean)
    with pytest.raises(UserError, match="no images there"):
        of_find(clean / "train")


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (["ant/1.png", "bee/2.png"], ["ant", "bee"]),
        (["train/ant/1.png", "val/bee/2.png"], ["ant", "bee"]),
        (["1.png", "2.png"], ["photos", "photos"]),
        (["1.png", "batch2/2.png"], ["photos", "photos"]),  # the second part of a class
        (["ant/1.png", "bee/2.png", "overview.png"], ["ant", "bee", folders.NO_CLASS]),
    ],
)
def test_the_class_of_each_image(tmp_path, images, expected):
    """An image beside the class folders once made all of them one class."""
    assert folders.classes_of(tmp_path / "photos", images) == expected


# --- Layouts that need one more step ----------------------------------------------------------------------


def test_a_folder_in_a_folder_of_the_same_name_is_named(clean, tmp_path):
    """As archives unpacked into a folder of their name."""
    outer = tmp_path / "outer"
    outer.mkdir()
    clean.rename(outer / "nest")
    with pytest.raises(UserError, match=f"it has nest; did you mean {outer / 'nest'}[?]$"):
        folders.open_folder(outer, "train")


def test_tiny_imagenet_s_val_says_how_to_sort_it_and_works_then(tmp_path):
    root = tmp_path / "tiny imagenet-200"
    classes, rows = ("n01443537", "n02124075"), []
    for label, class_id in enumerate(classes):
        write(root / "train" / class_id / "images" / f"{class_id}_0.JPEG", picture("JPEG"))
        write(root / "train" / class_id / f"{class_id}_boxes.txt", b"0.JPEG\t0\t0\t9\t9\n")
        for number in range(2):
            rows.append((f"val_{2 * number + 1 - label}.JPEG", class_id))
            write(root / "val/images" / rows[-1][0], picture("JPEG"))
    lines = [f"{name}\t{class_id}\t0\t32\t44\t62\n" for name, class_id in rows]
    write(root / "val/val_annotations.txt", "".join(lines).encode())
    with pytest.raises(UserError, match="has no class folders; make them by: cd ") as caught:
        folders.open_folder(root, "test")
    subprocess.run(str(caught.value).partition("make them by: ")[2], shell=True, check=True)
    source = folders.open_folder(root, "test")
    found = [(source.paths[i].split("/")[-1], classes[label]) for i, label in enumerate(source.labels)]
    assert sorted(found) == sorted(rows)
