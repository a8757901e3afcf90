"""Kaggle's ImageNet: `ILSVRC` with `LOC_synset_mapping.txt` and `LOC_val_solution.csv` beside it."""

import csv
import os
import pathlib

import numpy as np

from alexnet_jax.common.errors import UserError
from alexnet_jax.data import folders
from alexnet_jax.data.folders import FileSource


def open_kaggle(path: pathlib.Path, split: str) -> FileSource:
    """Opens the folder of Kaggle's unpacked archive, or the `ILSVRC` in it.

    Raises:
      UserError: a part of the archive is missing or truncated.
    """
    root = path.parent if path.name == "ILSVRC" else path
    images = root / "ILSVRC" / "Data" / "CLS-LOC" / ("train" if split == "train" else "val")
    mapping = root / "LOC_synset_mapping.txt"
    for needed in (images, mapping):
        if not needed.exists():
            raise UserError(f"{needed} is missing; give the folder of Kaggle's unpacked archive")
    lines = filter(str.strip, mapping.read_text(encoding="utf-8").splitlines())
    synsets = [line.split(" ", 1) for line in lines]
    ids = tuple(synset[0] for synset in synsets)
    if split == "train":
        if missing := [class_id for class_id in ids if not (images / class_id).is_dir()]:
            raise UserError(f"{images} has no folder {missing[0]}; unpack the archive again")
        (paths, labels), absent = folders.files_by_class(images, ids), frozenset[int]()
    else:
        solution = root / "LOC_val_solution.csv"
        paths, labels = _read_solution(solution, ids)
        # By name: `valprep.sh` sorts them into folders, one per class.
        listing = folders.list_images(images)
        path_of = {os.path.basename(path): path for path in listing.images}
        if unlabelled := sorted(name for name in path_of.keys() - set(paths) if name.endswith(".JPEG")):
            raise UserError(f"{solution} was cut short: no label for {unlabelled[0]}; fetch it again")
        missing = [name for name in paths if name not in path_of]
        if len(missing) == len(paths):
            raise UserError(f"{images} has none of the {len(paths):,} images; unpack the archive again")
        left_out = {folders.NO_IMAGES: listing.others, folders.HIDDEN: listing.hidden}
        folders.note_choices(images, {**left_out, "missing": missing})
        absent = frozenset(i for i, name in enumerate(paths) if name not in path_of)
        paths = [path_of.get(name, name) for name in paths]
    return FileSource(
        root=str(images),
        paths=paths,
        labels=labels,
        class_ids=ids,
        class_names=tuple(synset[-1] for synset in synsets),
        description=f"{root.name}: {len(paths):,} {images.name} images in {len(ids):,} classes",
        absent=absent,
    )


def _read_solution(solution: pathlib.Path, ids: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """File names and labels from lines such as `<image>,n01440764 3 4 9 9`; all boxes have the same class."""
    if not solution.exists():
        raise UserError(f"{solution} is missing; it has the labels, so fetch it from Kaggle")
    label_of = {class_id: label for label, class_id in enumerate(ids)}
    try:
        with solution.open(newline="", encoding="utf-8") as file:
            rows = [(row["ImageId"], row["PredictionString"].split()[0]) for row in csv.DictReader(file)]
        rows.sort()
        labels = np.array([label_of[class_id] for _, class_id in rows], np.int32)
    except (KeyError, IndexError, AttributeError, TypeError, UnicodeError, csv.Error) as error:
        raise UserError(f"{solution} is not Kaggle's file ({error}); fetch it again") from error
    if not rows:
        raise UserError(f"{solution} was cut short: it names no images; fetch it again")
    return [f"{image}.JPEG" for image, _ in rows], labels
