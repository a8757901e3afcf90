"""Which classes of a net those of a data set are, by tables written by hand."""

import numpy as np
import pytest

from alexnet_jax.common.errors import UserError
from alexnet_jax.data import sources
from alexnet_jax.data.classes import imagenet_classes, match_labels, readable_names
from tests.data.test_sources import make_folder

IDS, NAMES = (tuple(column) for column in zip(*imagenet_classes(), strict=True))
INSECTS = ("ant", "bee", "wasp")


def match(ids, net_ids, names=None, net_names=None, num_classes=None):
    """The labels as a list, as a source and a net with WordNet's names give them."""
    net_names = net_names or (net_ids and readable_names(net_ids))
    given = (ids, names or readable_names(ids), num_classes or len(net_ids), net_ids, net_names)
    found = match_labels(*given)
    if found is None:
        return None
    assert found.dtype == np.int32
    return found.tolist()


@pytest.mark.parametrize(
    ("ids", "net_ids", "expected"),
    [
        (INSECTS, INSECTS, None),
        (("wasp", "ant", "bee"), INSECTS, [2, 0, 1]),
        (("Wasp", "ANT", "bee"), INSECTS, [2, 0, 1]),
        (("a", "A"), ("A", "a"), [1, 0]),
        # Some of the classes (huggingface/pytorch-image-models#2456)
        (("wasp", "ant"), INSECTS, [2, 0]),
        (("bee",), INSECTS, [1]),
        # Numbers are labels (modestyachts/ImageNetV2#10), unless the net's classes are numbers
        (("0", "1", "2"), INSECTS, None),
        (("10", "2", "0"), tuple("abcdefghijk"), [10, 2, 0]),
        (("002", "1"), INSECTS, [2, 1]),
        (("7", "5"), ("5", "6", "7"), [2, 0]),
        # Numbers of a net whose classes are numbers, with or without zeros in front
        (tuple(f"{n:02}" for n in range(1, 11)), tuple(str(n) for n in range(1, 11)), None),
        (("01", "10"), tuple(sorted(str(n) for n in range(1, 11))), [0, 1]),
        (("3", "10", "1"), tuple(f"{n:03}" for n in range(1, 11)), [2, 9, 0]),
        (("01", "1"), ("1", "01", "2"), [1, 0]),
        # Accents as macOS writes them, as two characters (NFD), and in one (NFC)
        (("bar", "cafe\u0301"), ("bar", "caf\u00e9", "zoo"), [0, 1]),
        (("zoo", "Caf\u00e9"), ("bar", "cafe\u0301", "zoo"), [2, 1]),
        (("caf\u00e9", "cafe\u0301"), ("cafe\u0301", "caf\u00e9"), [1, 0]),
        # Words and WordNet's ids
        (("n02206856", "n02219486"), ("ant", "bee"), [1, 0]),
        (("bee", "ant"), ("n02219486", "n02206856"), [1, 0]),
        (("goldfish", "Great_white_shark", "tench"), IDS, [1, 2, 0]),
        (NAMES, IDS, None),
        (("crane", "tench"), ("tench", "crane"), [1, 0]),
    ],
)
def test_labels_by_hand(ids, net_ids, expected):
    assert match(ids, net_ids) == expected


@pytest.mark.parametrize(
    ("ids", "net_ids", "named"),
    [
        # As many classes, but others (LINs-lab/RDED#10)
        (("bee", "cat"), ("ant", "bee"), "cat"),
        ((*INSECTS, "moth"), INSECTS, "moth"),
        (("0", "3"), INSECTS, "3"),
        (("ant", "bee"), ("0", "1"), "ant, bee"),
        (tuple("uvwxyz"), INSECTS, "u, v, w, x, ..."),
        # Words of several of ImageNet's classes: the bird or the machine
        (("crane", "tench"), IDS, "crane"),
        (("n03126707", "n01440764"), ("crane", "n01440764"), "n03126707"),
        (("n03126707", "n01440764"), ("n02012849", "n01440764"), "n03126707"),
        # Two words for one class
        (("cougar", "puma", "tench"), IDS, "cougar, puma"),
        (("1", "01", "2"), INSECTS, "1, 01"),
        (("1", "01", "2"), ("1", "2", "3"), "1, 01"),
        (("01", "04"), ("1", "2", "3"), "04"),
        (("caf\u00e9", "cafe\u0301"), ("caf\u00e9", "zoo"), "caf\u00e9, cafe\u0301"),
    ],
)
def test_what_the_net_lacks_is_named(ids, net_ids, named):
    with pytest.raises(UserError) as caught:
        match(ids, net_ids)
    assert str(caught.value).startswith(
        f"no certain match for {named} among the net's {len(net_ids)} classes ("
    )
    assert "\n" not in str(caught.value)


def test_a_net_of_unknown_classes_is_compared_by_their_number():
    assert match(INSECTS, None, num_classes=3) is None
    assert match(tuple("abcd"), INSECTS, num_classes=4) is None  # not a name for each
    with pytest.raises(UserError, match="the names of the net's 1000 classes are unknown"):
        match(INSECTS, None, num_classes=1000)


def test_ids_are_stronger_than_names():
    """The kits of two years may have other words for the same ids."""
    assert match(("n1", "n2"), ("n2", "n1"), names=("x", "y"), net_names=("x", "y")) == [1, 0]
    assert match(("c2", "c1"), ("ant", "bee"), names=("bee", "ant")) == [1, 0]
    assert match(("bee", "ant"), ("c1", "c2"), net_names=("ant", "bee")) == [1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_two_hundred_of_imagenet_in_any_order_and_spelling(seed):
    """ImageNet-A and -R (huggingface/pytorch-image-models#2456)."""
    rng = np.random.default_rng(seed)
    words = [name.split(", ")[0].lower() for name in NAMES]
    everywhere = [word for name in NAMES for word in {w.lower() for w in (name, *name.split(", "))}]
    clear = [label for label, word in enumerate(words) if everywhere.count(word) == 1]
    labels = rng.choice(clear, 200, replace=False).tolist()
    assert match([IDS[label] for label in labels], IDS) == labels
    assert match([NAMES[label].split(", ")[0] for label in labels], IDS) == labels
    assert match([words[label].replace(" ", "_") for label in labels], IDS) == labels
    assert match([str(label) for label in labels], IDS) == labels
    assert match([IDS[label] for label in labels], NAMES, net_names=NAMES) == labels


def test_folders_that_are_numbers_are_sorted_as_numbers(tmp_path):
    """ImageNet-V2's 0 to 999: modestyachts/ImageNetV2#10."""
    make_folder(tmp_path / "numbers", {f"val/{number}": 1 for number in range(12)})
    source = sources.open_source(f"folder:{tmp_path / 'numbers'}", "test")
    assert source.class_ids == tuple(map(str, range(12)))
    for index in range(12):
        assert source.name(index) == f"{source.read(np.array([index]))[1][0]}/0.png"
    make_folder(tmp_path / "mixed", {"val/9": 1, "val/10": 1, "val/ant": 1})
    assert sources.open_source(f"folder:{tmp_path / 'mixed'}", "test").class_ids == ("10", "9", "ant")
