"""The records under experiments/NNN-name: what each must hold, and its page.

`record.json` says what was done, `verdict.md` what it shows, `table.md` the figures; a record's README.md
is made of these and the pictures beside them (`python -m experiments.index`). A record is never edited:
a second try is a record of its own, with the first as its parent.
"""

import itertools
import json
import pathlib
from typing import Any

from alexnet_jax.common.errors import UserError
from alexnet_jax.common.files import replacing

DIRECTORY = pathlib.Path(__file__).resolve().parent
FILE, VERDICT, TABLE, PAGE = "record.json", "verdict.md", "table.md", "README.md"
KEYS = {
    "title": "what it is, in a line",
    "parent": "the config or record that it starts from",
    "change": "what is different there, in a line",
    "reason": "why it was done",
    "command": "what makes it again",
    "date": "YYYY-MM-DD",
    "device": "what it ran on",
    "versions": "of Python and the libraries",
    "result": "the figures that matter, in a line, with n and spread",
}
PICTURES = (".svg", ".png", ".jpg")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file so that there is the old one or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: pathlib.Path, values: Any) -> None:
    write_text(path, json.dumps(values, indent=1) + "\n")


def find(directory: pathlib.Path = DIRECTORY) -> list[pathlib.Path]:
    """The records, in the order of their numbers.

    Raises:
      UserError: two have one number.
    """
    found = sorted(path for path in directory.glob("[0-9][0-9][0-9]-*") if path.is_dir())
    for one, other in itertools.pairwise(found):
        if one.name[:3] == other.name[:3]:
            raise UserError(f"{other}: {one.name} has that number, too; give it the next one that is free")
    return found


def read(path: pathlib.Path) -> dict[str, Any]:
    """A record's `record.json`, and its `verdict`.

    Raises:
      UserError: a file is missing or damaged, or lacks a key.
    """
    try:
        values = json.loads((path / FILE).read_text())
        values["verdict"] = (path / VERDICT).read_text().strip()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: a record needs {FILE} and {VERDICT} ({error})") from error
    if absent := [key for key in KEYS if not values.get(key)]:
        raise UserError(f"{path / FILE}: lacks {absent[0]}: {KEYS[absent[0]]}")
    if unknown := sorted(set(values) - set(KEYS) - {"verdict"}):
        raise UserError(f"{path / FILE}: {unknown[0]} is no key of a record; they are {', '.join(KEYS)}")
    return values


def page(path: pathlib.Path) -> str:
    """The README.md of a record."""
    values = read(path)
    versions = ", ".join(f"{name} {version}" for name, version in values["versions"].items())
    lines = [
        f"# {values['title']}",
        "",
        f"    {values['command']}",
        "",
        f"- **Parent**: {values['parent']}",
        f"- **Change**: {values['change']}",
        f"- **Reason**: {values['reason']}",
        f"- **Made**: {values['date']}, {values['device']}; {versions}",
        "",
        f"**Result.** {values['result']}",
        "",
        f"**Verdict.** {values['verdict']}",
        "",
    ]
    if (path / TABLE).exists():
        lines += [(path / TABLE).read_text().strip(), ""]
    for picture in sorted(p for p in path.iterdir() if p.suffix in PICTURES):
        lines += [f"![{picture.stem.replace('_', ' ')}]({picture.name})", ""]
    others = sorted(
        p.name
        for p in path.iterdir()
        if p.suffix not in PICTURES and p.name not in (FILE, VERDICT, TABLE, PAGE) and p.name[0] != "."
    )
    if others:
        lines += ["Beside this page: " + ", ".join(f"[{name}]({name})" for name in others) + ".", ""]
    return "\n".join(lines)
