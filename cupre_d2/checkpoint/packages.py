"""The files of a model package, a folder: model.safetensors, package.yaml, README.md.

None of them can hold code: the weights are arrays, and the YAML is read by the safe loader, without aliases, into plain
values. What they mean, `cupre_d2.predict.package` knows.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import yaml

from cupre_d2.errors import CheckpointError, closest
from cupre_d2.files import write_text, write_whole

FOLDER = "model_package"
FACTS, WEIGHTS, CARD = "package.yaml", "model.safetensors", "README.md"
FORMAT_VERSION = 1
# Bytes of package.yaml; those that this plugin writes have about 15,000.
LARGEST = 1 << 20
# What package.yaml holds, and of which types. Every field is there; those that may be null say so.
FIELDS: dict[str, tuple[type, ...]] = {
    "format_version": (int,),
    "name": (str,),
    "kind": (str,),
    "classes": (list,),
    "weights": (dict,),
    "thresholds": (dict,),
    "images": (dict,),
    "tuning": (dict, type(None)),
    "evaluation": (dict,),
    "before": (dict, type(None)),
    "training": (dict,),
    "versions": (dict,),
    "commit": (str,),
    "config": (dict,),
}


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, by which a few lines stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*NAME); expected plain values")
        return super().compose_node(parent, index)


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def package_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a package: the path itself, or model_package in the folder of a pipeline.

    Raises:
        CheckpointError: neither; what was found instead is said.
    """
    folder = Path(path).expanduser()
    for candidate in (folder, folder / FOLDER):
        if (candidate / FACTS).is_file():
            return candidate
    raise CheckpointError(f"{path}: {_found(folder)}; expected a model package, a folder with {FACTS} and {WEIGHTS}")


def _found(path: Path) -> str:
    if path.is_file():
        kinds = {".pth": "a checkpoint", ".pkl": "a checkpoint", ".safetensors": "weights alone", ".yaml": "a config"}
        if path.name == FACTS:
            return "is a file of a package; give its folder"
        return f"is {kinds.get(path.suffix, 'a file')}"
    if not path.exists():
        return "no such folder"
    names = os.listdir(path)
    if not names:
        return "is an empty folder"
    if WEIGHTS in names:
        return f"is a damaged package, without {FACTS}; copy it again"
    if "results.json" in names or "model_final.pth" in names or "log.txt" in names:
        return "is the folder of a training run that has written no package (it does at its end)"
    return "is a folder of something else"


def read_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """package.yaml as plain values, every field of FIELDS among them and of its type; the weights are not looked at.

    Raises:
        CheckpointError: no package, one of another format version, or a file that is damaged.
    """
    file = package_folder(path) / FACTS
    if file.stat().st_size > LARGEST:
        raise CheckpointError(f"{file}: {file.stat().st_size} bytes; expected at most {LARGEST}")
    try:
        facts = yaml.load(file.read_text(encoding="utf-8"), _PlainLoader)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged ({' '.join(str(error).split())[:200]}); copy the package again") from error
    version = facts.get("format_version") if isinstance(facts, dict) else None
    if version is None:
        raise CheckpointError(f"{file}: no field format_version; expected {FORMAT_VERSION}, as a package has it")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: field format_version: {version!r}; this cupre_d2 reads version {FORMAT_VERSION}, "
            "use the cupre_d2 that wrote it"
        )
    for name in facts:
        if name not in FIELDS:
            raise CheckpointError(f"{file}: field {name}: unknown; {closest(str(name), FIELDS)}")
    for name, kinds in FIELDS.items():
        if name not in facts:
            raise CheckpointError(f"{file}: field {name}: missing; copy the package again")
        if not isinstance(facts[name], kinds):
            raise CheckpointError(f"{file}: field {name}: {type(facts[name]).__name__}; expected {kinds[0].__name__}")
    return facts


def read_weights(path: str | os.PathLike[str], facts: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of a package, on the CPU, of the dtypes that the file has.

    Args:
        facts: of `read_facts`; the file must have the size and the hash that they name.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    file = package_folder(path) / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{file}: missing; copy the package again")
    expected = (facts["weights"].get("bytes"), facts["weights"].get("sha256"))
    size = file.stat().st_size
    if size != expected[0]:
        raise CheckpointError(f"{file}: {size} bytes, {FACTS} names {expected[0]}: damaged; copy the package again")
    if hash_file(file) != expected[1]:
        raise CheckpointError(f"{file}: its SHA-256 is not the one that {FACTS} names: damaged; copy the package again")
    try:
        return safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{file}: no safetensors file ({' '.join(str(error).split())[:200]})") from error


def _as_yaml(facts: Mapping[str, Any]) -> str:
    return yaml.dump(facts, Dumper=_PlainDumper, sort_keys=False, width=120, allow_unicode=True, default_flow_style=None)


def hash_file(file: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_files(folder: Path, weights: Mapping[str, torch.Tensor], facts: Mapping[str, Any], card: str) -> dict[str, Any]:
    """Writes a package whole or not at all; one of before is replaced.

    Args:
        weights: strided tensors.
        facts: the fields of FIELDS, but for "format_version" and "weights", which are filled in.
        card: text of README.md.

    Returns:
        The facts as they were written.

    Raises:
        OSError: it cannot be written; the package of before is as it was.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        content = safetensors.torch.save({key: value.detach().cpu().contiguous() for key, value in weights.items()})
        write_whole(partial / WEIGHTS, lambda file: file.write(content))
        dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in weights.values() if value.is_floating_point()})
        written = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "tensors": len(weights),
            "dtype": " and ".join(dtypes),
        }
        whole = {"format_version": FORMAT_VERSION, **facts, "weights": written}
        ordered = {name: whole[name] for name in FIELDS}
        write_text(partial / FACTS, _as_yaml(ordered))
        write_text(partial / CARD, card)
        before = folder.with_name(f"{folder.name}.before")
        shutil.rmtree(before, ignore_errors=True)
        if folder.exists():
            os.replace(folder, before)
        os.replace(partial, folder)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ordered
