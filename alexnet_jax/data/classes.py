"""WordNet ids and readable names of ImageNet's classes."""

import functools
import pathlib
from collections.abc import Sequence

_CLASS_NAMES = pathlib.Path(__file__).parent / "imagenet2012" / "class_names.txt"


@functools.cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """WordNet id and names of ILSVRC-2012's 1000 classes, in the order of their labels (sorted by id)."""
    lines = _CLASS_NAMES.read_text(encoding="utf-8").splitlines()
    return tuple((line[:9], line[10:]) for line in lines)


def readable_names(class_ids: Sequence[str]) -> tuple[str, ...]:
    """WordNet's words for ILSVRC-2012's ids, such as "tench, Tinca tinca"; other ids are unchanged."""
    names = dict(imagenet_classes())
    return tuple(names.get(class_id, class_id) for class_id in class_ids)
