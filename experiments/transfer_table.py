"""The table and the plot of `experiments.transfer`, made from its results alone."""

import pathlib
from typing import Any

import numpy as np

from alexnet_jax.common import files
from experiments import plots
from experiments import sweep_statistics as statistics

NORMAL = 1.96  # standard deviations of 95 %
STYLES = {"scratch": ("C3", "s"), "trained": ("C0", "o"), "probe": ("0.45", "D")}  # from the worst down


def errors(results: dict[str, Any], arm: str, size: int | None) -> dict[int, float]:
    """The test errors in % by seed."""
    return {run["seed"]: run["error"] for run in results["runs"] if (run["arm"], run["size"]) == (arm, size)}


def half_width(values: dict[int, float]) -> float | None:
    """That of Student's 95 % interval of the mean over seeds; None for one seed."""
    found = statistics.difference(values, dict.fromkeys(values, 0.0), None)
    return found.own if found else None


def by_photographs(results: dict[str, Any], *values: dict[int, float]) -> float:
    """Half width in points of the 95 % interval that the number of test photographs leaves (binomial).

    That of a difference is for independent errors, and so too wide where two arms miss the same photographs.
    """
    means = [np.mean(list(one.values())) / 100 for one in values]
    return 100 * NORMAL * float(np.sqrt(sum(p * (1 - p) for p in means) / sum(results["test"].values())))


def sizes(results: dict[str, Any]) -> list[int | None]:
    return list(dict.fromkeys(run["size"] for run in results["runs"]))


def cell(results: dict[str, Any], arm: str, size: int | None) -> str:
    """As `9.2 ± 1.1 (± 4.6), n = 5`."""
    if not (values := errors(results, arm, size)):
        return ""
    half = half_width(values)
    seeds = "" if half is None else f" ± {half:.1f}"
    mean, sample = np.mean(list(values.values())), by_photographs(results, values)
    return f"{mean:.1f}{seeds} (± {sample:.1f}), n = {len(values)}"


def gap(results: dict[str, Any], size: int | None) -> str:
    """From scratch minus trained, paired by seed."""
    scratch, trained = (errors(results, arm, size) for arm in ("scratch", "trained"))
    found = statistics.difference(scratch, trained, None)
    if found is None or found.own is None:
        return ""
    return f"{found.mean:+.1f} ± {found.own:.1f} (± {by_photographs(results, scratch, trained):.1f})"


def text(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    train, test = (sum(results[part].values()) for part in ("train", "test"))
    labels = results["arms"]
    machines = "; ".join(sorted({run["machine"] for run in results["runs"] if "machine" in run}))
    lines = [
        f"Top-1 error in % on {test} photographs, central patch, at the end of each run: mean, half width of "
        "Student's 95 % interval over the n seeds and, in brackets, of the binomial interval that the number "
        f"of test photographs leaves. Always the commoner class: {commoner(results):.1f} %. {machines}.",
        "",
        f"| photographs a class | {' | '.join(labels[arm] for arm in STYLES)} | scratch - trained, points |",
        "|---|---|---|---|---|",
    ]
    for size in sizes(results):
        name = size or f"all: {' and '.join(map(str, results['train'].values()))}"
        cells = (cell(results, arm, size) for arm in STYLES)
        lines.append(f"| {name} | {' | '.join(cells)} | {gap(results, size)} |")
    lines += [
        "",
        f"Chosen by cross-validation on the {train} training photographs: error in % over the folds, each "
        "held out once.",
        "",
        "| arm | tried | error | loss | by fold | |",
        "|---|---|---|---|---|---|",
    ]
    for arm, tried in results["tried"].items():
        for name, ends in tried.items():
            by_fold = ", ".join(f"{end['error']:.1f}" for end in ends)
            error, loss = (np.mean([end[key] for end in ends]) for key in ("error", "loss"))
            mark = "chosen" if name == results["chosen"][arm] else ""
            lines.append(f"| {labels[arm]} | {name} | {error:.1f} | {loss:.3f} | {by_fold} | {mark} |")
    return "\n".join(lines) + "\n"


def commoner(results: dict[str, Any]) -> float:
    """The error in % of naming the commoner class always."""
    counts = results["test"].values()
    return 100 * (1 - max(counts) / sum(counts))


def plot(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Test error against photographs a class: a dot for each run, means with 95 % intervals over seeds.

    Two seeds' interval, 12.7 standard errors wide to each side, is in the table alone.
    """
    largest = round(np.mean(list(results["train"].values())))
    with plots.figure(path, height=3.6) as (picture, axes):
        for number, (arm, (colour, marker)) in enumerate(STYLES.items()):
            found = [(size or largest, errors(results, arm, size)) for size in sizes(results)]
            found = [(x, values) for x, values in found if values]
            x, y = [0.97 ** (1 - number) * x for x, _ in found], [np.mean([*v.values()]) for _, v in found]
            half = [half_width(values) or 0.0 if len(values) > 2 else 0.0 for _, values in found]
            for place, (_, values) in zip(x, found, strict=True):
                axes.plot([place] * len(values), list(values.values()), ".", color=colour, alpha=0.35, ms=4)
            axes.errorbar(
                x, y, yerr=half, color=colour, marker=marker, ms=4.5, capsize=2, label=results["arms"][arm]
            )
        axes.axhline(commoner(results), color="0.6", linestyle="--", label="always the commoner class")
        axes.set_xscale("log")
        places = [size or largest for size in sizes(results)]
        axes.set_xticks(places, [str(size or f"all\n({largest})") for size in sizes(results)])
        axes.set_xticks([], minor=True)
        axes.set(xlabel="training photographs of each class", ylabel="top-1 test error, %", ylim=(0, None))
        plots.legend_above(picture, axes, columns=1)


def write(results: dict[str, Any], out: pathlib.Path) -> str:
    """Writes `table.md` and `errors.svg`; returns the table."""
    files.write_text(out / "table.md", made := text(results))
    plot(out / "errors.svg", results)
    return made
