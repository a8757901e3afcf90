"""The command `split`: a folder of one folder per class into training and validation images."""

import argparse
import errno
import os
import pathlib
import shlex
import shutil
from collections.abc import Sequence

import numpy as np

from alexnet_jax.common import progress
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import folders

_PARTS = {"train", "training", "val", "valid", "validation", "test"}
# `os.link` across file systems, on one without hard links, or on a file of another user.
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EACCES, errno.EMLINK, errno.ENOSYS}


def choose(files: Sequence[str], fraction: float, key: Sequence[int]) -> set[str]:
    """The validation images of a class: `fraction` of them, rounded, but at least one on either side.

    The choice depends on the files of this class and the key alone.
    """
    count = min(max(round(fraction * len(files)), 1), len(files) - 1)
    order: list[int] = np.random.default_rng(key).permutation(len(files)).tolist()
    return {files[i] for i in order[:count]}


def plan(root: pathlib.Path, fraction: float, seed: int) -> dict[str, list[str]]:
    """The images of `train` and `val`, as paths `<class>/<file>` below `root`.

    Raises:
      UserError: there are fewer than two classes, a class has fewer than two images, or the folder is split.
    """
    if seed < 0:
        raise UserError(f"--seed={seed}: must be 0 or more")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give one with a folder of images per class")
    classes = [name for name, kind in folders.scan(root).items() if kind == "folder"]
    if parts := [name for name in classes if name.lower() in _PARTS]:
        raise UserError(
            f"{root} has a folder {parts[0]}: if it is split already, train with data.source=folder:{root}; "
            f"if the classes are inside, split {root / parts[0]}"
        )
    if len(classes) < 2:
        raise UserError(f"{root} needs a folder for each of two or more classes; it has {classes or 'none'}")
    by_class: dict[str, list[str]] = {name: [] for name in classes}
    for path in folders.files_by_class(root, classes)[0]:
        by_class[path.split("/")[0]].append(path)
    found: dict[str, list[str]] = {"train": [], "val": []}
    for name, files in by_class.items():
        if len(files) < 2:
            raise UserError(
                f"{root / name} has {len(files)} image(s), but each class needs one to train on and one to "
                "test on; add images or remove the folder"
            )
        chosen = choose(files, fraction, [seed, *os.fsencode(name)])
        for path in files:
            found["val" if path in chosen else "train"].append(path)
    return found


def place(source: pathlib.Path, target: pathlib.Path, *, copy: bool) -> bool:
    """Makes `target` a hard link to `source`, or a copy; returns whether it is a link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            os.link(source.resolve(), target)
            return True
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
    shutil.copyfile(source, target)
    return False


def main(args: argparse.Namespace) -> int:
    root = args.folder
    out = args.out or root.absolute().with_name(f"{root.absolute().name}-split")
    if out.exists():
        raise UserError(f"--out={out}: exists; remove it, or give another folder")
    if out.resolve().is_relative_to(root.resolve()):
        raise UserError(f"--out={out}: is inside {root}, where it would look like a class")
    parts = plan(root, args.val, args.seed)
    partial = out.with_name(f"{out.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)  # of an earlier try that was interrupted
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out={out}: cannot be written ({error.strerror}); name another folder") from error
    pairs = [(part, path) for part, paths in parts.items() for path in paths]
    linked = 0
    for part, path in progress.bar(len(pairs), "image", iterable=pairs):
        linked += place(root / path, partial / part / path, copy=args.copy)
    partial.rename(out)
    how = "hard links" if linked == len(pairs) else f"{len(pairs) - linked:,} copies"
    counts = " and ".join(f"{len(paths):,} {part}" for part, paths in parts.items())
    classes = {path.split("/")[0] for path in parts["train"]}
    print(f"{out}: {counts} images in {len(classes):,} classes ({how})")
    source = shlex.quote(f"folder:{out}")
    print(f"train      python main.py --config=configs/finetune.py --config.data.source={source}")
    return 0
