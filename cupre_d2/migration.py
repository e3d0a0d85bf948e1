"""Reading config files that were written for detectron2-ResNeSt, such as LIVECell's, or for an earlier version, unchanged.

That fork of Detectron2 builds a ResNeSt under the name of Detectron2's ResNet builder when RADIX is above 1, and then has
DEEP_STEM, AVD and AVG_DOWN on, whatever the file says of them (a dumped config says False). Read by Detectron2's rules,
such a file would quietly train a ResNet.

Up to version 0.1.0 AMT2.BACKBONE_POLICY said what becomes of the backbone in the COCO phase, and AMT2.MOCO_SOLVER had eight
keys, beside which the MoCo phase read SOLVER's.
"""

import copy
import logging
from typing import Any

from detectron2.utils.logger import log_first_n

from cupre_d2.errors import ConfigError

BUILDERS = {
    "build_resnet_backbone": "build_resnest_backbone",
    "build_resnet_fpn_backbone": "build_resnest_fpn_backbone",
}
OF_RESNEST = ("DEEP_STEM", "AVD", "AVG_DOWN")
# A key that only this plugin has: every config that it saved holds it, with a RADIX that Detectron2's ResNets do not read.
OURS = "WIDTH_MULTIPLIER"

POLICY = "AMT2.BACKBONE_POLICY"
POLICIES = ("l2sp", "free", "frozen")
# Old keys, and what says the same now: for messages where an old key is not migrated, on the command line.
RENAMED = {POLICY: "l2sp and free are SOLVER.L2SP.ENABLED True and False, frozen is AMT2.FREEZE_BACKBONE True"}
# Of SOLVER, what the MoCo phase read up to 0.1.0 and has in AMT2.MOCO_SOLVER now.
INHERITED = (
    "BASE_LR_END",
    "BIAS_LR_FACTOR",
    "CLIP_GRADIENTS",
    "GAMMA",
    "NESTEROV",
    "NUM_DECAYS",
    "RESCALE_INTERVAL",
    "WARMUP_FACTOR",
    "WARMUP_METHOD",
    "WEIGHT_DECAY_BIAS",
    "WEIGHT_DECAY_NORM",
)


def migrate(raw: dict[str, Any], source: str) -> dict[str, Any]:
    """A config file's content as this plugin has to read it, and what was changed in the log.

    Files that name this plugin's builders or Detectron2's plain ResNet, and configs that this version saved, stay as they
    are. A config that an earlier version saved, also that of a half-finished run, becomes what it trained with.

    Args:
        raw: keys and values, `_BASE_` resolved; not changed.
        source: the file's name, for messages.

    Raises:
        ConfigError: a ResNet with parts that only the fork has, or an AMT2.BACKBONE_POLICY without a successor.
    """
    return _of_0_1_0(_of_the_fork(raw, source), source)


def _of_0_1_0(raw: dict[str, Any], source: str) -> dict[str, Any]:
    section, key = POLICY.split(".")
    if not isinstance(raw.get(section), dict) or key not in raw[section]:
        return raw
    migrated = copy.deepcopy(raw)
    policy = migrated[section].pop(key)
    if policy not in POLICIES:
        raise ConfigError(f"{source}: {POLICY} {policy!r}: expected one of {', '.join(POLICIES)}")
    trainer = migrated.get("TRAINER")
    if trainer is None and policy != "l2sp":
        # Of all stages of a pipeline, that it had no meaning for; SOLVER.L2SP.ENABLED has.
        raise ConfigError(f"{source}: {POLICY} {policy}: no such config key any more; {RENAMED[POLICY]}")
    said = f"{source}: of version 0.1.0; {RENAMED[POLICY]}"
    if trainer == "AlternatingTrainer":
        changed = _amt2_of_0_1_0(migrated[section], migrated.get("SOLVER"), policy)
        migrated[section] |= changed.pop(section)
        migrated |= changed
        said += "; AMT2.MOCO_SOLVER takes what it lacks from SOLVER"
    log_first_n(logging.INFO, said, key="message", name=__name__)
    return migrated


def _amt2_of_0_1_0(amt2: dict[str, Any], solver: Any, policy: str) -> dict[str, Any]:
    """What changes in a stage of AMT²; a section that is none is left to the check of types."""
    own, moco = _dict(solver), _dict(amt2.get("MOCO_SOLVER"))
    inherited = {name: own[name] for name in INHERITED if name in own}
    changed: dict[str, Any] = {"AMT2": {"MOCO_SOLVER": {**inherited, **moco}, "FREEZE_BACKBONE": policy == "frozen"}}
    if policy != "l2sp":
        changed["SOLVER"] = {**own, "L2SP": {**_dict(own.get("L2SP")), "ENABLED": False}}
    return changed


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _of_the_fork(raw: dict[str, Any], source: str) -> dict[str, Any]:
    resnets, backbone = (_dict(_dict(raw.get("MODEL")).get(name)) for name in ("RESNETS", "BACKBONE"))
    name = backbone.get("NAME")
    if OURS in resnets or not isinstance(name, str) or "resnet" not in name:
        return raw
    radix = resnets.get("RADIX", 1)
    if not isinstance(radix, int) or radix <= 1:
        if parts := [key for key in OF_RESNEST if resnets.get(key) is True]:
            raise ConfigError(
                f"{source}: MODEL.RESNETS.{parts[0]} True without RADIX above 1: a variant of ResNet that Detectron2's "
                "builder does not build; expected RADIX 2 (ResNeSt), or False"
            )
        return raw
    if name not in BUILDERS:
        raise ConfigError(f"{source}: MODEL.BACKBONE.NAME {name} with RADIX {radix}: expected {' or '.join(BUILDERS)}")
    migrated = copy.deepcopy(raw)
    migrated["MODEL"]["BACKBONE"]["NAME"] = BUILDERS[name]
    migrated["MODEL"]["RESNETS"] |= dict.fromkeys(OF_RESNEST, True)
    said = (
        f"{source}: of detectron2-ResNeSt; with RADIX {radix}, MODEL.BACKBONE.NAME {name} means {BUILDERS[name]}, "
        f"and {', '.join(OF_RESNEST)} are on"
    )
    # A stage's file is read again when it is a pipeline of its own.
    log_first_n(logging.INFO, said, key="message", name=__name__)
    return migrated
