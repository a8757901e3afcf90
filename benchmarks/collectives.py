"""What devices tell each other in a step, read from the program as written and as XLA compiled it."""

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
      axis: of the mesh, `data` or `column`, along which they talk; `data and column` for both.
      place: `conv3` for what the columns tell each other before that layer, `logits` after fc8; empty for
        what belongs to no layer.
      backward: whether it belongs to the backward pass.
      bytes: of the whole array, in each device: what a gather gives, a scatter or a reduction takes.
      parts: how many arrays were fused into it.
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
    """The collectives of a compiled program's HLO, in its order.

    Args:
      text: of `jax.stages.Compiled.as_text()`, partitioned over a mesh of `data` times `column` devices.
    """
    found = []
    for line in text.splitlines():
        if not (match := _LINE.search(line)):
            continue
        kind, sizes = match["kind"], [_bytes(*shape) for shape in _SHAPE.findall(match["shapes"])]
        if match["start"] and kind == "all-gather":
            sizes = sizes[len(sizes) // 2 :]  # before them stands what goes in
        axis = _axis(_group(match["rest"]), data, column)
        # A scatter's result is its share of what it takes.
        share = {DATA: data, COLUMN: column}.get(axis, data * column) if kind == "reduce-scatter" else 1
        where = name[1] if (name := re.search(r'op_name="([^"]*)"', match["rest"])) else ""
        found.append(Collective(kind, axis, *_place(where), sum(sizes) * share, len(sizes)))
    return found


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return math.prod(int(n) for n in shape.split(",") if n) * bits // 8


def _group(rest: str) -> list[int]:
    """The devices, as places in the mesh, of which the first one's group consists."""
    match = _GROUPS.search(rest)
    if match is None:
        return []
    if match["listed"]:
        return [int(n) for n in match["listed"].split("}")[0].strip("{").split(",")]
    if match["mesh"]:
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", match["mesh"])}
        within = re.findall(r"'(\w+)'", match["axes"])
        grid = np.arange(math.prod(sizes.values())).reshape(*sizes.values())
        return grid[tuple(slice(None) if name in within else 0 for name in sizes)].ravel().tolist()
    shape, iota = ([int(n) for n in match[key].split(",")] for key in ("shape", "iota"))
    grid = np.arange(math.prod(iota)).reshape(iota)
    if match["order"]:
        grid = grid.transpose([int(n) for n in match["order"].split(",")])
    return grid.reshape(shape)[0].tolist()


def _axis(group: list[int], data: int, column: int) -> str:
    rows, columns = zip(*(divmod(n, column) for n in group or range(data * column)), strict=True)
    names = [name for name, its in ((DATA, rows), (COLUMN, columns)) if len(set(its)) > 1]
    return " and ".join(names) or "none"


def _place(name: str) -> tuple[str, bool]:
    """Layer and pass out of the names that the model and JAX give to what they compute."""
    layer = re.search(r"exchange_(\w+)", name)
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
    """The collectives that a program asks for by itself, in its order; XLA adds those of sums over a batch.

    Args:
      program: what `jax.make_jaxpr` gives.
      mesh: of it; may be a `jax.sharding.AbstractMesh`, of any number of devices that need not be there.
    """
    found = []
    for name, equation in _equations(program.jaxpr, ""):
        kind = _PRIMITIVES.get(equation.primitive.name)
        axes = equation.params.get("axes", equation.params.get("axis_name", ())) if kind else ()
        axes = [axis for axis in ((axes,) if isinstance(axes, str) else axes) if mesh.shape[axis] > 1]
        if not axes:
            continue
        wholes = equation.outvars if kind == "all-gather" else equation.invars
        sizes = [math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in wholes]
        found.append(Collective(str(kind), " and ".join(axes), *_place(name), sum(sizes), len(sizes)))
    return found


def _equations(jaxpr: Any, around: str) -> Iterator[tuple[str, Any]]:
    """All equations, those of inner programs too, with the names of what they are in."""
    for equation in jaxpr.eqns:
        name = f"{around}/{equation.source_info.name_stack}"
        yield name, equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "jaxpr"):
                inner = inner.jaxpr
            if hasattr(inner, "eqns"):
                yield from _equations(inner, name)
