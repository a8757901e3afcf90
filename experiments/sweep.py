"""Many runs of configs that differ in one thing, several seeds each: a table, a CSV file and a plot.

    python -m experiments.sweep experiments/ablations.py --runs=runs/ablations --out=ablations

A sweep is a Python file with

    CONFIG = "configs/default.py"                    the parent's config,
    PARENT = {"run.total_epochs": 2.0}               the parent's changes to that config,
    SEEDS = (0, 1, 2)
    ROWS = {"without norms": {"model.norm": False}}  and, row by row, the changes to the parent;

and optionally

    AGAINST = {"b": "a"}                             rows that are compared with another row than the parent,
    PAPER = {"without norms": (1.4, 1.2)}            the paper's result for a row: its top-1 and top-5 error
                                                     above the net that it is compared with, in points of %;
                                                     None for one that the paper does not give,
    TRAINING_ERROR = ("no weight decay",)            rows that are compared by their error in training, too,
    GROUPS = {"Normalisation": ("without norms",)}   headings of the plot, with their rows,
    ONLY = {"a": (0, 1)}                             rows that have fewer seeds than the others,
    START = {"fine-tuned": "pre-trained"}            rows that start from the weights of another row's run
                                                     with the same seed,
    ENSEMBLES = {"3 nets": {"parent": (0, 1, 2)}}    rows and seeds whose predictions are averaged,
    PUBLISHED = {"1 CNN": ("parent", 40.7, 18.2)}    a row's or ensemble's errors in the paper, for
                                                     `python -m experiments.reproduce`.

A row with "config" among its changes uses that config instead of CONFIG.

Each run does what `python main.py` does, in a process and a workdir of its own below --runs. The same command
again skips the runs that are done, continues those that were interrupted and retries those that failed; a run
that fails or diverges does not stop the others. The files in --out are made from the workdirs and from the
results.json that is already there: what ended with the same config (but for paths of files) is not run again,
so that a sweep goes on on another machine.
"""

import pathlib
from collections.abc import Sequence

from alexnet_jax.common import command_line
from alexnet_jax.common.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.sweep", __doc__)
    parser.add_argument("sweep", type=command_line.user_path, help="the sweep's file")
    parser.add_argument(
        "--runs",
        type=command_line.new_folder,
        help="directory of the workdirs; by default runs/ and the file's name",
    )
    out = "directory of tables and plots; by default --runs"
    parser.add_argument("--out", type=command_line.new_folder, help=out)
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time")
    parser.add_argument("--rows", action="append", metavar="ROW", help="run only this row; may be repeated")
    parser.add_argument(
        "--table", action="store_true", help="run nothing; make the tables from what is there"
    )
    args = parser.parse_args(argv)
    if args.jobs < 1:
        raise UserError(f"--jobs={args.jobs}: must be 1 or more")
    from experiments import sweep_plan, sweep_runs  # late, as they import JAX

    sweep = sweep_plan.read(args.sweep)
    directory = args.runs or pathlib.Path("runs") / args.sweep.stem
    jobs = 0 if args.table else args.jobs
    print(sweep_runs.make(sweep, directory, args.out or directory, jobs, args.rows)[1], end="")
    return 0


if __name__ == "__main__":
    command_line.command(main)
