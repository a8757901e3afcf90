"""Converts config values to their declared types and checks their bounds."""

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Callable
from typing import Any

from alexnet_jax.common.errors import UserError, did_you_mean

_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a string", tuple: "a tuple"}
_ABSTRACT = {int: numbers.Integral, float: numbers.Real}  # also accepts NumPy's numbers


@dataclasses.dataclass(frozen=True)
class Bound:
    """A condition on a value besides its type, for `Annotated[type, bound]`; None always passes."""

    holds: Callable[[Any], bool]
    words: str  # for the message, such as "must be above 0"


def at_least(low: float) -> Bound:
    return Bound(lambda value: value >= low, f"must be {low} or more")


def above(low: float) -> Bound:
    return Bound(lambda value: value > low, f"must be above {low}")


def below(high: float) -> Bound:
    return Bound(lambda value: value < high, f"must be below {high:,}")


def at_most(high: float) -> Bound:
    return Bound(lambda value: value <= high, f"must be at most {high:,.0f}")


def one_of(*choices: Any) -> Bound:
    return Bound(lambda value: value in choices, f"choose one of {', '.join(map(str, choices))}")


def plain_type(hint: Any) -> type:
    """The type in a hint such as `Annotated[tuple[int, ...], bound] | None`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    return plain_type(args[0]) if args and origin is not tuple else origin or hint


def check_keys(values: dict[str, Any], known: Any, prefix: str) -> None:
    """Raises `UserError` unless `values` has exactly the keys `known`; `prefix` precedes them in messages."""
    for key in values:
        if key not in known:
            remedy = did_you_mean(f"{prefix}{key}", [f"{prefix}{name}" for name in known])
            raise UserError(f"{prefix}{key}: no such key in a config; {remedy}")
    for key in known:
        if key not in values:
            raise UserError(f"{prefix}{key}: missing in the config; configs/default.py sets every key")


def as_type(value: Any, hint: Any, key: str) -> Any:
    """Converts `value` to the type declared by `hint`.

    Integers count as floats, NumPy's numbers as Python's, and lists as tuples; True and False are not
    numbers, and floats are finite.

    Args:
      hint: `bool`, `int`, `float`, `str`, or a `tuple[...]` of hints; also `... | None`, or in `Annotated`
        with `Bound`s.
      key: the value's name in error messages.

    Raises:
      UserError: the value, or one in a tuple, has the wrong type or is out of bounds.
    """
    kind, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is typing.Annotated:
        value = as_type(value, args[0], key)
        for bound in args[1:]:
            if isinstance(bound, Bound) and value is not None and not bound.holds(value):
                or_none = ", or None" if isinstance(args[0], types.UnionType) else ""
                raise UserError(f"{key}={value!r}: {bound.words}{or_none}")
        return value
    if kind in (types.UnionType, typing.Union):
        return None if value is None else as_type(value, args[0], key)
    if kind is tuple and isinstance(value, list | tuple):
        hints = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(value) != len(hints):
            words = ", ".join(_WORDS[hint] for hint in hints)
            raise UserError(f"{key}={value!r}: must be a tuple of {len(hints)}: {words}")
        return tuple(as_type(one, hints[i], f"{key}[{i}]") for i, one in enumerate(value))
    if not isinstance(value, _ABSTRACT.get(kind, kind)) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{key}={value!r}: must be {_WORDS[kind]}")
    if kind is not float:
        return int(value) if kind is int else value
    try:
        value = float(value)
    except OverflowError:  # an integer of hundreds of digits
        value = math.inf
    if not math.isfinite(value):
        raise UserError(f"{key}={value!r}: must be finite")
    return value
