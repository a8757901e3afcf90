"""The same few images in every official layout of ImageNet."""

import csv
import io
import os
import pathlib
import tarfile

import numpy as np
from PIL import Image

TRAIN_EACH = 3
VALIDATION = 20


class Forms:
    """Small sets under `root`: `folder`, `kaggle`, `tars`, and `tfds` with the tars as TFDS expects them."""

    def __init__(self, root: pathlib.Path, ids: list[str], truth: list[str], images: list[bytes]) -> None:
        """Writes all forms.

        Args:
          root: the directory to write to.
          ids: WordNet ids of the synsets, in any order.
          truth: the WordNet id of each validation image.
          images: at least `len(ids) * TRAIN_EACH + len(truth)` encoded images.
        """
        self.root, self.ids, self.truth = root, sorted(ids), truth
        rest = iter(images)
        self.train = {f"{i}_{n}.JPEG": (i, next(rest)) for i in self.ids for n in range(TRAIN_EACH)}
        self.val = {f"ILSVRC2012_val_{n + 1:08d}.JPEG": (i, next(rest)) for n, i in enumerate(truth)}
        self.write_folder()
        self.write_kaggle()
        self.write_tars()

    def write_folder(self) -> None:
        for split, images in (("train", self.train), ("val", self.val)):
            for name, (wordnet_id, data) in images.items():
                write(self.root / "folder" / split / wordnet_id / name, data)

    def write_kaggle(self) -> None:
        images = self.root / "kaggle/ILSVRC/Data/CLS-LOC"
        for name, (wordnet_id, data) in self.train.items():
            write(images / "train" / wordnet_id / name, data)
        for name, (_, data) in self.val.items():
            write(images / "val" / name, data)
        mapping = "".join(f"{i} words of {i}, more words\n" for i in self.ids)
        write(self.root / "kaggle/LOC_synset_mapping.txt", mapping.encode())
        with (self.root / "kaggle/LOC_val_solution.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["ImageId", "PredictionString"])
            # Kaggle's rows are unordered, and an image may have several boxes.
            for name, (wordnet_id, _) in reversed(self.val.items()):
                table.writerow([name.removesuffix(".JPEG"), f"{wordnet_id} 1 2 3 4 {wordnet_id} 5 6 7 8 "])

    def write_tars(self) -> None:
        (self.root / "tars").mkdir()
        synsets = {
            f"{i}.tar": tar({name: data for name, (synset, data) in self.train.items() if synset == i})
            for i in self.ids
        }
        write(self.root / "tars/ILSVRC2012_img_train.tar", tar(synsets))
        val = tar({name: data for name, (_, data) in self.val.items()})
        write(self.root / "tars/ILSVRC2012_img_val.tar", val)
        # The kit's numbers do not follow the order of the ids; here they are reversed.
        number = {wordnet_id: n + 1 for n, wordnet_id in enumerate(reversed(self.ids))}
        truth = "".join(f"{number[i]}\n" for i in self.truth)
        kit = {
            "ILSVRC2012_devkit_t12/data/meta.mat": meta_mat(number),
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        }
        write(self.root / "tars/ILSVRC2012_devkit_t12.tar.gz", tar(kit, "w:gz"))
        manual = self.root / "tfds/downloads/manual"
        manual.mkdir(parents=True)
        for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
            os.link(self.root / "tars" / name, manual / name)


def meta_mat(number: dict[str, int], year: str = "2012") -> bytes:
    """The kit's synset table as a MATLAB file."""
    import scipy.io

    synsets = np.zeros(
        (len(number), 1),
        dtype=[(f"ILSVRC{year}_ID", object), ("WNID", object), ("words", object), ("gloss", object)],
    )
    for row, (wordnet_id, n) in enumerate(number.items()):
        synsets[row, 0] = (np.uint16(n), wordnet_id, f"words of {wordnet_id}, more words", "what it means")
    out = io.BytesIO()
    scipy.io.savemat(out, {"synsets": synsets})
    return out.getvalue()


def write(path: pathlib.Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.GNU_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def photographs(count: int) -> list[bytes]:
    """JPEGs of many sizes, smooth like photographs, in different colours, every fifth grey."""
    random = np.random.default_rng(0)
    images = []
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), np.uint8))
        image = coarse.resize(
            (int(random.integers(60, 400)), int(random.integers(60, 400))), Image.Resampling.BICUBIC
        )
        out = io.BytesIO()
        (image.convert("L") if i % 5 == 4 else image).save(out, "JPEG", quality=90)
        images.append(out.getvalue())
    return images
