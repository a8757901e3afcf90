"""What the benchmarks share: the machine's name, a child process that answers in JSON, tables."""

import csv
import json
import os
import pathlib
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]


def machine() -> dict[str, Any]:
    """The processor's name, its cores for this process, and the widest vectors it has."""
    name, vectors = platform.processor() or platform.machine(), platform.machine()
    try:
        cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        cpuinfo = ""
    if found := re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE):
        name = found[1].strip()
    if found := re.search(r"^flags\s*: (.*)$", cpuinfo, re.MULTILINE):
        flags = set(found[1].split())
        vectors = next((isa for isa in ("avx512f", "avx2", "avx") if isa in flags), vectors)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"machine": name, "cores": cores, "isa": vectors}


def available_bytes() -> int | None:
    """Memory that a new process may take without others being pushed out; None where Linux does not say."""
    try:
        found = re.search(
            r"^MemAvailable:\s*(\d+) kB", pathlib.Path("/proc/meminfo").read_text(), re.MULTILINE
        )
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def peak_bytes() -> int:
    """The largest part of memory that this process held; Linux counts `ru_maxrss` over from its parent."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def answer(
    command: Sequence[str], environment: Mapping[str, str] | None = None, timeout: float = 1800
) -> dict[str, Any]:
    """Runs a command and reads the JSON object in its last line.

    Returns:
      the object; or `{"failed": why}`, as a contestant that does not start is a fact for the table.
    """
    try:
        done = subprocess.run(
            [str(word) for word in command],
            env={**os.environ, **(environment or {}), "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {timeout:.0f} s"}
    except OSError as error:
        return {"failed": f"{command[0]}: {error.strerror}"}
    if done.returncode:
        if done.returncode < 0:
            return {"failed": f"ended by signal {-done.returncode}"}
        return {"failed": (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A Markdown table; numbers to the right."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    right = [
        any(isinstance(row.get(column), int | float) for row in rows) and column != columns[0]
        for column in columns
    ]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    lines = [
        " | ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        )
        for line in [list(columns), *cells]
    ]
    marks = ["-" * (w - 1) + ":" if to_right else "-" * w for w, to_right in zip(widths, right, strict=True)]
    lines.insert(1, " | ".join(marks))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return (
            f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
        )
    return str(value)


def write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """The rows with all their columns, each with what of `about` it does not say otherwise itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**row, **{key: value for key, value in about.items() if key not in row}} for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def ours_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.ours", *arguments]
