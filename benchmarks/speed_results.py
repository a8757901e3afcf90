"""The results of `benchmarks.speed`: what each process measured, the table's rows, and the goals."""

import json
import pathlib
import re
import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.contestants import AS_IT_COMES, Contestant

# Comparisons: ours, the other, whether the other is as it comes or at its best, and the ratio to reach.
GOALS = (
    ("ours paper train", "PyTorch paper train", AS_IT_COMES, 2.2),
    ("ours paper train", "PyTorch paper train", "best", 1.25),
    ("ours paper train", "PyTorch no lrn train", "best", 0.9),
    ("ours paper train", "limit", "", 0.68),
    ("ours paper forward", "PyTorch paper forward", AS_IT_COMES, 1.9),
    ("ours paper forward", "PyTorch paper forward", "best", 1.3),
    ("ours torchvision train", "PyTorch torchvision train", AS_IT_COMES, 1.0),
    ("ours torchvision train", "PyTorch torchvision train", "best", 1.0),
    ("ours torchvision forward", "PyTorch torchvision forward", AS_IT_COMES, 1.0),
    ("ours torchvision forward", "PyTorch torchvision forward", "best", 1.0),
    ("ours torchvision train", "eqxvision train", AS_IT_COMES, 1.0),
    ("ours torchvision forward", "eqxvision forward", AS_IT_COMES, 1.0),
    ("ours paper ten views", "ours paper forward", "", 0.95),
)
MOST_GIGABYTES = 6.0  # of "ours paper train" at batch 128


class Results:
    """The processes' results, one JSON line each in a file; only lines with the values of `same` count."""

    def __init__(self, path: pathlib.Path, same: dict[str, Any]) -> None:
        self._path, self._same = path, same
        lines = path.read_text().splitlines() if path.exists() else []
        self._lines = [line for line in map(json.loads, lines) if same.items() <= line.items()]

    def add(self, contestant: Contestant, part: str, result: dict[str, Any]) -> None:
        """Appends a result. `part` is `search` or `round N`."""
        line = {"contestant": contestant.name, "setting": contestant.setting, "part": part}
        line |= {**self._same, **result}
        self._lines.append(line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def has(self, contestant: Contestant, part: str) -> bool:
        return any(line["part"] == part for line in self._of(contestant.name, contestant.setting))

    def _of(self, name: str, setting: str | None = None) -> list[dict[str, Any]]:
        return [
            line for line in self._lines if line["contestant"] == name and setting in (None, line["setting"])
        ]

    def is_final(self, contestant: Contestant, finalists: int) -> bool:
        """Whether its setting was among the fastest in the search."""
        tried = [line for line in self._of(contestant.name) if line["part"] == "search" and "seconds" in line]
        tried.sort(key=lambda line: statistics.median(line["seconds"]))
        return contestant.setting in [line["setting"] for line in tried[:finalists]]

    def rounds(self, name: str, setting: str) -> list[dict[str, Any]]:
        return [line for line in self._of(name, setting) if line["part"] != "search" and "failed" not in line]

    def product_rate(self) -> float | None:
        """The highest rate of matrix products: the best library and size, by their medians."""
        rates = [item for line in self._lines for item in line.get("product_rates", {}).items()]
        return _highest_median(rates)

    def copy_rate(self) -> float | None:
        """The highest rate of copying memory, in bytes a second."""
        key = "copy_bytes_per_second"
        return _highest_median([(line["contestant"], line[key]) for line in self._lines if key in line])

    def operations(self, name: str) -> float | None:
        """Operations of an image, counted on our net, which does the same work as the others'."""
        own = re.sub("^PyTorch (no lrn|paper)", "ours paper", name).replace("PyTorch", "ours")
        own = own.replace("eqxvision", "ours torchvision")
        return next((line["operations"] for line in self._of(own) if "operations" in line), None)

    def rate(self, name: str, setting: str) -> float | None:
        """Images a second: the median of the rounds; with the setting `best`, that of the fastest setting."""
        settings = dict.fromkeys(line["setting"] for line in self._of(name))
        if setting != "best":
            settings = {setting: None} if setting in settings else {}
        rates = [
            statistics.median(map(_rate, rounds)) for one in settings if (rounds := self.rounds(name, one))
        ]
        return max(rates, default=None)

    def rows(self, peaks: list[float] | None) -> list[dict[str, Any]]:
        """A row for each contestant and setting, at the end those that were only tried once.

        Args:
          peaks: the chip's published peaks in float32 and bfloat16, in 1e12 operations a second, if known.
        """
        rows = []
        product, copy = self.product_rate(), self.copy_rate()
        if product and copy:
            rows.append({"contestant": "limit: matrix products", "setting": f"{product / 1e9:.0f} GFLOP/s"})
            rows.append({"contestant": "limit: memory copied", "setting": f"{copy / 1e9:.1f} GB/s"})
        kinds = dict.fromkeys((line["contestant"], line["setting"]) for line in self._lines)
        rows += [row for kind in kinds if (row := self._row(*kind, product, peaks))]
        return sorted(rows, key=lambda row: row.get("rounds") == "tried once")

    def _row(
        self, name: str, setting: str, product: float | None, peaks: list[float] | None
    ) -> dict[str, Any] | None:
        """A contestant's row; None if it only measured the machine."""
        lines, rounds = self._of(name, setting), self.rounds(name, setting)
        tried = [line for line in lines if line["part"] == "search"]
        counted = [line for line in rounds or tried if "seconds" in line]
        if not counted:
            failed = [line["failed"] for line in lines if "failed" in line]
            return {"contestant": name, "setting": f"{setting}: {failed[-1]}"} if failed else None
        rates = [_rate(line) for line in counted]
        median, operations = statistics.median(rates), self.operations(name)
        row = {
            "contestant": name,
            "setting": setting,
            "images/s": median,
            "spread": f"{min(rates):.1f}-{max(rates):.1f}",
            "ms an image": 1000 / median,
            "peak GB": max(line["peak_bytes"] or 0 for line in counted) / 1e9,
            "rounds": str(len(rounds)) if rounds else "tried once",
        }
        if operations and product:
            row["share of the limit"] = median * operations / product
        if operations and peaks and (peak := peaks[setting == "bfloat16"]):
            row["of peak"] = median * operations / (peak * 1e12)
        return row


def _rate(line: dict[str, Any]) -> float:
    return line["images"] / statistics.median(line["seconds"])


def _highest_median(rates: Iterable[tuple[str, float]]) -> float | None:
    """The highest of the medians of all rates with the same name."""
    by_name: dict[str, list[float]] = {}
    for name, rate in rates:
        by_name.setdefault(name, []).append(rate)
    return max(map(statistics.median, by_name.values()), default=None)


def judge(results: Results) -> list[dict[str, Any]]:
    """The ratios of `GOALS` that were measured, and whether they are reached."""
    rows = []
    for mine, other, setting, goal in GOALS:
        rate = results.rate(mine, "")
        if other == "limit":
            product, operations = results.product_rate(), results.operations(mine)
            against = product / operations if product and operations else None
        else:
            against = results.rate(other, setting)
        if rate and against:
            ratio = rate / against
            rows.append(_judged(mine, f"{other}, {setting}".strip(", "), ratio, goal, ratio >= goal))
    peaks = [line["peak_bytes"] for line in results.rounds("ours paper train", "")]
    if peaks:
        most = max(peaks) / 1e9
        what = "peak memory in GB, at most"
        rows.append(_judged("ours paper train", what, most, MOST_GIGABYTES, most < MOST_GIGABYTES))
    return rows


def _judged(ours: str, against: str, ratio: float, goal: float, reached: bool) -> dict[str, Any]:
    return {
        "ours": ours,
        "against": against,
        "ratio": ratio,
        "goal": goal,
        "reached": "yes" if reached else "no",
    }
