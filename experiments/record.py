"""The records under experiments/NNN-name: what each must hold, and its page.

`record.json` says what was done, `verdict.md` what it shows, `table.md` the figures. `python -m
experiments.index` makes a record's README.md from these and the pictures beside them. A record is never
edited: a second try is a new record, with the first as its parent or among those that it supersedes.
"""

import itertools
import json
import pathlib
from typing import Any

from alexnet_jax.common import files
from alexnet_jax.common.errors import UserError

DIRECTORY = pathlib.Path(__file__).resolve().parent
FILE, VERDICT, TABLE, PAGE = "record.json", "verdict.md", "table.md", "README.md"
KEYS = {
    "title": "the experiment, in a line",
    "parent": "the config or record that it differs from",
    "change": "the difference to the parent, in a line",
    "reason": "why it was done",
    "command": "the command that repeats it",
    "date": "YYYY-MM-DD",
    "device": "the device it ran on",
    "versions": "of Python and the libraries",
    "result": "the main figures, in a line, with n and spread",
}
SUPERSEDES = "supersedes"  # a list of older records' numbers, if this one takes their place
PICTURES = (".svg", ".png", ".jpg")


def write_json(path: pathlib.Path, values: Any) -> None:
    files.write_text(path, json.dumps(values, indent=1) + "\n")


def find(directory: pathlib.Path = DIRECTORY) -> list[pathlib.Path]:
    """The records in the order of their numbers.

    Raises:
      UserError: two have the same number.
    """
    found = sorted(path for path in directory.glob("[0-9][0-9][0-9]-*") if path.is_dir())
    for one, other in itertools.pairwise(found):
        if one.name[:3] == other.name[:3]:
            raise UserError(f"{other}: {one.name} has that number, too; take the next free number")
    return found


def read(path: pathlib.Path) -> dict[str, Any]:
    """The values of a record's `record.json`, and its `verdict`.

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
    if unknown := sorted(set(values) - set(KEYS) - {"verdict", SUPERSEDES}):
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
        *(f"- **Supersedes**: {number}" for number in values.get(SUPERSEDES, ())),
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
