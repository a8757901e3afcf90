"""Values as the types that they should have, or a line that names the one that is not."""

import math
import numbers
import types
import typing
from typing import Any

from alexnet_jax.common.errors import UserError

_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a string", tuple: "a tuple"}
_ABSTRACT = {int: numbers.Integral, float: numbers.Real}  # of which NumPy's numbers are, too


def as_type(value: Any, hint: Any, key: str) -> Any:
    """`value` as the type that `hint` says.

    Whole numbers count as floats, NumPy's numbers as Python's, and lists as tuples; True and False are no
    numbers, and floats are finite.

    Args:
      hint: `bool`, `int`, `float`, `str`, a `tuple[...]` of these or of such tuples, or one of them `| None`.
      key: what the value is called in a complaint.

    Raises:
      UserError: it is not of that type, nor all that is in it.
    """
    if isinstance(hint, types.UnionType):
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
        except OverflowError:  # a whole number of hundreds of digits
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
