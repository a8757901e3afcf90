"""The report of `benchmarks.scaling` for people."""

from collections.abc import Sequence
from typing import Any


def as_text(values: dict[str, Any]) -> str:
    """Formats the values of `scaling.report` as tables and lines of text."""
    mesh, machine, memory = values["mesh"], values["machine"], values["bytes_a_device"]
    lines = [
        f"mesh        {mesh['data']} x {mesh['column']} (data x column), {values['batch_size']} images a "
        f"step, {values['batch_size'] // mesh['data']} a row of devices, {values['compute_dtype']}",
        "",
        "collectives of the step, compiled for this machine's CPU (which sends bfloat16 as float32):",
        *_collectives(values["collectives"]),
        "",
        f"parameters  {_size(memory['parameters'])} a device of {_size(memory['parameters_in_all'])}; "
        "the momentum takes the same again",
        f"memory      {_size(memory['peak'])} a device at the peak, by the compiler: state and batch "
        f"{_size(memory['state_and_batch'])}, temporary {_size(memory['temporary'])}",
        "",
        f"estimate with {machine['device']:g} TFLOP/s a device, {machine['column_link']:g} GB/s between "
        f"columns, {machine['data_link']:g} GB/s along data, {machine['latency']:g} us a collective, "
        "no overlap:",
        *_table(("computing", "between columns", "along data", "step"), [_times(values["seconds"])]),
        "",
        "estimates with the same number of images a row of devices:",
        *_on_paper(values["on_paper"]),
    ]
    return "\n".join(lines) + "\n"


def _collectives(collectives: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        (
            "backward" if one["backward"] else "forward",
            one["kind"],
            one["axis"],
            _what(one),
            f"{one['parts']}",
            f"{one['bytes']:,}",
        )
        for one in collectives
    ]
    return _table(("pass", "kind", "axis", "what", "arrays", "bytes"), rows)


def _on_paper(estimates: Sequence[dict[str, Any]]) -> list[str]:
    header = (
        "devices",
        "mesh",
        "batch",
        "parameters",
        "bytes between columns",
        "bytes along data",
        "computing",
        "between columns",
        "along data",
        "step",
        "images/s",
        "share computing",
    )
    rows = [
        (
            f"{one['devices']}",
            f"{one['data']} x {one['column']}",
            f"{one['batch_size']:,}",
            _size(one["parameter_bytes"]),
            f"{one['bytes_a_step']['column']:,}",
            f"{one['bytes_a_step']['data']:,}",
            *_times(one["seconds"]),
            f"{one['images_per_second']:,.0f}",
            f"{100 * one['computing']:.0f} %",
        )
        for one in estimates
    ]
    return _table(header, rows)


def _what(one: dict[str, Any]) -> str:
    if one["place"] == "logits":
        return "logits after fc8"
    if one["place"]:
        return f"before {one['place']}"
    return "gradients and metrics" if one["backward"] else "one number"


def _times(seconds: dict[str, float]) -> tuple[str, ...]:
    parts = (seconds["compute"], seconds["between_columns"], seconds["along_data"])
    return tuple(f"{1e3 * value:.3f} ms" for value in (*parts, sum(parts)))


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return ["  none"]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  " + "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in (head, *rows)
    ]
