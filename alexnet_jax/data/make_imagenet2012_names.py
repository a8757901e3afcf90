"""Makes the readable names of ILSVRC-2012's classes from WordNet 3.0, whose noun offsets the ids are.

    python -m alexnet_jax.data.make_imagenet2012_names --ids=FILE --wordnet=FILE [--out=DIR]

`--ids` lists one WordNet id a line, such as TFDS's `labels.txt` of imagenet2012; `--wordnet` is WordNet's
`data.noun`.
"""

import pathlib

from absl import app, flags

_IDS = flags.DEFINE_string("ids", None, "File of WordNet ids, one a line.", required=True)
_WORDNET = flags.DEFINE_string("wordnet", None, "WordNet 3.0's data.noun.", required=True)
_OUT = flags.DEFINE_string("out", str(pathlib.Path(__file__).with_name("imagenet2012")), "Where to write.")


def words(line: str) -> str:
    """The synonyms in a line of data.noun: the fourth field counts them (in hexadecimal), each has two."""
    fields = line.split()
    count = int(fields[3], 16)
    return ", ".join(word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])


def main(_: list[str]) -> None:
    ids = pathlib.Path(_IDS.value).read_text().split()
    lines = pathlib.Path(_WORDNET.value).read_text().splitlines()
    licence = [line[4:].rstrip() for line in lines if line.startswith("  ")]
    synsets = {line[:8]: line for line in lines if not line.startswith("  ")}
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    (out / "class_names.txt").write_text("".join(f"{i} {words(synsets[i[1:]])}\n" for i in ids))
    (out / "LICENSE").write_text(
        "\n".join(["class_names.txt: words of WordNet 3.0, under its licence.", "", *licence, ""])
    )


if __name__ == "__main__":
    app.run(main)
