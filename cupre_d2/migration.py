"""Reading config files that were written for detectron2-ResNeSt, such as LIVECell's, unchanged.

That fork of Detectron2 builds a ResNeSt under the name of Detectron2's ResNet builder when RADIX is above 1, and then has
DEEP_STEM, AVD and AVG_DOWN on, whatever the file says of them (a dumped config says False). Read by Detectron2's rules,
such a file would quietly train a ResNet.
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


def migrate(raw: dict[str, Any], source: str) -> dict[str, Any]:
    """A config file's content as this plugin has to read it, and what was changed in the log.

    Files that name this plugin's builders or Detectron2's plain ResNet, and configs that this plugin saved, stay as they
    are.

    Args:
        raw: keys and values, `_BASE_` resolved; not changed.
        source: the file's name, for messages.

    Raises:
        ConfigError: a ResNet with parts that only the fork has.
    """
    resnets, backbone = _section(raw, "RESNETS"), _section(raw, "BACKBONE")
    name = backbone.get("NAME")
    if OURS in resnets or not isinstance(name, str) or "resnet" not in name:
        return raw
    radix = resnets.get("RADIX", 1)
    if not isinstance(radix, int) or radix <= 1:
        _refuse_parts(resnets, source)
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


def _section(raw: dict[str, Any], name: str) -> dict[str, Any]:
    model = raw.get("MODEL")
    section = model.get(name) if isinstance(model, dict) else None
    return section if isinstance(section, dict) else {}


def _refuse_parts(resnets: dict[str, Any], source: str) -> None:
    parts = [key for key in OF_RESNEST if resnets.get(key) is True]
    if parts:
        raise ConfigError(
            f"{source}: MODEL.RESNETS.{parts[0]} True without RADIX above 1: a variant of ResNet that Detectron2's builder "
            "does not build; expected RADIX 2 (ResNeSt), or False"
        )
