"""Readable names for WordNet ids."""

import functools
import pathlib
from collections.abc import Sequence

_NAMES = pathlib.Path(__file__).parent / "imagenet2012" / "class_names.txt"


def readable_names(class_ids: Sequence[str]) -> tuple[str, ...]:
    """WordNet's words for ILSVRC-2012's ids, such as "tench, Tinca tinca"; any other id stays as it is."""
    names = _imagenet_names()
    return tuple(names.get(class_id, class_id) for class_id in class_ids)


@functools.cache
def _imagenet_names() -> dict[str, str]:
    lines = _NAMES.read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)
