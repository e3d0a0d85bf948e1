"""Reading configs: a pipeline's YAML, or one stage's, becomes a list of ordinary Detectron2 configs, one a stage."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.logger import log_first_n

from cupre_d2.config import add_cupre_config
from cupre_d2.errors import ConfigError, closest
from cupre_d2.migration import migrate

STAGE_REFERENCE = "stage:"
LONGEST_MESSAGE = 300


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline.

    Attributes:
        name: stem of the stage's YAML file.
        cfg: the complete, frozen config; its OUTPUT_DIR is `<pipeline's OUTPUT_DIR>/<number>_<name>`.
    """

    name: str
    cfg: CfgNode

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def final_checkpoint(self) -> Path:
        return self.folder / "model_final.pth"


def default_config() -> CfgNode:
    """Detectron2's config with this plugin's keys."""
    cfg = get_cfg()
    add_cupre_config(cfg)
    return cfg


def load_stages(config_file: str, opts: Sequence[Any] = ()) -> tuple[str, list[Stage]]:
    """Reads a pipeline's or a stage's config.

    What applies to a stage, later over earlier: the defaults, the stage's YAML, the keys of the pipeline's YAML, its
    PIPELINE.OVERRIDES, command-line overrides `KEY value`, command-line overrides `STAGE.KEY value`.
    `MODEL.WEIGHTS` without a stage's name is where the pipeline starts from and so reaches the first stage only.

    Args:
        config_file: path to a YAML file. One without PIPELINE.STAGES is a pipeline of that one stage.
        opts: flat list of keys and values, as Detectron2's command line has it.

    Returns:
        The pipeline's OUTPUT_DIR (`output/<name of the file>` where nothing sets it) and its stages in order, paths of
        checkpoints between them filled in.

    Raises:
        ConfigError: unreadable file, unknown key or stage, value of a wrong type.
    """
    raw = _read_yaml(config_file)
    own_output_dir = raw.get("OUTPUT_DIR", os.path.join("output", Path(config_file).stem))
    pipeline = _check_pipeline(config_file, raw.pop("PIPELINE", {}))
    files = [os.path.join(os.path.dirname(config_file), file) for file in pipeline.get("STAGES", [])]
    if not files:
        files, raw = [config_file], {}
    names = [Path(file).stem for file in files]
    if len(set(names)) < len(names):
        raise ConfigError(f"{config_file}: PIPELINE.STAGES names a stage twice: {', '.join(names)}")

    shared, single = _split_overrides(config_file, pipeline.get("OVERRIDES", []), names)
    if shared:
        raise ConfigError(f"{config_file}: PIPELINE.OVERRIDES: {shared[0]} must begin with a stage: {', '.join(names)}")
    shared_cli, single_cli = _split_overrides("command line", opts, names)

    cli = dict(zip(shared_cli[0::2], shared_cli[1::2], strict=True))
    output_dir = str(cli.get("OUTPUT_DIR", own_output_dir))
    cfgs = []
    for index, (name, file) in enumerate(zip(names, files, strict=True)):
        cfg = default_config()
        _merge_dict(cfg, _read_yaml(file), file)
        _merge_dict(cfg, raw, config_file)
        _merge_list(cfg, single[name], config_file)
        _merge_list(cfg, shared_cli if index == 0 else _without(shared_cli, "MODEL.WEIGHTS"), "command line")
        _merge_list(cfg, single_cli[name], "command line")
        cfgs.append(cfg)
    return output_dir, _link(output_dir, names, cfgs)


def _check_pipeline(config_file: str, pipeline: Any) -> dict[str, Any]:
    if not isinstance(pipeline, dict):
        raise ConfigError(f"{config_file}: PIPELINE {pipeline!r}: expected the keys STAGES and OVERRIDES")
    stages, overrides = pipeline.get("STAGES", []), pipeline.get("OVERRIDES", [])
    if not isinstance(stages, list) or not all(isinstance(file, str) for file in stages):
        raise ConfigError(f"{config_file}: PIPELINE.STAGES {stages!r}: expected a list of YAML files")
    if not isinstance(overrides, list):
        raise ConfigError(f"{config_file}: PIPELINE.OVERRIDES {overrides!r}: expected a list [STAGE.KEY, value, ...]")
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
        if head == "PIPELINE":
            raise ConfigError(f"{source}: {key}: a pipeline's stages stand in its YAML file only")
        if head in single:
            single[head] += [rest, value]
        elif head in known:
            shared += [key, value]
        else:
            raise ConfigError(f"{source}: {key}: neither a config key nor a stage; {closest(head, [*names, *known])}")
    return shared, single


def _without(opts: Sequence[Any], key: str) -> list[Any]:
    return [item for pair in zip(opts[0::2], opts[1::2], strict=True) if pair[0] != key for item in pair]


def _merge_dict(cfg: CfgNode, raw: dict[str, Any], source: str) -> None:
    try:
        cfg.merge_from_other_cfg(CfgNode(raw))
    except (KeyError, ValueError, AssertionError) as error:
        raise ConfigError(f"{source}: {_explain(cfg, error)}") from error


def _merge_list(cfg: CfgNode, opts: Sequence[Any], source: str) -> None:
    try:
        cfg.merge_from_list(list(opts))
    except (KeyError, ValueError, AssertionError) as error:
        raise ConfigError(f"{source}: {_explain(cfg, error, opts)}") from error


def _explain(cfg: CfgNode, error: Exception, opts: Sequence[Any] = ()) -> str:
    message = " ".join(str(error).strip("'\"").split())
    unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", message)
    if not unknown:
        # Of a value in a section's place, the message quotes the whole section.
        return message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]} ... {message[-60:]}"
    key = next((k for k in opts[0::2] if str(k).endswith(unknown[1])), unknown[1])
    return f"{key}: no such config key; {closest(key, _flat_keys(cfg))}"


def _flat_keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in cfg.items():
        keys += _flat_keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]
    return keys


def _link(output_dir: str, names: Sequence[str], cfgs: Sequence[CfgNode]) -> list[Stage]:
    stages: list[Stage] = []
    for number, (name, cfg) in enumerate(zip(names, cfgs, strict=True), start=1):
        cfg.OUTPUT_DIR = os.path.join(output_dir, f"{number}_{name}")
        if stages and not cfg.MODEL.WEIGHTS:
            cfg.MODEL.WEIGHTS = str(stages[-1].final_checkpoint)
        cfg.MODEL.WEIGHTS = _resolve(cfg.MODEL.WEIGHTS, name, stages)
        cfg.MODEL.BACKBONE_WEIGHTS = _resolve(cfg.MODEL.BACKBONE_WEIGHTS, name, stages)
        cfg.MODEL.DEVICE = _available(cfg.MODEL.DEVICE)
        cfg.freeze()
        stages.append(Stage(name, cfg))
    return stages


def _available(device: str) -> str:
    if device.startswith("cuda") and not torch.cuda.is_available():
        message = f"MODEL.DEVICE {device}: no GPU is visible; training on the CPU"
        log_first_n(logging.WARNING, message, key="message", name=__name__)
        return "cpu"
    return device


def _resolve(path: str, stage: str, earlier: Sequence[Stage]) -> str:
    if not path.startswith(STAGE_REFERENCE):
        return path
    wanted = path[len(STAGE_REFERENCE) :]
    for candidate in earlier:
        if candidate.name == wanted:
            return str(candidate.final_checkpoint)
    known = [candidate.name for candidate in earlier]
    raise ConfigError(f"stage {stage}: {path}: no earlier stage of that name; {closest(wanted, known)}")
