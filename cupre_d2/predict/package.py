"""Model packages: a trained network with all that predicting needs, in a folder that is safe to take from a stranger.

No training config, no data set and no file but those of the folder is read; see docs/model_package.md. The files are
`cupre_d2.checkpoint.packages`'s; here is what they mean.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from cupre_d2.checkpoint.packages import FACTS, WEIGHTS, package_folder, read_facts, read_weights, write_files
from cupre_d2.config import default_config
from cupre_d2.data.builtin import CATALOGUE
from cupre_d2.data.catalog import Record
from cupre_d2.data.few_shot import get_records
from cupre_d2.engine.preflight import check_network, check_settings
from cupre_d2.engine.results import THRESHOLDS, evaluated_thresholds, plain, table, thresholds, versions
from cupre_d2.engine.stages import merge
from cupre_d2.engine.tuning import Tuning
from cupre_d2.errors import CheckpointError, ConfigError, DatasetError, closest
from cupre_d2.evaluation.build import tasks
from cupre_d2.evaluation.cells import areas_of, to_rles
from cupre_d2.modeling.layers import revert_sync_batchnorm

KINDS = {"GeneralizedRCNN": "detector", "SemanticWatershed": "watershed"}
# Of a config, what building a network and reading images takes; of TEST, one key.
SECTIONS = ("MODEL", "INPUT", "TEST")
# Of MODEL, what says where a run took its weights from, and where it computed.
OF_THE_RUN = ("WEIGHTS", "BACKBONE_WEIGHTS", "DEVICE")
# Images whose cells are measured, at most.
MOST_MEASURED = 500


@dataclass(frozen=True)
class Package:
    """A model package, loaded.

    Attributes:
        kind: "detector" or "watershed".
        cfg: builds the network and its mapper; the package's thresholds are in it.
        model: for evaluation, on `cfg.MODEL.DEVICE`.
        classes: names, in order of the predicted numbers.
        cell_diameter: median diameter, in pixels of the image files, of a circle of a training cell's area; None where
            nobody annotated cells.
        heights, widths: smallest, median and largest of the training images, pixels.
        channels: those of the image files that were read; None for all.
        fingerprint: 16 digits that other weights, settings or thresholds change.
        facts: all that package.yaml says.
    """

    folder: Path
    kind: str
    cfg: CfgNode = field(repr=False)
    model: nn.Module = field(repr=False)
    classes: tuple[str, ...]
    cell_diameter: float | None
    heights: tuple[int, int, int]
    widths: tuple[int, int, int]
    channels: tuple[int, ...] | None
    fingerprint: str
    facts: Mapping[str, Any] = field(repr=False)

    @property
    def thresholds(self) -> dict[str, float]:
        """By config key."""
        return thresholds(self.cfg)


def load_package(path: str, device: str = "", kinds: Sequence[str] = tuple(KINDS.values())) -> Package:
    """Loads a package, or that of a pipeline's folder, and builds its network.

    Args:
        device: of torch; "" for the GPU where there is one.
        kinds: those that the caller can use.

    Raises:
        CheckpointError: no package, or one of another format version, of another kind, with settings that this version
            does not know, or damaged.
    """
    facts = read_facts(path)
    file = package_folder(path) / FACTS
    if facts["kind"] not in kinds:
        raise CheckpointError(f"{file}: field kind: {facts['kind']!r}; expected {' or '.join(kinds)}")
    try:
        cfg = _config(facts, device)
        if not all(isinstance(name, str) for name in facts["classes"]) or len(facts["classes"]) != class_count(cfg):
            raise ConfigError(f"classes: {facts['classes']}; expected {class_count(cfg)} names")
        images = _Images.of(facts["images"])
        weights = read_weights(path, facts)
        _check_fit(cfg, weights)
        model = network(cfg, weights)
    except ConfigError as error:
        raise CheckpointError(f"{file}: field {error}") from error
    fingerprint = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    names = tuple(facts["classes"])
    return Package(file.parent, facts["kind"], cfg, model, names, **vars(images), fingerprint=fingerprint, facts=facts)


def network(cfg: CfgNode, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """A config's network with all its weights, for evaluation; those of other dtypes are converted."""
    # Synchronised norms would wait for other processes, and are plain ones in evaluation.
    model = revert_sync_batchnorm(build_model(cfg))
    model.load_state_dict(dict(weights))
    return model.eval()


def segments(cfg: CfgNode) -> bool:
    """Whether a config's network finds cells and their masks, and so can be packaged."""
    kind = KINDS.get(cfg.MODEL.META_ARCHITECTURE)
    return kind == "watershed" or (kind == "detector" and cfg.MODEL.MASK_ON)


def class_count(cfg: CfgNode) -> int:
    return 1 if cfg.MODEL.META_ARCHITECTURE == "SemanticWatershed" else cfg.MODEL.ROI_HEADS.NUM_CLASSES


def _config(facts: Mapping[str, Any], device: str) -> CfgNode:
    """The config of a package; raises ConfigError, which names the field, for what this version does not know."""
    raw = facts["config"]
    for section in raw:
        if section not in SECTIONS or not isinstance(raw[section], dict):
            raise ConfigError(f"config: {section}: expected sections {', '.join(SECTIONS)}")
    architecture = raw.get("MODEL", {}).get("META_ARCHITECTURE")
    if not isinstance(architecture, str) or KINDS.get(architecture) != facts["kind"]:
        expected = next((name for name, kind in KINDS.items() if kind == facts["kind"]), closest("", KINDS))
        raise ConfigError(f"config: MODEL.META_ARCHITECTURE {architecture!r}: expected {expected} in a {facts['kind']}")
    wanted, given = THRESHOLDS[architecture], facts["thresholds"]
    for key in {*given, *wanted}:
        if key not in wanted or isinstance(given.get(key), bool) or not isinstance(given.get(key), int | float):
            raise ConfigError(f"thresholds: {key} {given.get(key)!r}: expected numbers for {', '.join(wanted)}")
    cfg = default_config()
    try:
        merge(cfg, raw, "config")
        merge(cfg, [item for key in wanted for item in (key, float(given[key]))], "config")
        for key in OF_THE_RUN[:2]:
            cfg.MODEL[key] = ""
        cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_settings(cfg)
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith("config: ") else f"config: {error}") from error
    # What Detectron2 makes of values that are parts of no config: numbers for sections, text that is no literal, ….
    except (AttributeError, KeyError, TypeError, ValueError, AssertionError, RecursionError, MemoryError) as error:
        raise ConfigError(f"config: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    cfg.freeze()
    return cfg


def _check_fit(cfg: CfgNode, weights: Mapping[str, torch.Tensor]) -> None:
    """Raises ConfigError unless the weights are those of the config's network, before memory is taken for it."""
    expected = {key: tuple(value.shape) for key, value in check_network(cfg).state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    wrong = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    if wrong:
        key = wrong[0]
        raise ConfigError(
            f"config: not of the network of {WEIGHTS}: {len(wrong)} tensors differ, the first {key}: "
            f"{found.get(key, 'none')}, expected {expected.get(key, 'none')}"
        )


@dataclass(frozen=True)
class _Images:
    """See Package."""

    cell_diameter: float | None
    heights: tuple[int, int, int]
    widths: tuple[int, int, int]
    channels: tuple[int, ...] | None

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "_Images":
        """Raises ConfigError unless it is what `asdict` made of one."""
        if found.keys() != {"cell_diameter", "heights", "widths", "channels"}:
            raise ConfigError(f"images: {', '.join(map(str, found))}; expected cell_diameter, heights, widths, channels")
        diameter, channels = found["cell_diameter"], found["channels"]
        if diameter is not None and not (isinstance(diameter, float) and 0 < diameter < 1e6):
            raise ConfigError(f"images: cell_diameter {diameter!r}; expected pixels")
        for name in ("heights", "widths"):
            values = found[name]
            if not isinstance(values, list) or len(values) != 3 or not all(type(v) is int and v > 0 for v in values):
                raise ConfigError(f"images: {name} {values!r}; expected smallest, median and largest, pixels")
        if channels is not None and not (
            isinstance(channels, list) and len(channels) in (1, 3) and all(type(v) is int and v >= 0 for v in channels)
        ):
            raise ConfigError(f"images: channels {channels!r}; expected one or three numbers, or null")
        return cls(diameter, tuple(found["heights"]), tuple(found["widths"]), None if channels is None else tuple(channels))

    @classmethod
    def measure(cls, records: Sequence[Record]) -> "_Images":
        """Of at least one record."""
        sizes = np.array([(record["height"], record["width"]) for record in records])
        areas = [area for record in records[:: len(records) // MOST_MEASURED + 1] for area in _areas(record)]
        diameter = float(np.median(2 * np.sqrt(np.array(areas) / np.pi))) if areas else None
        heights, widths = ((int(side.min()), int(np.median(side)), int(side.max())) for side in sizes.T)
        # What the images have in common alone can be asked of others.
        channels = {record.get("channels") for record in records}
        return cls(diameter, heights, widths, channels.pop() if len(channels) == 1 else None)


def _areas(record: Record) -> list[float]:
    cells = [annotation for annotation in record.get("annotations", ()) if not annotation.get("iscrowd", 0)]
    unmeasured = [one["segmentation"] for one in cells if "area" not in one and one.get("segmentation")]
    masks = to_rles(unmeasured, record["height"], record["width"])
    areas = [one["area"] for one in cells if "area" in one] + list(map(float, areas_of(masks)))
    return [area for area in areas if area > 0]


def write_package(
    folder: Path,
    cfg: CfgNode,
    weights: Mapping[str, torch.Tensor],
    metrics: Mapping[str, Any],
    trained: Sequence[CfgNode] = (),
    tuning: Tuning | None = None,
    before: Mapping[str, Any] | None = None,
    history: Mapping[str, Any] | None = None,
    commit: str = "unknown",
    half: bool = False,
) -> dict[str, Any]:
    """Writes a package whole or not at all; one of before is replaced.

    Args:
        cfg: of the stage that the network comes of.
        weights: all of the network's.
        metrics: of the last evaluation, with the config's thresholds.
        trained: configs of the stages, in order; the last one with DATASETS.TRAIN says what images look like.
        tuning: thresholds to predict with, in place of the config's.
        before: what fine-tuning started from, and which of the two models this one is.
        history: more to say of the training.
        half: floats of 16 bits: half the size, and predictions that differ in the last digits.

    Returns:
        What package.yaml says.

    Raises:
        ConfigError: the network detects nothing.
        DatasetError: the training's images are not there. OSError: the package cannot be written.
    """
    if not segments(cfg):
        raise ConfigError(f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}: no masks; expected {', '.join(KINDS)}")
    taught = next((one for one in reversed(trained) if one.DATASETS.TRAIN), cfg)
    names = taught.DATASETS.TRAIN or taught.DATASETS.UNLABELED or taught.DATASETS.TEST
    records = [record for name in names for record in get_records(name)]
    if not records:
        raise DatasetError(f"DATASETS.TRAIN {', '.join(names) or '()'}: no image to tell the package's readers of")
    facts = {
        "name": folder.resolve().parent.name,
        "kind": KINDS[cfg.MODEL.META_ARCHITECTURE],
        "classes": list(MetadataCatalog.get(names[0]).get("thing_classes", ())) or ["cell"],
        "thresholds": tuning.thresholds if tuning else thresholds(cfg),
        "images": asdict(_Images.measure(records)),
        "tuning": asdict(tuning) if tuning else None,
        "evaluation": {"metrics": metrics, "units": tasks(cfg), "thresholds": evaluated_thresholds(cfg)},
        "before": before,
        "training": {**(history or {}), "datasets": _datasets(cfg)},
        "versions": versions(),
        "commit": commit,
        "config": _packed(cfg, records),
    }
    facts = json.loads(json.dumps(plain(facts)))
    if half:
        weights = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    return write_files(folder, weights, facts, card(facts))


def _packed(cfg: CfgNode, records: Sequence[Record]) -> dict[str, Any]:
    """The sections of a config that a package holds."""
    # A data set of one's own may say that its contrast stays as it is.
    own = {tuple(record.get("percentiles", cfg.INPUT.PERCENTILES) or ()) for record in records}
    percentiles = own.pop() if len(own) == 1 else cfg.INPUT.PERCENTILES
    return {
        "MODEL": {key: value for key, value in cfg.MODEL.items() if key not in OF_THE_RUN},
        "INPUT": {**cfg.INPUT, "PERCENTILES": percentiles},
        "TEST": {"DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE},
    }


def _datasets(cfg: CfgNode) -> list[dict[str, Any]]:
    """Name, role, numbers and licence of each data set, and a SHA-256 of its images' file names and sizes."""
    found = []
    for role in ("TRAIN", "UNLABELED", "TEST"):
        for name in cfg.DATASETS[role]:
            records = get_records(name)
            files = {Path(record["file_name"]) for record in records}
            lines = sorted(f"{file.name}\t{file.stat().st_size if file.is_file() else '-'}\n" for file in files)
            annotations = 0 if role == "UNLABELED" else sum(len(record.get("annotations", ())) for record in records)
            found.append(
                {
                    "name": name,
                    "for": role,
                    "images": len(records),
                    "annotations": annotations,
                    "sha256": hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest(),
                    "licence": _licence(name),
                }
            )
    return found


def _licence(name: str) -> str | None:
    known = {split.name: dataset.licence for dataset in CATALOGUE for split in dataset.splits}
    return next((known[base] for base in sorted(known, key=len, reverse=True) if f"{name}_".startswith(f"{base}_")), None)


def card(facts: Mapping[str, Any]) -> str:
    """README.md of a package: what the model is, what it was trained on, what it can do, and how to use it."""
    images, config, evaluation = facts["images"], facts["config"], facts["evaluation"]
    diameter = images["cell_diameter"]
    sizes = ", ".join(
        f"{name[:-1]} {low} to {high} pixels" for name in ("heights", "widths") for low, _, high in [images[name]]
    )
    limits = "\n".join(f"| `{key}` | {value:.4g} |" for key, value in facts["thresholds"].items())
    tuning = facts["tuning"]
    tuned = f"Tuned: {Tuning(**tuning)}." if tuning else "Not tuned; they are those of the training's config."
    datasets = "\n".join(
        f"| {one['name']} | {one['for']} | {one['images']} | {one['annotations']} | {one['licence'] or '–'} |"
        for one in facts["training"]["datasets"]
    )
    metrics = table(evaluation["metrics"]) if evaluation["metrics"] else "not evaluated"
    before = facts["before"]
    chosen = (
        f"\nOf the model that fine-tuning started from and the fine-tuned one, this is {before['kept']}.\n" if before else ""
    )
    input_ = config["INPUT"]
    stretched = f"percentiles {input_['PERCENTILES']}" if input_["PERCENTILES"] else "none"
    mean, std = (", ".join(f"{value:g}" for value in config["MODEL"][key]) for key in ("PIXEL_MEAN", "PIXEL_STD"))
    return f"""# {facts["name"]}

A {facts["kind"]} ({config["MODEL"]["META_ARCHITECTURE"]}) for images of cells; classes: {", ".join(facts["classes"])}.
Trained with cupre_d2 {facts["versions"].get("cupre_d2", "")}, commit {facts["commit"]}.

    cupre-d2 predict FOLDER_OF_THIS_FILE images/ --output predictions

It is a starting point for training too: `MODEL.WEIGHTS FOLDER_OF_THIS_FILE`.

## What it expects

| | |
|---|---|
| median diameter of a cell | {f"{diameter:.1f} pixels" if diameter else "not known"} |
| images it was trained on | {sizes} |
| channels | {images["channels"] or "all, grey or RGB"} |
| contrast | {stretched} |
| pixels ({input_["FORMAT"]}) | mean {mean}; standard deviation {std} |

Cells much larger or smaller, and images of another kind of microscope, are outside of what it has seen.

## Thresholds

| | |
|---|---|
{limits}

{tuned}

## What it was trained on

| data set | for | images | annotations | licence |
|---|---|---|---|---|
{datasets}

## How well it did

With the thresholds {", ".join(f"{key} {value:g}" for key, value in evaluation["thresholds"].items())}:

```
{metrics}
```
{chosen}"""
