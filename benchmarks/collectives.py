"""The communication between devices in a step, read from the program as written and as XLA compiled it."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from alexnet_jax.columns import COLUMN, DATA


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
      kind: `all-gather`, `reduce-scatter`, `all-reduce`, or another of XLA's.
      axis: the axis of the mesh, `data` or `column`; `data and column` for both.
      place: `conv3` for the exchange between columns before that layer, `logits` for that after fc8; empty if
        it belongs to no layer.
      backward: whether it belongs to the backward pass.
      bytes: size of the full array on each device: the result of a gather, the operand of a scatter or a
        reduction.
      parts: the number of arrays fused into it.
    """

    kind: str
    axis: str
    place: str
    backward: bool
    bytes: int
    parts: int = 1


# --- As compiled -----------------------------------------------------------------------------------------

_KINDS = "all-gather|reduce-scatter|all-reduce|all-to-all|collective-permute|collective-broadcast"
_LINE = re.compile(rf"= (?P<shapes>.+?) (?P<kind>{_KINDS})(?P<start>-start)?\((?P<rest>.*)$")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")
_GROUPS = re.compile(
    r"replica_groups=(?:\{(?P<listed>\{.*?\})\}"
    r"|\[(?P<shape>[\d,]+)\]<=\[(?P<iota>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?"
    r"|mesh\[(?P<mesh>[^\]]+)\] \{(?P<axes>[^}]+)\})"
)


def of_compiled(text: str, data: int, column: int) -> list[Collective]:
    """The collectives of a compiled program's HLO, in program order.

    Args:
      text: `jax.stages.Compiled.as_text()` of a program for a mesh of `data` times `column` devices.
    """
    found = []
    for line in text.splitlines():
        if not (match := _LINE.search(line)):
            continue
        kind, sizes = match["kind"], [_bytes(*shape) for shape in _SHAPE.findall(match["shapes"])]
        if match["start"] and kind == "all-gather":
            sizes = sizes[len(sizes) // 2 :]  # the operands come first, then the results
        axis = _axis(_group(match["rest"]), data, column)
        # The result of a scatter is one device's part of the operand.
        devices = {DATA: data, COLUMN: column}.get(axis, data * column) if kind == "reduce-scatter" else 1
        where = name[1] if (name := re.search(r'op_name="([^"]*)"', match["rest"])) else ""
        found.append(Collective(kind, axis, *_place(where), sum(sizes) * devices, len(sizes)))
    return found


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return math.prod(int(n) for n in shape.split(",") if n) * bits // 8


def _group(rest: str) -> list[int]:
    """The first group of devices, as positions in the mesh."""
    match = _GROUPS.search(rest)
    if match is None:
        return []
    if match["listed"]:
        return [int(n) for n in match["listed"].split("}")[0].strip("{").split(",")]
    if match["mesh"]:
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", match["mesh"])}
        grouped = re.findall(r"'(\w+)'", match["axes"])
        grid = np.arange(math.prod(sizes.values())).reshape(*sizes.values())
        return grid[tuple(slice(None) if name in grouped else 0 for name in sizes)].ravel().tolist()
    shape, iota = ([int(n) for n in match[key].split(",")] for key in ("shape", "iota"))
    grid = np.arange(math.prod(iota)).reshape(iota)
    if match["order"]:
        grid = grid.transpose([int(n) for n in match["order"].split(",")])
    return grid.reshape(shape)[0].tolist()


def _axis(group: list[int], data: int, column: int) -> str:
    rows, columns = zip(*(divmod(n, column) for n in group or range(data * column)), strict=True)
    names = [name for name, places in ((DATA, rows), (COLUMN, columns)) if len(set(places)) > 1]
    return " and ".join(names) or "none"


def _place(name: str) -> tuple[str, bool]:
    """The layer and whether it is the backward pass, from the names given by the model and by JAX."""
    layer = re.search(r"\bexchange_(\w+)", name)  # not the method `_exchange_before`
    return layer[1] if layer else "", "transpose(" in name


# --- As written ------------------------------------------------------------------------------------------

_PRIMITIVES = {
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "psum_scatter": "reduce-scatter",
    "psum": "all-reduce",
    "psum2": "all-reduce",
    "psum_invariant": "all-reduce",
}


def of_program(program: Any, mesh: Any) -> list[Collective]:
    """The collectives written in a program, in its order; XLA adds those of sums over the batch.

    Args:
      program: a closed jaxpr, such as `jax.jit(f).trace(x).jaxpr`.
      mesh: its mesh, which may be a `jax.sharding.AbstractMesh` of any number of devices.
    """
    found = []
    for name, equation in _equations(program.jaxpr, ""):
        kind = _PRIMITIVES.get(equation.primitive.name)
        axes = equation.params.get("axes", equation.params.get("axis_name", ())) if kind else ()
        axes = [axis for axis in ((axes,) if isinstance(axes, str) else axes) if mesh.shape[axis] > 1]
        if not axes:
            continue
        full = equation.outvars if kind == "all-gather" else equation.invars
        sizes = [math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in full]
        found.append(Collective(str(kind), " and ".join(axes), *_place(name), sum(sizes), len(sizes)))
    return found


def _equations(jaxpr: Any, scope: str) -> Iterator[tuple[str, Any]]:
    """All equations with their scopes, including those of inner programs."""
    for equation in jaxpr.eqns:
        name = f"{scope}/{equation.source_info.name_stack}"
        yield name, equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "jaxpr"):
                inner = inner.jaxpr
            if hasattr(inner, "eqns"):
                yield from _equations(inner, name)
