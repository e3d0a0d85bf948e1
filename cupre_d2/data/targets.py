"""Targets: the data sets of one kind of cells by what they are for, so that a pipeline needs to know none by name.

A config names `target:ROLE` where it would name a data set: `DATASETS.TRAIN ("target:train",)`. Which target is meant, the
pipeline's PIPELINE.TARGET says, or the `for:` of a file of own data sets (`register_dataset_file`).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import DatasetCatalog

from cupre_d2.data.catalog import OPTIONS, PATH, register_cell_dataset
from cupre_d2.errors import DatasetError, closest

ROLES = ("train", "val", "test", "unlabeled")
REFERENCE = "target:"


@dataclass(frozen=True)
class Target:
    """
    Attributes:
        roles: names of registered data sets by role, of ROLES; those without any are missing.
    """

    name: str
    roles: Mapping[str, tuple[str, ...]]

    def datasets(self, role: str, subset: str = "") -> tuple[str, ...]:
        """The names that `target:ROLE` stands for.

        Where nothing is for "val", it is what is for "test"; where nothing is "unlabeled", the images of "train", whose
        annotations are not read. There may be neither "val" nor "test": then nothing is evaluated.

        Args:
            subset: of the annotated training images, as names end: "5pct" or "5pct_seed3"; "" for all.

        Raises:
            DatasetError: nothing is for "train", or there is no such role.
        """
        if role not in ROLES:
            raise DatasetError(f"{REFERENCE}{role}: {closest(role, ROLES)}")
        if role == "train" and subset:
            return tuple(f"{name}_{subset}" for name in self.datasets(role))
        instead = {"val": "test", "unlabeled": "train"}
        found = self.roles.get(role) or self.roles.get(instead.get(role, role), ())
        if role == "train" and not found:
            raise DatasetError(f"target {self.name}: no data set is for train; expected one with annotations")
        return found


_registered: dict[str, Target] = {}


def register_target(name: str, **roles: Sequence[str]) -> None:
    """Gives data sets a common name; without it, NAME stands for NAME_train, NAME_val, NAME_test and NAME_unlabeled.

    Args:
        roles: names of data sets by role, of ROLES.
    """
    _registered[name] = Target(name, {role: tuple(names) for role, names in roles.items()})


def target(name: str) -> Target:
    """The target of a name.

    Raises:
        DatasetError: no target and no data set NAME_train is registered; the closest names are offered.
    """
    if name in _registered:
        return _registered[name]
    roles = {role: (f"{name}_{role}",) for role in ROLES if f"{name}_{role}" in DatasetCatalog}
    if not roles:
        by_name = {known.removesuffix("_train") for known in DatasetCatalog.list() if known.endswith("_train")}
        raise DatasetError(f"PIPELINE.TARGET {name!r}: no such target; {closest(name, [*_registered, *by_name])}")
    return Target(name, roles)


def register_dataset_file(path: str | os.PathLike[str]) -> Target | None:
    """Registers the data sets of a YAML file; doing it again, also in other processes, changes nothing.

    An entry a set: its name, and what `register_cell_dataset` takes, paths relative to the file. `for:` says what it is
    for, one of ROLES or a list of them.

        my_cells_train: {for: train, images: images/train, annotations: train.json}
        my_cells_more: {for: unlabeled, images: images/more}

    Returns:
        The target that the entries make, named as the file; None where no entry says what it is for.

    Raises:
        DatasetError: the file cannot be read, an entry has an unknown or missing field, or its name is taken.
    """
    file = Path(path).expanduser().absolute()
    roles: dict[str, list[str]] = {}
    for name, entry in _read(file).items():
        fields = dict(entry)
        for role in _roles(file, name, fields.pop("for", ())):
            roles.setdefault(role, []).append(name)
        try:
            register_cell_dataset(name, **{key: _value(file, name, key, value) for key, value in fields.items()})
        except DatasetError as error:
            raise DatasetError(f"{file}: {error}") from error
    if not roles:
        return None
    return Target(file.stem, {role: tuple(names) for role, names in roles.items()})


def dataset_names(path: str | os.PathLike[str]) -> list[str]:
    """Of a file as `register_dataset_file` takes it; errors as there."""
    return list(_read(Path(path).expanduser().absolute()))


def _read(file: Path) -> dict[str, dict[str, Any]]:
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DatasetError(f"{file}: not a readable YAML file of data sets ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or not content:
        raise DatasetError(f"{file}: expected an entry a data set, NAME: {{images: FOLDER, ...}}")
    for name, entry in content.items():
        if not isinstance(name, str) or not isinstance(entry, dict) or "images" not in entry:
            raise DatasetError(f"{file}: {name}: expected its fields, {{images: FOLDER, for: train, ...}}; images is needed")
        for key in entry:
            if key not in OPTIONS and key != "for":
                raise DatasetError(f"{file}: {name}: field {key}: unknown; {closest(str(key), ['for', *OPTIONS])}")
    return content


def _roles(file: Path, name: str, given: Any) -> list[str]:
    roles = [given] if isinstance(given, str) else given
    if not isinstance(roles, list | tuple) or not all(role in ROLES for role in roles):
        raise DatasetError(f"{file}: {name}: field for: {given!r}; expected {', '.join(ROLES)} or a list of them")
    return list(roles)


def _value(file: Path, name: str, key: str, value: Any) -> Any:
    kinds = OPTIONS[key]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise DatasetError(f"{file}: {name}: field {key}: {value!r}; expected {expected}")
    return file.parent / Path(str(value)).expanduser() if kinds == PATH else value
