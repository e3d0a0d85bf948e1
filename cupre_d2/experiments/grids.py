"""Grids: the lists of values that an experiment combines, from a YAML file and the command line."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cupre_d2.errors import ConfigError

# The types of a list's values, what holds for each, and how to say so.
Rule = tuple[tuple[type, ...], Callable[[Any], bool], str]

SEEDS: Rule = ((int,), lambda value: value >= 0, "0 or more")


def read_grid(
    file: Path, rules: Mapping[str, Rule], given: Mapping[str, Sequence[Any] | None]
) -> dict[str, tuple[Any, ...]]:
    """The lists of a file, with what is given (and not None) in place of its own.

    Args:
        rules: by the keys that the file has, all of them and no others.
        given: by the same keys in lower case, as command lines have them.

    Returns:
        By the keys in lower case.

    Raises:
        ConfigError: no such file, a missing or unknown key, a value that is not a list of the right kind.
    """
    try:
        raw = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict) or set(raw) != set(rules):
        raise ConfigError(f"{file}: expected the keys {', '.join(rules)}")
    if strange := [key for key, values in given.items() if values is not None and key.upper() not in rules]:
        raise ConfigError(f"{_option(strange[0])}: not of this table; expected {', '.join(map(_option, rules))}")
    found = {key.lower(): _checked(f"{file}: {key}", rules[key], values) for key, values in raw.items()}
    return found | {
        key: _checked(_option(key), rules[key.upper()], values) for key, values in given.items() if values is not None
    }


def _option(key: str) -> str:
    return "--" + key.lower().replace("_", "-")


def _checked(where: str, rule: Rule, values: Any) -> tuple[Any, ...]:
    kinds, holds, expected = rule
    if not isinstance(values, list | tuple) or not values or not all(type(value) in kinds for value in values):
        raise ConfigError(f"{where}: {values!r}; expected a list of {' or '.join(kind.__name__ for kind in kinds)}")
    if len(set(values)) < len(values):
        raise ConfigError(f"{where}: {values!r}; expected no value twice")
    if not all(map(holds, values)):
        raise ConfigError(f"{where}: {values!r}; expected {expected}")
    return tuple(values)
