"""Makes the readable names of ILSVRC-2012's classes from WordNet 3.0; the ids are its noun offsets.

    python -m scripts.make_imagenet2012_names --ids=FILE --wordnet=FILE [--out=DIR]

`--ids` has one WordNet id a line, as TFDS's `labels.txt` of imagenet2012 does; `--wordnet` is WordNet's
`data.noun`.
"""

import argparse
import pathlib


def words(line: str) -> str:
    """The synonyms in a line of data.noun: the fourth field is their number in hexadecimal, each has two."""
    fields = line.split()
    count = int(fields[3], 16)
    return ", ".join(word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])


def make(ids: pathlib.Path, wordnet: pathlib.Path, out: pathlib.Path) -> None:
    """Writes `class_names.txt` and WordNet's licence into `out`."""
    lines = wordnet.read_text().splitlines()
    licence = [line[4:].rstrip() for line in lines if line.startswith("  ")]
    synsets = {line[:8]: line for line in lines if not line.startswith("  ")}
    out.mkdir(parents=True, exist_ok=True)
    names = "".join(f"{i} {words(synsets[i[1:]])}\n" for i in ids.read_text().split())
    (out / "class_names.txt").write_text(names)
    heading = "class_names.txt: words of WordNet 3.0, under its licence."
    (out / "LICENSE").write_text("\n".join([heading, "", *licence, ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--ids", required=True, type=pathlib.Path, help="WordNet ids, one a line")
    parser.add_argument("--wordnet", required=True, type=pathlib.Path, help="WordNet 3.0's data.noun")
    parser.add_argument(
        "--out",
        default=pathlib.Path(__file__).parents[1] / "alexnet_jax/data/imagenet2012",
        type=pathlib.Path,
    )
    given = parser.parse_args()
    make(given.ids, given.wordnet, given.out)


if __name__ == "__main__":
    main()
