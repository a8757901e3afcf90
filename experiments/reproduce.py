"""A table of the paper at full size: what it takes, the runs, and a certificate of what came out.

    python -m experiments.reproduce --table=1 --check --set data.source=tars:/data/ilsvrc2010
    python -m experiments.reproduce --table=1 --set data.source=tars:/data/ilsvrc2010 --price=2.50

Runs experiments/table1.py or table2.py as `python -m experiments.sweep` does, on all devices of this machine,
and goes on in the same way: the same command again runs what is not done. Beforehand it says how many images,
hours and, with --price, how much money that is; --check only says so, and what is done and missing, with or
without images. The speed is that of the runs so far, or else measured for half a minute. The certificate
(certificate.json and certificate.md) has our errors beside the paper's and the spread over seeds, the images,
hashes of the configs, machines, and what keeps it from the paper's table at full size.

--check also prints the commands of the missing runs, for several machines that train one run together (docs/
devices.md): the certificate is made from the workdirs, whoever filled them. The exit code is 1 while a run is
not done.

Nobody has run a table at full size yet; only small sets of images have been through this.
"""

import math
import pathlib
from collections.abc import Sequence

from alexnet_jax.common import command_line
from alexnet_jax.common.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser("experiments.reproduce", __doc__)
    parser.add_argument("--table", type=int, choices=(1, 2), required=True, help="the paper's table")
    parser.add_argument("--check", action="store_true", help="look only: what is done, missing, and its cost")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a config key for all runs, or 'ROW: KEY=VALUE' for a row's; may be repeated",
    )
    parser.add_argument("--runs", type=command_line.new_folder, help="workdirs; by default runs/table1 or 2")
    parser.add_argument("--out", type=command_line.new_folder, help="of the results; by default --runs")
    parser.add_argument(
        "--images_per_second", type=float, help="speed; by default the runs' own, or measured"
    )
    parser.add_argument("--price", type=float, help="price of the machine an hour, in any currency")
    args = parser.parse_args(argv)
    for name in ("images_per_second", "price"):
        if (value := getattr(args, name)) is not None and not 0 < value < math.inf:
            raise UserError(f"--{name}={value}: must be above 0")
    # Late, as they import JAX.
    from experiments import certificate, reproduction, sweep_plan, sweep_results, sweep_runs

    table = sweep_plan.read(sweep_plan.ROOT / "experiments" / f"table{args.table}.py")
    planned = reproduction.with_overrides(args.set, table)
    directory = args.runs or pathlib.Path(f"runs/table{args.table}")
    out = args.out or directory
    plain = sweep_plan.plan(table, directory)
    try:
        runs = sweep_plan.plan(planned, directory)
    except UserError as error:  # of --set, since the table's own configs stand
        raise UserError(str(error).replace(str(table.path), "--set", 1)) from error
    recorded = sweep_results.recorded(sweep_results.read(out), runs)
    missing = [run for run in runs if not run.has_ended() and run.workdir not in recorded]
    usual = {run.workdir: run.config.data.source for run in plain} if args.check else {}
    needed = [run for run in missing if run.config.data.source != usual.get(run.workdir)]
    reproduction.check_images(planned, needed)
    rate = args.images_per_second or (reproduction.images_per_second(runs, directory) if missing else None)
    if args.price and missing and not rate:
        raise UserError(f"--price={args.price}: the hours are not known; add --images_per_second")
    report = reproduction.report(planned, runs, missing, rate, args.price)
    print(f"{planned.title}\n{report}", end="", flush=True)
    if args.check:
        commands = (f"  {reproduction.command_of(run)}" for run in missing)
        print("commands of the missing runs" if missing else "nothing is missing", *commands, sep="\n")
        return 0
    results, _ = sweep_runs.make(planned, directory, out, jobs=1)
    found = reproduction.shortfalls(planned, runs, plain, results)
    print(certificate.write(out, planned, results, found), end="")
    done = all(run["status"] == "done" for row in results["rows"] for run in row["runs"])
    return 0 if done else command_line.FAULT


if __name__ == "__main__":
    command_line.command(main)
