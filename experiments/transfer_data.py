"""The photographs of `experiments.transfer`: folds, draws, and folders of links that a run can read."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from alexnet_jax.common import files
from alexnet_jax.common.errors import UserError
from alexnet_jax.data import inference
from alexnet_jax.data.decode import decode_square

Classes = dict[str, list[str]]  # photographs, as `<folder>/<class>/<file>` below the data, by class


@dataclasses.dataclass(frozen=True)
class Split:
    """Photographs, as `<folder>/<class>/<file>` below the data, to learn from and to test on."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    size: int | None = None  # photographs of each class to learn from, where they were drawn


def classes(data: pathlib.Path, part: str) -> Classes:
    """The photographs of each class of a part, `train` or `val`."""
    found: Classes = {}
    for path, name in inference.find_with_classes([data / part]):
        found.setdefault(name, []).append(str(pathlib.Path(path).relative_to(data)))
    return found


def together(photographs: Classes) -> list[str]:
    return [name for names in photographs.values() for name in names]


def _orders(photographs: Classes, seed: int) -> list[np.ndarray]:
    """The photographs of each class in an order drawn by the seed."""
    return [
        np.random.default_rng((seed, k)).permutation(names) for k, names in enumerate(photographs.values())
    ]


def folds(photographs: Classes, count: int) -> list[Split]:
    """For each fold the other photographs and its own: each is held out once, the classes evenly."""
    orders = _orders(photographs, 0)
    found = []
    for fold in range(count):
        held = {str(name) for order in orders for name in order[fold::count]}
        names = [str(name) for order in orders for name in order]
        kept = (name for name in names if name not in held)
        found.append(Split(f"fold{fold}", tuple(sorted(kept)), tuple(sorted(held))))
    return found


def draw(photographs: Classes, test: Sequence[str], size: int | None, seed: int) -> Split:
    """`size` photographs of each class, or all, and the test photographs."""
    drawn = (str(name) for order in _orders(photographs, seed) for name in order[:size])
    return Split(f"{size or 'all'}-{seed}", tuple(sorted(drawn)), tuple(test), size)


def link(data: pathlib.Path, split: Split, root: pathlib.Path) -> pathlib.Path:
    """A folder with `train` and `val` whose photographs are links to those of the split."""
    for part, names in (("train", split.train), ("val", split.test)):
        for name in names:
            target = root / split.name / part / pathlib.Path(*pathlib.Path(name).parts[1:])
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_symlink():
                os.symlink((data / name).resolve(), target)
    return root / split.name


@functools.cache
def shrunk(data: pathlib.Path, side: int, root: pathlib.Path) -> pathlib.Path:
    """The photographs as runs at `resize_size` `side` decode them, as PNG: decoding takes longer than a step.

    The names stay as they are: decoders go by what a file begins with.
    """
    for part in ("train", "val"):
        for name in together(classes(data, part)):
            if not (target := root / name).exists():
                if (pixels := decode_square((data / name).read_bytes(), side)) is None:
                    raise UserError(f"{data / name}: unreadable; remove it")
                target.parent.mkdir(parents=True, exist_ok=True)
                with files.replacing(target) as temporary:
                    temporary.write_bytes(files.as_png(pixels))
    return root
