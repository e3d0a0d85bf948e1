"""Backbones and meta-architectures; importing this registers them with Detectron2."""

from cupre_d2.modeling.backbone import resnest
from cupre_d2.modeling.meta_arch import moco, semantic_watershed

__all__ = ["moco", "resnest", "semantic_watershed"]
