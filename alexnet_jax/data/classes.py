"""Ids and names of classes: ImageNet's, and which classes of a net those of a data set are."""

import functools
import pathlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from alexnet_jax.common.errors import UserError

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


def ids_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """ILSVRC-2012's ids if these are the names of its 1000 classes, otherwise the names themselves."""
    ids, imagenet_names = zip(*imagenet_classes(), strict=True)
    return ids if names == imagenet_names else names


def are_numbers(class_ids: Iterable[str]) -> bool:
    """Whether all ids are whole numbers, such as ImageNet-V2's folders 0 to 999."""
    return all(class_id.isdecimal() for class_id in class_ids)


def match_labels(
    ids: Sequence[str],
    names: Sequence[str],
    num_classes: int,
    net_ids: Sequence[str] | None,
    net_names: Sequence[str] | None,
) -> np.ndarray | None:
    """The net's label of each class of a data set, int32 `[K]`; None if all classes have the same labels.

    Classes are the same if their ids are, or if an id or name of one and of the other mean the same: the text
    itself, the number, or the one class of ImageNet that has this id or word. Ids that are whole numbers are
    labels of the net, unless its own ids are numbers.

    Args:
      ids, names: of the data set's K classes, by label.
      num_classes: number of the net's classes.
      net_ids, net_names: of the net's classes, by label; if not one for each, only the numbers must agree.

    Raises:
      UserError: a class of the data set is none of the net's, or could be several.
    """
    net_ids, net_names = net_ids or (), net_names or ()
    if {len(net_ids), len(net_names)} != {num_classes}:
        if len(ids) == num_classes:
            return None
        raise UserError(f"the names of the net's {num_classes} classes are unknown; use images of as many")
    if tuple(ids) in (tuple(net_ids), tuple(net_names)):
        return None
    if are_numbers(ids) and not are_numbers(net_ids):
        found = [int(i) if int(i) < num_classes else -1 for i in ids]
    else:
        exact = _labels(net_ids)
        alike = _labels(map(_meaning, net_names)) | _labels(map(_meaning, net_ids))
        found = [
            exact.get(i, alike.get(_meaning(i), alike.get(_meaning(name), -1)))
            for i, name in zip(ids, names, strict=True)
        ]
    times = Counter(found)
    if unclear := [i for i, label in zip(ids, found, strict=True) if label < 0 or times[label] > 1]:
        raise UserError(
            f"no certain match for {_some(unclear)} among the net's {num_classes} classes "
            f"({_some(net_ids)}); use images of these classes, under these names"
        )
    return None if found == [*range(num_classes)] else np.array(found, np.int32)


def _labels(values: Iterable[str | None]) -> dict[str | None, int]:
    """The label of each value that only one class has."""
    listed = list(values)
    times = Counter([*listed, None, None])
    return {value: label for label, value in enumerate(listed) if times[value] == 1}


def _meaning(text: str) -> str | None:
    """The id of the ImageNet class with this word, None if several have it; else lower case, 7 for 007."""
    word = unicodedata.normalize("NFC", text).lower().replace("_", " ")
    return str(int(word)) if word.isdecimal() else _meanings().get(word, word)


@functools.cache
def _meanings() -> dict[str, str | None]:
    """ILSVRC-2012's ids by the words for them, in lower case; None for words of several classes."""
    pairs = {(word.lower(), i) for i, name in imagenet_classes() for word in (name, *name.split(", "))}
    times = Counter(word for word, _ in pairs)
    return {word: class_id if times[word] == 1 else None for word, class_id in pairs}


def _some(values: Sequence[str]) -> str:
    return ", ".join(values[:4]) + (", ..." if len(values) > 4 else "")
