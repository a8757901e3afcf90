"""What a sweep consists of: its file, checked, and the runs that follow from it."""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from alexnet_jax import config as configs
from alexnet_jax.common.errors import UserError, did_you_mean
from alexnet_jax.run import logs
from alexnet_jax.run import workdir as workdirs

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARENT = "parent"
ENDS = ("done", "diverged")  # runs with any other status are run again
SESSIONS = "sweep.jsonl"  # in a workdir: the seconds and the machine of each time that the run was started
NAMES = (
    *("CONFIG", "PARENT", "SEEDS", "ROWS", "AGAINST", "PAPER", "TRAINING_ERROR", "GROUPS"),
    *("ONLY", "START", "ENSEMBLES", "PUBLISHED"),
)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep's file, checked. `rows` begins with the parent, which changes nothing."""

    path: pathlib.Path
    title: str
    config: str
    parent: dict[str, Any]
    seeds: tuple[int, ...]
    rows: dict[str, dict[str, Any]]
    against: dict[str, str]
    paper: dict[str, tuple[float | None, float | None]]
    training_error: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    only: dict[str, tuple[int, ...]]
    start: dict[str, str]
    ensembles: dict[str, dict[str, tuple[int, ...]]]
    published: dict[str, tuple[str, float, float]]

    def seeds_of(self, row: str) -> tuple[int, ...]:
        return self.only.get(row, self.seeds)

    def name_of(self, row: str) -> str:
        """What the paper calls a row that it has, else the row."""
        return next((system for system, (name, *_) in self.published.items() if name == row), row)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
      overrides: values by dotted key that differ from `config_path`.
      after: the run whose final weights this one starts from.
    """

    row: str
    seed: int
    workdir: pathlib.Path
    config_path: str
    overrides: dict[str, Any]
    config: configs.Config
    after: "Run | None" = None

    def status(self) -> dict[str, Any]:
        """What `status.json` says, or `{"status": "not begun"}` if there is none."""
        try:
            return workdirs.read_status(self.workdir)
        except FileNotFoundError:
            return {"status": "not begun"}
        except ValueError as error:
            raise UserError(
                f"{self.workdir / logs.STATUS}: damaged ({error}); delete the directory"
            ) from error

    def has_ended(self) -> bool:
        return self.status()["status"] in ENDS

    @functools.cached_property
    def config_hash(self) -> str:
        """16 hex digits that are the same wherever the same run is made: paths of files do not count.

        Nor do keys without a value, so that a switch which the net gets later leaves the hashes as they are.
        """
        run, init = self.config.run, self.config.init
        values = {**configs.fixed_values(self.config), "run.total": (run.total_steps, run.total_epochs)}
        kind, _, path = self.config.data.source.partition(":")
        values["data.source"] = f"tfds:{path}" if kind == "tfds" else kind
        values["init.mean"] = pathlib.Path(init.mean).name if init.mean else None
        if init.path:
            values["init.path"] = self.after.config_hash if self.after else pathlib.Path(init.path).name
        given = {key: value for key, value in values.items() if value is not None}
        return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]

    def progress(self) -> float:
        """The fraction of the steps that are done, 0 to 1, from the last line of the metrics."""
        try:
            last = (self.workdir / logs.METRICS).read_text().splitlines()[-1]
            values = json.loads(last)
        except (OSError, IndexError, ValueError):
            return 0.0
        run = self.config.run
        done = values["step"] / run.total_steps if run.total_steps else values["epoch"] / run.total_epochs
        return min(done, 1.0)


def read(path: str | pathlib.Path) -> Sweep:
    """Reads a sweep's file.

    Raises:
      UserError: the file is missing, cannot be executed, or one of its names is missing or wrong.
    """
    path = pathlib.Path(path)
    module = _execute(path, "a sweep")
    given = {name: value for name, value in vars(module).items() if name.isupper()}
    if unknown := sorted(set(given) - set(NAMES)):
        raise UserError(
            f"{path}: {unknown[0]} means nothing in a sweep; {did_you_mean(unknown[0], sorted(NAMES))}"
        )
    for name, kind in (("CONFIG", str), ("SEEDS", tuple), ("ROWS", dict)):
        if not isinstance(given.get(name), kind) or not (given[name] or name == "ROWS"):
            raise UserError(f"{path}: {name} must be a {kind.__name__}, and not an empty one")
    sweep = Sweep(
        path=path,
        title=(module.__doc__ or path.stem).strip().splitlines()[0],
        config=given["CONFIG"],
        parent=given.get("PARENT", {}),
        seeds=given["SEEDS"],
        rows={PARENT: {}, **given["ROWS"]},
        against=given.get("AGAINST", {}),
        paper=given.get("PAPER", {}),
        training_error=given.get("TRAINING_ERROR", ()),
        groups=given.get("GROUPS", {}),
        only=given.get("ONLY", {}),
        start=given.get("START", {}),
        ensembles=given.get("ENSEMBLES", {}),
        published=given.get("PUBLISHED", {}),
    )
    _check_rows(sweep)
    return sweep


def _check_rows(sweep: Sweep) -> None:
    """Raises `UserError` where a name of the file refers to a row or a run that the sweep does not have."""
    path, rows = sweep.path, list(sweep.rows)
    for name, named in (
        ("AGAINST", {*sweep.against, *sweep.against.values()}),
        ("PAPER", set(sweep.paper)),
        ("TRAINING_ERROR", set(sweep.training_error)),
        ("GROUPS", {row for rows in sweep.groups.values() for row in rows}),
        ("ONLY", set(sweep.only)),
        ("START", {*sweep.start, *sweep.start.values()}),
    ):
        if unknown := sorted(named - set(rows)):
            raise UserError(f"{path}: {name} has {unknown[0]!r}, which is no row")
    for system, (name, *_) in sweep.published.items():
        if name not in {*rows, *sweep.ensembles}:
            raise UserError(f"{path}: PUBLISHED: {system!r} is {name!r}, which is no row and no ensemble")
    for row, other in sweep.start.items():
        if other not in rows[: rows.index(row)]:
            raise UserError(f"{path}: START: {row!r} must come after {other!r}, whose weights it starts from")
    for name, members in sweep.ensembles.items():
        for row, seeds in members.items():
            if row not in rows or not set(seeds) <= set(sweep.seeds_of(row)):
                raise UserError(
                    f"{path}: ENSEMBLES: {name!r} has runs of {row!r} that the sweep does not have"
                )


def _execute(path: pathlib.Path, what: str) -> Any:
    spec = importlib.util.spec_from_file_location(re.sub(r"\W", "_", path.stem), path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"{path}: no such file; give {what}, which is a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path}: the file is broken ({type(error).__name__}: {error})") from error
    return module


def plan(sweep: Sweep, runs: pathlib.Path, rows: Sequence[str] | None = None) -> list[Run]:
    """All runs in `runs`, ordered so that each comes after the run whose weights it starts from.

    Args:
      rows: the rows to run, and the rows that they start from; all by default.

    Raises:
      UserError: a row is unknown, or its config is wrong.
    """
    if unknown := [row for row in rows or () if row not in sweep.rows]:
        raise UserError(f"--rows={unknown[0]}: the sweep has {', '.join(sweep.rows)}")
    wanted = {*(rows or sweep.rows), *(sweep.start.get(row) for row in rows or ())}
    planned: dict[tuple[str, int], Run] = {}
    # Seed by seed, so that a sweep that is cut short has complete comparisons.
    for seed in sweep.seeds:
        for row in sweep.rows:
            if seed in sweep.seeds_of(row) and row in wanted:
                planned[row, seed] = _plan_run(sweep, runs, row, seed, planned)
    if len({run.workdir for run in planned.values()}) < len(planned):
        raise UserError(
            f"{sweep.path}: two rows differ only in characters that a directory's name cannot have"
        )
    return list(planned.values())


def _plan_run(
    sweep: Sweep, runs: pathlib.Path, row: str, seed: int, planned: dict[tuple[str, int], Run]
) -> Run:
    changes = {**sweep.parent, **sweep.rows[row]}
    config_path = changes.pop("config", sweep.config)
    overrides = {"run.seed": seed, **changes}
    after = planned.get((sweep.start.get(row, ""), seed))
    if row in sweep.start:
        if after is None:
            raise UserError(f"{sweep.path}: START: {row!r} has seed {seed}, {sweep.start[row]!r} does not")
        overrides["init.path"] = str(after.workdir.resolve())
    try:
        config = configs.resolve(read_config(config_path), overrides)
    except UserError as error:
        raise UserError(f"{sweep.path}: {row!r}: {error}") from error
    name = re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-")
    return Run(row, seed, runs / f"{name}-{seed}", config_path, overrides, config, after)


@functools.cache
def read_config(path: str) -> Any:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return _execute(ROOT / path, "a config").get_config()
