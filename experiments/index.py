"""Makes the records' README.md files, that of experiments/, and the table in the project's README.md.

    python -m experiments.index [--check]

With --check nothing is written; the command fails if a page differs from what the records say.
"""

import argparse
import pathlib
from collections.abc import Sequence

from alexnet_jax.common import command_line, files
from alexnet_jax.common.errors import UserError
from experiments import record

BEGIN, END = "<!-- experiments: made by python -m experiments.index -->", "<!-- experiments: end -->"


def index(directory: pathlib.Path) -> str:
    """The text of experiments/README.md, with a line for each record."""
    lines = [
        "# Experiments",
        "",
        "Each is a directory of its own: what was changed in what and why, the command, the result with its",
        "spread, and a verdict. The newest come first; those that a newer one supersedes are last. Records",
        "are never edited; failures stay. `python -m experiments.index` makes this page.",
        "",
        *_table(directory, ""),
    ]
    return "\n".join(lines) + "\n"


def section(directory: pathlib.Path) -> str:
    """The text between the marks in the project's README.md."""
    return "\n".join([BEGIN, "", *_table(directory, f"{directory.name}/"), "", END])


def _table(directory: pathlib.Path, prefix: str) -> list[str]:
    records = {path: record.read(path) for path in reversed(record.find(directory))}
    newer = {
        number: path.name[:3]
        for path, values in records.items()
        for number in values.get(record.SUPERSEDES, ())
    }
    lines = ["| | experiment | result |", "|---|---|---|"]
    for path in sorted(records, key=lambda path: path.name[:3] in newer):  # stable: the newest first
        number, values = path.name[:3], records[path]
        title = f"[{values['title']}]({prefix}{path.name}/README.md)"
        result = f"superseded by {newer[number]}" if number in newer else values["result"]
        lines.append(f"| {number} | {title} | {result} |")
    return lines


def pages(directory: pathlib.Path) -> dict[pathlib.Path, str]:
    """The text of each page by its path.

    Raises:
      UserError: the project's README.md lacks the marks for the results.
    """
    made = {path / record.PAGE: record.page(path) for path in record.find(directory)}
    made[directory / record.PAGE] = index(directory)
    readme = directory.parent / "README.md"
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"{readme}: needs one line {BEGIN} and one {END}")
    before, _, rest = text.partition(BEGIN)
    made[readme] = before + section(directory) + rest.partition(END)[2]
    return made


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.index", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    parser.add_argument(
        "--directory", type=command_line.user_path, default=record.DIRECTORY, help="directory of the records"
    )
    args: argparse.Namespace = parser.parse_args(argv)
    made = pages(args.directory)
    old = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if args.check and old:
        raise UserError(f"{old[0]}: differs from what the records say; python -m experiments.index makes it")
    for path in () if args.check else old:
        files.write_text(path, made[path])
        print(path)
    return 0


if __name__ == "__main__":
    command_line.command(main)
