"""Reading configs: a pipeline's YAML, or one stage's, becomes a list of ordinary Detectron2 configs, one a stage."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils.logger import log_first_n

from cupre_d2.config import default_config, flatten
from cupre_d2.data.targets import REFERENCE, Target, register_dataset_file, target
from cupre_d2.errors import ConfigError, DatasetError, closest
from cupre_d2.migration import RENAMED, migrate

STAGE_REFERENCE = "stage:"
# Of PIPELINE, what the command line may say too.
CHOICES = ("PIPELINE.TARGET", "PIPELINE.SUBSET")
PIPELINE_KEYS: dict[str, tuple[Any, str]] = {
    "STAGES": (list, "a list of YAML files"),
    "OVERRIDES": (list, "a list [STAGE.KEY, value, ...]"),
    "TARGET": (str, "the name of a target"),
    "SUBSET": (str, "an ending as 5pct or 5pct_seed3"),
    "FIT": (str, "a folder"),
}
# The configs that come with this package: of a wheel in it, of a checkout beside it.
SHIPPED = next(folder for parent in (1, 2) if (folder := Path(__file__).resolve().parents[parent] / "configs").is_dir())
LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline.

    Attributes:
        name: stem of the stage's YAML file.
        cfg: the complete, frozen config; its OUTPUT_DIR is `<pipeline's OUTPUT_DIR>/<number>_<name>`.
        file: that YAML file.
    """

    name: str
    cfg: CfgNode
    file: str = ""

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def final_checkpoint(self) -> Path:
        return self.folder / "model_final.pth"


def load_stages(config_file: str, opts: Sequence[Any] = ()) -> tuple[str, list[Stage]]:
    """Reads a pipeline's or a stage's config.

    What applies to a stage, later over earlier: the defaults, the stage's YAML, of one with PIPELINE.FIT what is
    fitted to the target (see `_fitted`), the keys of the pipeline's YAML, its PIPELINE.OVERRIDES, command-line overrides
    `KEY value`, command-line overrides `STAGE.KEY value`. `MODEL.WEIGHTS` without a stage's name is where the pipeline
    starts from and so reaches the first stage only.

    The target is that of DATASETS.FILE, where its entries say what they are for, else PIPELINE.TARGET. A file's images are
    all taken, unless the command line has a PIPELINE.SUBSET.

    Args:
        config_file: path to a YAML file, or to one that comes with this package, such as configs/mini/cupre.yaml. One
            without PIPELINE.STAGES is a pipeline of that one stage.
        opts: flat list of keys and values, as Detectron2's command line has it.

    Returns:
        The pipeline's OUTPUT_DIR and its stages in order, names of data sets and paths of checkpoints filled in. Where
        nothing sets OUTPUT_DIR it is output/ and the config's name, with the target's where the config does not name it.

    Raises:
        ConfigError: unreadable file, unknown key or stage, value of a wrong type.
        DatasetError: unknown target, or a file of data sets that cannot be used.
    """
    config_file = find_config(config_file)
    raw = _read_yaml(config_file)
    pipeline = _check_pipeline(config_file, raw.pop("PIPELINE", {}))
    stage_files = [os.path.join(os.path.dirname(config_file), file) for file in pipeline.get("STAGES", [])]
    files = stage_files or [config_file]
    names = [Path(file).stem for file in files]
    if len(set(names)) < len(names):
        raise ConfigError(f"{config_file}: PIPELINE.STAGES names a stage twice: {', '.join(names)}")

    shared, single = _split_overrides(config_file, pipeline.get("OVERRIDES", []), names)
    if shared:
        raise ConfigError(f"{config_file}: PIPELINE.OVERRIDES: {shared[0]} must begin with a stage: {', '.join(names)}")
    shared_cli, single_cli = _split_overrides("command line", opts, names)
    cli = dict(zip(shared_cli[0::2], shared_cli[1::2], strict=True))
    datasets = _Datasets.of(pipeline, cli, raw)
    cli |= {"DATASETS.FILE": datasets.file}
    unshared: tuple[str, ...] = CHOICES

    cfgs = []
    for name, file in zip(names, files, strict=True):
        cfg = default_config()
        content = _read_yaml(file)
        folder = _check_pipeline(file, content.pop("PIPELINE", {})).get("FIT")
        merge(cfg, content, file)
        if folder and (fit := _fitted(Path(file).parent / folder, datasets)):
            merge(cfg, _read_yaml(fit), fit)
        if stage_files:
            merge(cfg, raw, config_file)
        merge(cfg, single[name], config_file)
        shared_cli = [item for key, value in cli.items() if key not in unshared for item in (key, value)]
        merge(cfg, [*shared_cli, *single_cli[name]], "command line")
        datasets.resolve(name, cfg)
        cfgs.append(cfg)
        unshared = (*CHOICES, "MODEL.WEIGHTS")
    own = str(cli.get("OUTPUT_DIR", raw.get("OUTPUT_DIR") or _default_output(config_file, datasets.suffix)))
    output_dir = os.path.expanduser(own)
    return output_dir, _link(output_dir, names, files, cfgs)


def register_datasets(stages: Sequence[Stage]) -> None:
    """The stages' own data sets, in a process that did not read their configs."""
    for file in {stage.cfg.DATASETS.FILE for stage in stages} - {""}:
        register_dataset_file(file)


def find_config(file: str) -> str:
    """The file, or where there is none and the path is relative, the config of that name that comes with this package."""
    path = os.path.expanduser(file)
    shipped = SHIPPED / path.removeprefix("./").removeprefix("configs/")
    return str(shipped) if not os.path.exists(path) and shipped.is_file() else path


def _default_output(config_file: str, suffix: str) -> str:
    path = Path(config_file).resolve()
    name = path.relative_to(SHIPPED) if path.is_relative_to(SHIPPED) else Path(path.name)
    return os.path.join("output", str(name.with_suffix("")) + suffix)


@dataclass(frozen=True)
class _Datasets:
    """What `target:ROLE` stands for in a pipeline.

    Attributes:
        file: absolute path of the own data sets, "" without.
        target: None where none is named.
        subset: of its training images.
        suffix: tells the target from others for which the same config is used; "" where the config names it.
    """

    file: str
    target: Target | None
    subset: str
    suffix: str

    @classmethod
    def of(cls, pipeline: Mapping[str, Any], cli: Mapping[str, Any], raw: Mapping[str, Any]) -> "_Datasets":
        section = raw.get("DATASETS")
        file = str(cli.get("DATASETS.FILE", section.get("FILE", "") if isinstance(section, dict) else "") or "")
        file = os.path.abspath(os.path.expanduser(file)) if file else ""
        try:
            own = register_dataset_file(file) if file else None
        except DatasetError as error:
            raise DatasetError(f"DATASETS.FILE {error}") from error
        name = str(cli.get("PIPELINE.TARGET", "" if own else pipeline.get("TARGET", "")) or "")
        subset = str(cli.get("PIPELINE.SUBSET", "" if own else pipeline.get("SUBSET", "")) or "")
        found = target(name) if name else own
        given = [found.name if found and (own or "PIPELINE.TARGET" in cli) else "", str(cli.get("PIPELINE.SUBSET", ""))]
        return cls(file, found, subset, "".join(f"_{part}" for part in given if part))

    def resolve(self, stage: str, cfg: CfgNode) -> None:
        """Puts names in the places of references, in DATASETS."""
        for key in ("TRAIN", "TEST", "UNLABELED"):
            names: list[str] = []
            for name in cfg.DATASETS[key]:
                if not name.startswith(REFERENCE):
                    names.append(name)
                elif self.target:
                    names += self.target.datasets(name.removeprefix(REFERENCE), self.subset)
                else:
                    raise ConfigError(
                        f"stage {stage}: DATASETS.{key} {name}: no target; expected --datasets FILE with entries that say "
                        "what they are for, or PIPELINE.TARGET NAME, e.g. bbbc038"
                    )
            cfg.DATASETS[key] = tuple(dict.fromkeys(names))


def _fitted(folder: Path, datasets: _Datasets) -> str:
    """What is fitted to a target's cells: anchors, sizes of images, limits on detections. It is NAME.yaml; for a target
    NAME_PART without a file of its own that of NAME; else default.yaml; "" where there is none of them.
    """
    parts = datasets.target.name.split("_") if datasets.target and not datasets.file else []
    tried = ["_".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((str(folder / f"{name}.yaml") for name in [*tried, "default"] if (folder / f"{name}.yaml").is_file()), "")


def _check_pipeline(config_file: str, pipeline: Any) -> dict[str, Any]:
    if not isinstance(pipeline, dict) or pipeline.keys() - PIPELINE_KEYS.keys():
        raise ConfigError(f"{config_file}: PIPELINE {pipeline!r}: expected {', '.join(PIPELINE_KEYS)}")
    for key, value in pipeline.items():
        kind, expected = PIPELINE_KEYS[key]
        if not isinstance(value, kind) or (key == "STAGES" and not all(isinstance(file, str) for file in value)):
            raise ConfigError(f"{config_file}: PIPELINE.{key} {value!r}: expected {expected}")
    return pipeline


def _read_yaml(file: str) -> dict[str, Any]:
    if not os.path.isfile(file):
        folder = Path(file).parent
        siblings = [path.name for path in folder.glob("*.yaml")]
        hint = closest(Path(file).name, siblings) if siblings else f"the folder {folder} has no YAML file"
        raise ConfigError(f"{file}: no such config; {hint}")
    try:
        raw = CfgNode.load_yaml_with_base(file)
    except (yaml.YAMLError, OSError, UnicodeDecodeError, AssertionError, TypeError, RecursionError) as error:
        raise ConfigError(f"{file}: not a readable YAML config: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: expected KEY: value pairs, found {type(raw).__name__}")
    return migrate(raw, file)


def _split_overrides(source: str, opts: Sequence[Any], names: Sequence[str]) -> tuple[list[Any], dict[str, list[Any]]]:
    if len(opts) % 2:
        raise ConfigError(f"{source}: overrides come as KEY value pairs; {opts[-1]!r} has no value")
    shared: list[Any] = []
    single: dict[str, list[Any]] = {name: [] for name in names}
    known = set(default_config())
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        head, _, rest = str(key).partition(".")
        if head == "PIPELINE" and key not in CHOICES:
            raise ConfigError(f"{source}: {key}: a pipeline's stages stand in its YAML file only")
        if head in single:
            single[head] += [rest, value]
        elif head in known:
            shared += [key, value]
        else:
            raise ConfigError(f"{source}: {key}: neither a config key nor a stage; {closest(head, [*names, *known])}")
    return shared, single


def merge(cfg: CfgNode, given: dict[str, Any] | Sequence[Any], source: str) -> None:
    """Merges a YAML file's content, or a flat list of keys and values, in place.

    Raises:
        ConfigError: an unknown key or a value of another type; the message begins with the source.
    """
    opts = [] if isinstance(given, dict) else list(given)
    try:
        if isinstance(given, dict):
            cfg.merge_from_other_cfg(CfgNode(given))
        else:
            cfg.merge_from_list(opts)
    except (KeyError, ValueError, AssertionError) as error:
        raise ConfigError(f"{source}: {_explain(cfg, error, opts)}") from error


def _explain(cfg: CfgNode, error: Exception, opts: Sequence[Any]) -> str:
    message = " ".join(str(error).strip("'\"").split())
    unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", message)
    if not unknown:
        # Of a value in a section's place, the message quotes the whole section.
        return message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]} ... {message[-60:]}"
    key = next((k for k in opts[0::2] if str(k).endswith(unknown[1])), unknown[1])
    renamed = next((hint for old, hint in RENAMED.items() if str(key).endswith(old)), "")
    return f"{key}: no such config key{' any more' if renamed else ''}; {renamed or closest(key, flatten(cfg))}"


def _link(output_dir: str, names: Sequence[str], files: Sequence[str], cfgs: Sequence[CfgNode]) -> list[Stage]:
    stages: list[Stage] = []
    for number, (name, file, cfg) in enumerate(zip(names, files, cfgs, strict=True), start=1):
        cfg.OUTPUT_DIR = os.path.join(output_dir, f"{number}_{name}")
        if stages and not cfg.MODEL.WEIGHTS:
            cfg.MODEL.WEIGHTS = str(stages[-1].final_checkpoint)
        for key in ("WEIGHTS", "BACKBONE_WEIGHTS"):
            cfg.MODEL[key] = os.path.expanduser(_resolve(cfg.MODEL[key], name, stages))
        if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
            message = f"MODEL.DEVICE {cfg.MODEL.DEVICE}: no GPU is visible; training on the CPU"
            log_first_n(logging.WARNING, message, key="message", name=__name__)
            cfg.MODEL.DEVICE = "cpu"
        cfg.freeze()
        stages.append(Stage(name, cfg, file))
    return stages


def _resolve(path: str, stage: str, earlier: Sequence[Stage]) -> str:
    if not path.startswith(STAGE_REFERENCE):
        return path
    wanted, known = path.removeprefix(STAGE_REFERENCE), {one.name: str(one.final_checkpoint) for one in earlier}
    if wanted not in known:
        raise ConfigError(f"stage {stage}: {path}: no earlier stage of that name; {closest(wanted, known)}")
    return known[wanted]
