"""Reads pickles without running code from them."""

import pickle
from collections.abc import Mapping
from typing import IO, Any

from alexnet_jax.common.errors import UserError


class Unpickler(pickle.Unpickler):
    """Loads dictionaries, lists, strings and numbers, and what a few names construct; refuses other names.

    Args:
      names: what stands for each `module.name` that a pickle may use: new objects for each file, because a
        pickle can set their attributes.
      advice: how to save such a file again, for messages.
    """

    def __init__(self, file: IO[bytes], names: Mapping[str, Any], advice: str) -> None:
        super().__init__(file, encoding="latin-1")  # Python 2's byte strings, whatever they contain
        self._names, self._advice = names, advice

    def load(self) -> Any:
        try:
            return super().load()
        except MemoryError as error:  # in a damaged pickle, an object's number or a size may be huge
            raise pickle.UnpicklingError("it asks for more memory than there is") from error

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._names[f"{module}.{name}"]
        except KeyError:
            raise UserError(
                f"refused, since its pickle names {module}.{name}, which is no part of a tensor and could "
                f"run code; if you trust the file, {self._advice}"
            ) from None
