"""ImageNet from every kind of source: the same labels, names and pixels."""

import io
import json
import os
import pathlib
import shutil
import tarfile
import tempfile

import numpy as np
import pytest
from PIL import Image

from alexnet_jax.common.errors import UserError
from alexnet_jax.data import pipeline, prepare, records, sources
from tests import imagenet_forms

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def official() -> tuple[list[str], list[str]]:
    """Synsets, and the official classes of the first validation images, which TFDS contains."""
    import tensorflow_datasets.datasets.imagenet2012 as module

    lists = pathlib.Path(module.__path__[0])
    truth = (lists / "validation_labels.txt").read_text().split()[: imagenet_forms.VALIDATION]
    every = (lists / "labels.txt").read_text().split()
    return sorted({*truth, *every[:3]}), truth


@pytest.fixture(scope="module")
def forms(official, tmp_path_factory) -> imagenet_forms.Forms:
    ids, truth = official
    images = imagenet_forms.photographs(number_of_images(ids, truth))
    return imagenet_forms.Forms(tmp_path_factory.mktemp("forms"), ids, truth, images)


@pytest.fixture(scope="module")
def real_forms(real_data, official, tmp_path_factory) -> imagenet_forms.Forms:
    """Forms of real photographs, with labels by position: TFDS labels validation images by position."""
    ids, truth = official
    paths = sorted((real_data / "imagenet_samples").rglob("*.JPEG"))[: number_of_images(ids, truth)]
    images = [path.read_bytes() for path in paths]
    return imagenet_forms.Forms(tmp_path_factory.mktemp("real"), ids, truth, images)


@pytest.fixture(scope="module", params=["forms", "real_forms"])
def either_forms(request) -> imagenet_forms.Forms:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def tfds_dir(forms) -> pathlib.Path:
    """The directory in which TFDS prepared the small tars."""
    data_dir = forms.root / "tfds"
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(records.TFDS_SIZES, "imagenet2012")
        sources.open_source("tfds:imagenet2012", "train", data_dir=str(data_dir))
    return data_dir


def number_of_images(ids: list[str], truth: list[str]) -> int:
    return len(ids) * imagenet_forms.TRAIN_EACH + len(truth)


def everything(source: sources.Source) -> dict[str, tuple[str, bytes]]:
    """Class id and pixels by file name."""
    found = {}
    for batch in pipeline.eval_batches(source, batch_size=16, resize_size=256):
        for image, label, weight, index in zip(*batch.values(), strict=True):
            if index >= 0:
                assert weight == 1
                name = pathlib.PurePath(source.name(int(index))).name
                found[name] = (source.class_ids[label], image.tobytes())
    return found


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_form_gives_the_same_labels_and_pixels(either_forms, split, monkeypatch):
    forms = either_forms
    images = forms.train if split == "train" else forms.val
    monkeypatch.setitem(
        records.TFDS_SIZES, "imagenet2012", {"train": len(forms.train), "validation": len(forms.val)}
    )
    results = {}
    for form in ("folder", "kaggle", "tars", "tfds"):
        # The real TFDS builder of imagenet2012 runs on the small tars.
        spec = "tfds:imagenet2012" if form == "tfds" else f"{form}:{forms.root / form}"
        source = sources.open_source(spec, split, data_dir=str(forms.root / "tfds"))
        assert len(source) == len(images)
        results[form] = everything(source)
    assert {name: label for name, (label, _) in results["folder"].items()} == {
        name: label for name, (label, _) in images.items()
    }
    for form, found in results.items():
        assert found == results["folder"], form


def test_names_travel_with_the_labels(forms):
    for form in ("kaggle", "tars"):
        source = sources.open_source(f"{form}:{forms.root / form}", "train")
        assert source.class_ids == tuple(forms.ids)
        assert source.class_names == tuple(f"words of {i}, more words" for i in forms.ids)
    folder = sources.open_source(f"folder:{forms.root / 'folder'}", "test")
    assert folder.class_names[folder.class_ids.index("n01440764")] == "tench, Tinca tinca"


def test_prepared_records_hold_the_same_images(either_forms):
    forms = either_forms
    out = forms.root / "prepared"
    prepare.prepare(f"tars:{forms.root / 'tars'}", out, resize_size=256, shard_examples=25)
    for split, images in (("train", forms.train), ("test", forms.val)):
        original = sources.open_source(f"tars:{forms.root / 'tars'}", split)
        source = sources.open_source(f"prepared:{out}", split)
        assert source.class_ids == original.class_ids and source.class_names == original.class_names
        stored, fresh = everything(source), everything(original)
        assert stored.keys() == fresh.keys() == images.keys()
        for name, (label, pixels) in stored.items():
            assert label == fresh[name][0]
            assert pixels == after_jpeg(fresh[name][1])


def after_jpeg(pixels: bytes) -> bytes:
    """The pixels of a 256 x 256 square after JPEG compression at quality 95."""
    out = io.BytesIO()
    Image.frombytes("RGB", (256, 256), pixels).save(out, "JPEG", quality=95)
    return Image.open(out).tobytes()


def test_tfds_set_with_a_missing_or_short_tar_is_refused(forms, tfds_dir):
    for split, count in (("train", len(forms.train)), ("test", len(forms.val))):
        with pytest.raises(UserError, match=rf"has {count} examples, not (1,281,167|50,000); its tar"):
            sources.open_source("tfds:imagenet2012", split, data_dir=str(tfds_dir))


def test_tfds_set_without_a_split(tfds_dir, tmp_path):
    # Some versions of TFDS only warn when they drop a split whose tar is missing.
    shutil.copytree(tfds_dir / "imagenet2012", tmp_path / "imagenet2012")
    (path,) = tmp_path.rglob("dataset_info.json")
    info = json.loads(path.read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] == "train"]
    path.write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"no split to test on; it has train .*whose tar is missing"):
        sources.open_source("tfds:imagenet2012", "test", data_dir=str(tmp_path))


def test_tfds_names_the_tar_that_is_missing(forms, tmp_path):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    os.link(forms.root / "tars" / "ILSVRC2012_img_train.tar", manual / "ILSVRC2012_img_train.tar")
    with pytest.raises(UserError, match=r"manual; missing: ILSVRC2012_img_val\.tar\. Put"):
        sources.open_source("tfds:imagenet2012", "test", data_dir=str(tmp_path))


def test_tfds_without_any_tar(tmp_path):
    with pytest.raises(UserError, match=r"missing: ILSVRC2012_img_train\.tar, ILSVRC2012_img_val\.tar\. Put"):
        sources.open_source("tfds:imagenet2012", "train", data_dir=str(tmp_path))


def test_tfrecord_sets_have_random_access(forms, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # TFDS leaves folders there
    data_dir = forms.root / "tfds_tfrecord"
    shutil.copytree(forms.root / "folder", data_dir / "images")
    folder = tfds.ImageFolder(str(data_dir / "images"))
    as_tfrecord = tfds.dataset_builders.store_as_tfds_dataset(
        name="small",
        version="1.0.0",
        data_dir=str(data_dir),
        features=tfds.features.FeaturesDict(
            {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=list(forms.ids))}
        ),
        split_datasets={
            "train": folder.as_dataset("train").map(lambda e: {"image": e["image"], "label": e["label"]})
        },
        file_format="tfrecord",
    )
    expected = list(as_tfrecord.as_dataset("train", shuffle_files=False).as_numpy_iterator())
    source = sources.open_source(f"prepared:{as_tfrecord.data_dir}", "train")
    order = np.random.default_rng(0).permutation(len(source))
    images, labels = source.read(order)
    assert labels.tolist() == [expected[i]["label"] for i in order]
    for data, i in zip(images, order, strict=True):
        np.testing.assert_array_equal(tfds.features.Image().decode_example(data), expected[i]["image"])


class TestWrongTars:
    """Errors for incomplete tars, or for a development kit that does not match."""

    @pytest.fixture
    def tars(self, forms, tmp_path) -> pathlib.Path:
        return pathlib.Path(shutil.copytree(forms.root / "tars", tmp_path / "tars"))

    def refused(self, tars: pathlib.Path, split: str, message: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            sources.open_source(f"tars:{tars}", split)
        assert "\n" not in str(error.value)

    def test_no_tars(self, tmp_path):
        self.refused(tmp_path, "train", r"has no ILSVRC2012_img_train\.tar or ILSVRC2010_images_train\.tar")

    def test_train_tar_cut_short(self, tars):
        path = tars / "ILSVRC2012_img_train.tar"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        self.refused(tars, "train", r"ILSVRC2012_img_train\.tar: cut short within n\d+\.tar")

    @pytest.mark.parametrize("tail", [0, 2 << 20])
    def test_train_tar_cut_short_between_two_files(self, tail, tars):
        # As an interrupted download leaves it, or one into preallocated space.
        path = tars / "ILSVRC2012_img_train.tar"
        with tarfile.open(path) as tar:
            last = tar.getmembers()[-1].offset
        path.write_bytes(path.read_bytes()[:last] + bytes(tail))
        self.refused(tars, "train", r"ILSVRC2012_img_train\.tar: .*cut short.*; fetch it again")

    def test_damaged_header(self, tars):
        path = tars / "ILSVRC2012_img_val.tar"
        data = bytearray(path.read_bytes())
        data[10] ^= 255
        path.write_bytes(data)
        self.refused(tars, "test", r"img_val\.tar: damaged at byte 0")

    def test_html_in_place_of_a_tar(self, tars):
        (tars / "ILSVRC2012_img_val.tar").write_text("<html>log in first</html>" * 100)
        self.refused(tars, "test", r"damaged at byte 0; fetch it again")

    def test_no_validation_tar(self, tars):
        (tars / "ILSVRC2012_img_val.tar").unlink()
        self.refused(tars, "test", r"has no ILSVRC2012_img_val\.tar to test on")

    def test_no_ground_truth(self, tars):
        (tars / "ILSVRC2012_devkit_t12.tar.gz").unlink()
        self.refused(
            tars, "test", r"has no ILSVRC2012_validation_ground_truth\.txt; put it or ILSVRC2012_devkit"
        )

    def test_ground_truth_of_another_length(self, tars):
        (tars / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n")
        self.refused(tars, "test", r"has 20 images, its ground truth 2 lines")

    def test_ground_truth_of_another_class(self, tars, forms):
        truth = ["n99999999", *forms.truth[1:]]
        (tars / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(truth))
        self.refused(tars, "test", "has class n99999999, which the training tar does not have")

    def test_loose_ground_truth_may_be_wordnet_ids(self, tars, forms):
        (tars / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(forms.truth))
        (tars / "ILSVRC2012_devkit_t12.tar.gz").unlink()
        source = sources.open_source(f"tars:{tars}", "test")
        labels = source.read(np.arange(len(source)))[1]
        assert [source.class_ids[label] for label in labels] == forms.truth


def test_tars_of_2010_have_their_own_names(forms, tmp_path):
    shutil.copy(forms.root / "tars/ILSVRC2012_img_train.tar", tmp_path / "ILSVRC2010_images_train.tar")
    shutil.copy(forms.root / "tars/ILSVRC2012_img_val.tar", tmp_path / "ILSVRC2010_images_test.tar")
    (tmp_path / "ILSVRC2010_test_ground_truth.txt").write_text("\n".join(forms.truth))
    source = sources.open_source(f"tars:{tmp_path}", "test")
    assert source.description.startswith("ILSVRC2010_images_test.tar: 20 images")


# A small ILSVRC-2010: the kit's numbers for the classes (not in id order) and for the synsets above them, the
# ground truth as such numbers, and the resulting labels.
CLASSES_2010 = {"n02119789": 1, "n01440764": 2, "n03126707": 3}
ABOVE_2010 = {"n00001740": 4, "n02512053": 5}
TRUTH_2010 = {"val": [3, 1, 2, 3], "test": [2, 3, 3, 1, 2]}
LABELS_2010 = {"train": [0, 0, 0, 1, 1, 1, 2, 2, 2], "val": [2, 1, 0, 2], "test": [0, 2, 2, 1, 0]}


class TestTarsOf2010:
    """ILSVRC-2010 in its own layout, with its kit packed, unpacked or as loose files."""

    @pytest.fixture
    def images(self) -> dict[str, dict[str, bytes]]:
        """By split and file name, in the order of the names."""
        rest = iter(imagenet_forms.photographs(sum(map(len, LABELS_2010.values()))))
        names = {
            "train": [f"{i}_{n}.JPEG" for i in sorted(CLASSES_2010) for n in (1, 10, 2)],
            **{
                split: [f"ILSVRC2010_{split}_{n + 1:08d}.JPEG" for n in range(len(truth))]
                for split, truth in TRUTH_2010.items()
            },
        }
        return {split: {name: next(rest) for name in names[split]} for split in names}

    @pytest.fixture(params=["packed", "unpacked", "loose"])
    def tars(self, request, images, tmp_path) -> pathlib.Path:
        tar, write = imagenet_forms.tar, imagenet_forms.write

        def backwards(split: str, start: str) -> dict[str, bytes]:
            return {n: data for n, data in reversed(images[split].items()) if n.startswith(start)}

        train = {f"{i}.tar": tar(backwards("train", i)) for i in CLASSES_2010}
        write(tmp_path / "ILSVRC2010_images_train.tar", tar(train))
        write(tmp_path / "ILSVRC2010_images_val.tar", tar(backwards("val", "")))
        # A tar may contain its folder too.
        within = {f"test/{name}": data for name, data in backwards("test", "").items()}
        write(tmp_path / "ILSVRC2010_images_test.tar", tar({"test/": b"", **within}))
        truth = {split: "".join(f"{n}\n" for n in numbers).encode() for split, numbers in TRUTH_2010.items()}
        write(tmp_path / "ILSVRC2010_test_ground_truth.txt", truth["test"])  # not in the kit, which is older
        kit = {
            "devkit-1.0/readme.txt": b"This is the documentation of the kit.",
            "devkit-1.0/data/ILSVRC2010_validation_ground_truth.txt": truth["val"],
            "devkit-1.0/data/meta.mat": imagenet_forms.meta_mat(CLASSES_2010 | ABOVE_2010, "2010"),
        }
        if request.param == "packed":
            write(tmp_path / "ILSVRC2010_devkit-1.0.tar.gz", tar(kit, "w:gz"))
        for name, data in kit.items() if request.param != "packed" else ():
            write(tmp_path / (name if request.param == "unpacked" else pathlib.PurePath(name).name), data)
        return tmp_path

    @pytest.mark.parametrize("split", ["train", "val", "test"])
    def test_labels_names_and_bytes(self, tars, images, split):
        if split == "val":  # the test images are preferred
            (tars / "ILSVRC2010_images_test.tar").unlink()
        source = sources.open_source(f"tars:{tars}", "train" if split == "train" else "test")
        assert source.class_ids == ("n01440764", "n02119789", "n03126707")
        assert source.class_names == tuple(f"words of {i}, more words" for i in source.class_ids)
        encoded, labels = source.read(np.arange(len(source)))
        names = [pathlib.PurePath(source.name(i)).name for i in range(len(source))]
        assert list(zip(names, encoded, strict=True)) == list(images[split].items())
        assert labels.tolist() == LABELS_2010[split]

    def test_a_synset_above_the_classes_is_no_label(self, tars):
        (tars / "ILSVRC2010_test_ground_truth.txt").write_text("2\n3\n4\n1\n2\n")
        with pytest.raises(UserError, match="has class 4, which the training tar does not have"):
            sources.open_source(f"tars:{tars}", "test")


class TestWrongKaggle:
    """Errors when a part of Kaggle's archive is missing."""

    @pytest.fixture
    def kaggle(self, forms, tmp_path) -> pathlib.Path:
        return pathlib.Path(shutil.copytree(forms.root / "kaggle", tmp_path / "kaggle"))

    @pytest.mark.parametrize(
        ("gone", "split", "message"),
        [
            ("LOC_synset_mapping.txt", "train", "LOC_synset_mapping.txt is missing"),
            ("LOC_val_solution.csv", "test", "LOC_val_solution.csv is missing"),
            ("ILSVRC/Data/CLS-LOC/val", "test", "CLS-LOC/val is missing"),
            ("ILSVRC/Data/CLS-LOC/train/n01440764", "train", "no folder n01440764"),
        ],
    )
    def test_a_part_is_missing(self, kaggle, gone, split, message):
        path = kaggle / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(UserError, match=message):
            sources.open_source(f"kaggle:{kaggle}", split)

    def test_another_csv(self, kaggle):
        (kaggle / "LOC_val_solution.csv").write_text("a,b\n1,2\n")
        with pytest.raises(UserError, match="not Kaggle's file"):
            sources.open_source(f"kaggle:{kaggle}", "test")

    @pytest.mark.parametrize("rows", [0, 1])
    def test_a_csv_cut_short(self, rows, kaggle):
        path = kaggle / "LOC_val_solution.csv"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[: 1 + rows]))
        with pytest.raises(UserError, match=r"LOC_val_solution\.csv was cut short: .*; fetch it again"):
            sources.open_source(f"kaggle:{kaggle}", "test")

    def test_the_inner_folder_works_too(self, kaggle):
        assert len(sources.open_source(f"kaggle:{kaggle / 'ILSVRC'}", "test")) == imagenet_forms.VALIDATION

    def test_a_missing_validation_image_is_a_bad_image(self, kaggle):
        next((kaggle / "ILSVRC/Data/CLS-LOC/val").iterdir()).unlink()
        source = sources.open_source(f"kaggle:{kaggle}", "test")
        images, _ = source.read(np.arange(len(source)))
        assert images.count(b"") == 1
