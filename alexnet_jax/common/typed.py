"""Converts config values to their declared types and checks their bounds."""

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Callable
from typing import Any

from alexnet_jax.common.errors import UserError

_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a string", tuple: "a tuple"}
_ABSTRACT = {int: numbers.Integral, float: numbers.Real}  # also accepts NumPy's numbers


@dataclasses.dataclass(frozen=True)
class Bound:
    """A condition on a value besides its type, for `Annotated[type, bound]`; None always passes.

    Attributes:
      holds: tests a value.
      words: text for the message, such as "must be above 0".
    """

    holds: Callable[[Any], bool]
    words: str


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


def some_of(*choices: Any) -> Bound:
    """A bound on a tuple: none but these."""
    return Bound(lambda values: set(values) <= set(choices), f"choose from {', '.join(map(str, choices))}")


def each(low: float, high: float) -> Bound:
    """A bound on every number in a tuple."""
    words = f"each must be at least {low} and at most {high:,.0f}"
    return Bound(lambda values: all(low <= value <= high for value in values), words)


def as_type(value: Any, hint: Any, key: str) -> Any:
    """Converts `value` to the type declared by `hint`.

    Integers count as floats, NumPy's numbers as Python's, and lists as tuples; True and False are not
    numbers, and floats are finite.

    Args:
      hint: `bool`, `int`, `float`, `str`, a `tuple[...]` of these or of such tuples, any of these `| None`,
        or any of these in `Annotated` with `Bound`s.
      key: the value's name in error messages.

    Raises:
      UserError: the value, or one in a tuple, has the wrong type or is out of bounds.
    """
    if typing.get_origin(hint) is typing.Annotated:
        kind, *notes = typing.get_args(hint)
        value = as_type(value, kind, key)
        for bound in (note for note in notes if isinstance(note, Bound)):
            if value is not None and not bound.holds(value):
                or_none = ", or None" if isinstance(kind, types.UnionType) else ""
                raise UserError(f"{key}={value!r}: {bound.words}{or_none}")
        return value
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        option = next(option for option in hint.__args__ if option is not types.NoneType)
        return None if value is None else as_type(value, option, key)
    kind = typing.get_origin(hint) or hint
    if kind is tuple and isinstance(value, list | tuple):
        return _as_tuple(value, typing.get_args(hint), key)
    if not isinstance(value, _ABSTRACT.get(kind, kind)) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{key}={value!r}: must be {_WORDS[kind]}")
    if kind is float:
        try:
            value = float(value)
        except OverflowError:  # an integer of hundreds of digits
            value = math.inf
        if not math.isfinite(value):
            raise UserError(f"{key}={value!r}: must be finite")
    return int(value) if kind is int else value


def _as_tuple(values: Any, hints: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(values)
    if len(values) != len(hints):
        words = ", ".join(_WORDS[hint] for hint in hints)
        raise UserError(f"{key}={values!r}: must be a tuple of {len(hints)}: {words}")
    return tuple(
        as_type(value, hint, f"{key}[{place}]")
        for place, (value, hint) in enumerate(zip(values, hints, strict=True))
    )
