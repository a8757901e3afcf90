"""Shared by the benchmarks: the machine, child processes that answer in JSON, tables.

Other projects' environments import this module, so it needs nothing but the standard library.
"""

import argparse
import contextlib
import csv
import json
import os
import pathlib
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
# Sizes for the rates of matrix products, and the bytes copied for the rate of memory.
PRODUCT_SIZES = (1024, 2048, 4096)
COPY_BYTES = 2**29
# glibc's variables that keep freed memory in the process, as `alexnet_jax.common.host.keep_memory` does.
KEPT_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}


class Parser(argparse.ArgumentParser):
    """The arguments of a benchmark, with its docstring as the help text."""

    def __init__(self, module: str, doc: str | None) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(f"python -m benchmarks.{module}", description=doc, formatter_class=formatter)


def numbers(text: str) -> list[int]:
    """The whole numbers of a flag such as `16,128`."""
    return [int(number) for number in text.split(",")]


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """The processor's name, the cores that this process may use, and the widest vector instructions."""
    name, vectors = platform.processor() or platform.machine(), platform.machine()
    try:
        cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        cpuinfo = ""
    if found := re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE):
        name = found[1].strip()
        # Virtual machines hide the number of the model: Zen 4 and Zen 5 are both "AMD EPYC" there.
        kind = dict(re.findall(r"^(cpu family|model)\s*: (\d+)$", cpuinfo, re.MULTILINE))
        name += f" (family {kind['cpu family']}, model {kind['model']})" if len(kind) == 2 else ""
    if found := re.search(r"^flags\s*: (.*)$", cpuinfo, re.MULTILINE):
        flags = set(found[1].split())
        vectors = next((isa for isa in ("avx512f", "avx2", "avx") if isa in flags), vectors)
    return {"machine": name, "cores": cores(), "isa": vectors}


def first_line(*command: str) -> str | None:
    """The first line that a command prints; None where there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.partition("\n")[0].strip() or None


def commit() -> str | None:
    """The commit of the code, `-dirty` if it was changed since; None if this is no checkout of git."""
    return first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*")


def of_operations(batch: int, rounds: int) -> dict[str, Any]:
    """What a table of single operations was measured with."""
    import jax  # not at the top: most benchmarks leave it to the processes that they time

    device = jax.devices()[0].device_kind
    measured = {"precision": "float32", "batch": batch, "rounds": rounds, "jax": jax.__version__}
    return {**machine(), "device": device, **measured}


def available_bytes() -> int | None:
    """The memory available to a new process without swapping; None if not on Linux."""
    return _kilobytes("/proc/meminfo", "MemAvailable")


def peak_bytes() -> int:
    """The peak memory of this process. (On Linux, `ru_maxrss` would include the parent's.)"""
    if (peak := _kilobytes("/proc/self/status", "VmHWM")) is not None:
        return peak
    return maxrss_bytes(resource.getrusage(resource.RUSAGE_SELF))


def maxrss_bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _kilobytes(path: str, key: str) -> int | None:
    """The bytes in a line `key: N kB` of one of Linux's files."""
    try:
        text = pathlib.Path(path).read_text()
    except OSError:
        return None
    found = re.search(rf"^{key}:\s*(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def answer(
    command: Sequence[str | os.PathLike[str]],
    environment: Mapping[str, str] | None = None,
    timeout: float = 1800,
) -> dict[str, Any]:
    """Runs a command and reads the JSON object in the last line of its output.

    Returns:
      the object; or `{"failed": reason}`, since a contestant that does not start is a result for the table.
    """
    lines, failed = answers(command, environment, timeout)
    return {"failed": failed} if failed else lines[-1]


def answers(
    command: Sequence[str | os.PathLike[str]],
    environment: Mapping[str, str] | None = None,
    timeout: float = 1800,
) -> tuple[list[dict[str, Any]], str | None]:
    """Runs a command, and ends it with all that it started after `timeout` seconds.

    Returns:
      the JSON objects in its output, a line each, up to its end or failure; and why it failed, if it did.
    """
    search_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(
                [str(word) for word in command],
                env={**os.environ, **(environment or {}), "PYTHONPATH": search_path},
                cwd=ROOT,
                stdout=out,
                stderr=errors,
                start_new_session=True,  # a group of its own, with what it starts
            )
        except OSError as error:
            return [], f"{command[0]}: {error.strerror}"
        failed = None
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            failed = f"not done in {timeout:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        errors.seek(0)
        lines = [
            json.loads(line)
            for line in out.read().splitlines()
            if line.startswith("{") and line.endswith("}")
        ]
        if failed is None and process.returncode < 0:
            failed = f"ended by signal {-process.returncode}"
        elif failed is None and process.returncode:
            failed = (errors.read().strip().splitlines() or ["no reason given"])[-1][:200]
        return lines, failed


def ours_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.ours", *arguments]


def heading(label: Mapping[str, Any]) -> str:
    """The line above a table: machine, device, precision, versions."""
    return ", ".join(f"{key} {value}" for key, value in label.items()) + "\n"


def publish(
    out: pathlib.Path | None,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    label: Mapping[str, Any],
) -> None:
    """Prints a table and, with `out`, writes `out/name.csv` and `out/name.md`."""
    text = heading(label) + "\n" + markdown(rows, columns)
    print(text, end="")
    if out:
        write_csv(out / f"{name}.csv", rows, label)
        (out / f"{name}.md").write_text(text)


def markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A Markdown table with numbers aligned to the right."""
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


def write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]], label: Mapping[str, Any]) -> None:
    """Writes the rows, each with those columns of `label` that it does not have itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**row, **{key: value for key, value in label.items() if key not in row}} for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)
