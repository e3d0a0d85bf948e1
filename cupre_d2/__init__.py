"""A Detectron2 plugin for cell instance segmentation from a handful of annotated images.

Importing it registers its backbones, meta-architectures, trainers and data sets; `add_cupre_config(cfg)` adds its keys.
"""

__version__ = "0.2.0"

from cupre_d2 import data, engine, modeling
from cupre_d2.config import add_cupre_config
from cupre_d2.data.synthetic import register_synthetic

register_synthetic()

__all__ = ["add_cupre_config", "data", "engine", "modeling"]
