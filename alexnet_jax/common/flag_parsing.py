"""Parses `--config` and the other flags of a run: absl's and ml_collections' flags with one-line errors."""

import pathlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from absl import flags, logging

from alexnet_jax.common import host, paths
from alexnet_jax.common.errors import UserError, closest, did_you_mean, one_line

_CONFIG = re.compile(r"--?config(?:=(.*))?", re.DOTALL)
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
_HELP = {"--help", "-h", "-help", "--helpshort", "--helpfull"}
_NO_CONFIG = "--config={}: its get_config() gives no config; it must return an ml_collections.ConfigDict"


def parse(
    define_flags: Callable[[], None], directory: pathlib.Path, known_keys: Callable[[], list[str]] = list
) -> bool:
    """Defines the flags and parses `sys.argv`; for `--help`, prints the help and returns False.

    `--config` may name a config in `directory`; the default is `default.py` there.
    `--config.KEY=None` sets a key of any type to None.

    Args:
      define_flags: called here and not earlier: `DEFINE_config_file` reads `sys.argv`, and a mistake in a
        flag file would end in a traceback.
      directory: contains the package's configs.
      known_keys: gives the keys of a config, such as `data.batch_size`; called for a mistake in one.

    Raises:
      UserError: a flag or a config key is unknown, a value has the wrong type, a config file is missing or
        broken, or an argument is not a flag.
    """
    try:
        sys.argv[1:] = flags.FLAGS.read_flags_from_files(sys.argv[1:], force_gnu=False)
    except (flags.Error, UnicodeError) as error:
        reason = one_line(_first(error))
        raise UserError(f"--flagfile: give a text file with a flag per line ({reason})") from error
    define_flags()
    if _HELP & set(sys.argv):
        module = define_flags.__module__
        own = flags.FLAGS.main_module_help() if module == "__main__" else flags.FLAGS.module_help(module)
        own = own.replace("\n    (default: 'None')", "")  # of --config, whose text names its default
        print(f"{sys.modules[module].__doc__}\n{own.strip()}")
        return False
    words, path = _with_config(sys.argv, directory)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # ml_collections would warn about what is an error below
    try:
        _parse(words, path, known_keys)
    finally:
        logging.set_verbosity(verbosity)
    return True


def gives_config(argv: list[str]) -> bool:
    """Whether `argv` has a `--config`."""
    return any(_CONFIG.fullmatch(word) for word in argv)


def _with_config(argv: list[str], directory: pathlib.Path) -> tuple[list[str], str]:
    """`argv` with a single `--config=PATH` (the last one given, or the default), and that path."""
    others, path = [], str(directory / "default.py")
    words = iter(argv)
    for word in words:
        if match := _CONFIG.fullmatch(word):
            path = next(words, "") if match[1] is None else match[1]
        else:
            others.append(word)
    path = str(paths.expanded(path)) if path.startswith("~") else path
    file = pathlib.Path(path.split(":", 1)[0])
    shipped = directory / f"{file.stem}.py"
    if not file.is_file() and str(file.parent) in (".", "configs") and file.suffix in ("", ".py"):
        path, file = path.replace(str(file), str(shipped), 1) if shipped.is_file() else path, shipped
    if not file.is_file():
        known = sorted(config.stem for config in directory.glob("*.py"))
        is_directory = path and pathlib.Path(path).is_dir()
        reason = "is a directory" if is_directory else f"no such file; {did_you_mean(file.stem, known)}"
        raise UserError(f"--config={path}: {reason}")
    return [others[0], f"--config={path}", *others[1:]], path


def similar_key(word: str, keys: Iterable[str]) -> str | None:
    """The key of a config that is probably meant by `word`, with or without a section; None if none is."""
    word = word.rpartition(".")[2]
    names = {key.rpartition(".")[2]: key for key in keys}
    return names.get(closest(word, names) or "")


def _parse(argv: list[str], path: str, known_keys: Callable[[], list[str]]) -> None:
    """Parses `argv` into `flags.FLAGS`."""
    given = {match[1]: match[2] for word in argv if (match := _OVERRIDE.fullmatch(word))}
    if wrong := [key for key in given if not re.fullmatch(r"\w+\.\w+", key)]:
        similar = similar_key(wrong[0], known_keys())
        example = "keys look like data.batch_size, see configs/default.py"
        hint = f"did you mean --config.{similar}?" if similar else example
        raise UserError(f"--config.{wrong[0]}: no such key; {hint}")
    # ml_collections cannot parse None but accepts it in its list of overrides.
    nones = {key: None for key, value in given.items() if value == "None"}
    words = [word for word in argv if not (_OVERRIDE.fullmatch(word) and word.endswith("=None"))]
    try:
        rest = flags.FLAGS(words)
        config: Any = flags.FLAGS["config"]
        config.override_values.update(nones)
        is_config = hasattr(config.value, "items")  # raises here if the file cannot be loaded
    except Exception as error:
        in_file = "whilst parsing config file" in str(error)  # if so, the message is a traceback
        if isinstance(error, flags.UnrecognizedFlagError) and "." not in error.flagname:
            similar = closest(error.flagname, flags.FLAGS)
            if similar is None and (key := similar_key(error.flagname, known_keys())):
                similar = f"config.{key}"
            hint = f"did you mean --{similar}?" if similar else "--help shows the flags"
            raise UserError(f"--{error.flagname}: no such flag; {hint}") from error
        if isinstance(error, flags.Error) and not in_file:
            raise UserError(one_line(error)) from error
        cause = _first(error) if in_file else error
        if (mistake := host.jax_mistake(cause)) is not None:  # the file is where JAX was first imported
            raise mistake from error
        raise UserError(_config_mistake(cause, path, list(given), known_keys)) from error
    if not is_config:
        raise UserError(_NO_CONFIG.format(path))
    if rest[1:]:
        raise UserError(f"{rest[1]!r}: not a flag; flags look like --name=value")


def _config_mistake(
    error: BaseException, path: str, overrides: list[str], known_keys: Callable[[], list[str]]
) -> str:
    """Describes a mistake in the config file or an override in one line."""
    text = one_line(error)
    missing = re.search(r"'(\w+)", text) if isinstance(error, AttributeError | KeyError) else None
    for override in overrides:
        if missing and missing[1] in override.split("."):
            similar = similar_key(override, known_keys())
            hint = f"did you mean {similar}?" if similar else "configs/default.py shows every key"
            return f"--config.{override}: the config has no key {missing[1]!r}; {hint}"
    if text.endswith("has no attribute 'get_config'"):
        return f"--config={path}: has no function get_config(), which returns the config"
    if "Attribute <class" in text:  # ml_collections' message about an override
        return _NO_CONFIG.format(path)
    return f"--config={path}: the file is broken ({type(error).__name__}: {text})"


def _first(error: BaseException) -> BaseException:
    """The first error of a chain raised while handling others."""
    return _first(error.__context__) if error.__context__ else error
