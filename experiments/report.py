"""One HTML file about runs or sweeps, which opens from disk and on a phone.

    python -m experiments.report runs/a runs/b --out=report.html
    python -m experiments.report runs/ablations --out=report.html --figure4=embedded

Each WHAT is a run's workdir or a directory with the tables of `python -m experiments.sweep`. The pictures are
inside the file; it fetches nothing.
"""

import json
import pathlib
import tempfile
from collections.abc import Sequence

from alexnet_jax.common import command_line, files
from alexnet_jax.common.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.report", __doc__)
    parser.add_argument(
        "what",
        nargs="+",
        type=command_line.user_path,
        metavar="WHAT",
        help="workdirs of runs, output directories of sweeps",
    )
    parser.add_argument(
        "--out", required=True, type=command_line.new_file(".html"), help="the .html to write"
    )
    parser.add_argument("--figure4", metavar="SOURCE", help="add Figure 4 of each run on these images")
    parser.add_argument("--title", default=None, help="by default the names of the directories")
    skip = "do not test the nets again, for the confusion matrix and the worst mistakes"
    parser.add_argument("--skip_test", action="store_true", help=skip)
    args = parser.parse_args(argv)
    from experiments import report_html, report_runs, report_sweep  # late, as they import JAX

    sweeps = [path for path in args.what if (path / "results.json").exists()]
    runs = [report_runs.read_run(path) for path in args.what if path not in sweeps]
    parts: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        for path in sweeps:
            results = json.loads((path / "results.json").read_text())
            if "rows" not in results:
                raise UserError(f"{path}: its results.json is not of a sweep")
            parts.append(report_html.paragraph(results["title"]))
            parts += report_sweep.of_sweep(results, pathlib.Path(directory))
        if runs:
            figure4, test = args.figure4, not args.skip_test
            parts += report_runs.of_runs(runs, pathlib.Path(directory), figure4, test=test)
    files.write_text(
        args.out, report_html.page(args.title or ", ".join(path.name for path in args.what), parts)
    )
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    command_line.command(main)
