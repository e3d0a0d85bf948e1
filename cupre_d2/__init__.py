"""A Detectron2 plugin for cell instance segmentation from a handful of annotated images.

Importing it registers its backbones, meta-architectures, trainers and data sets; `add_cupre_config(cfg)` adds its keys.
"""

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ImportError(
        "cupre_d2 needs Detectron2, which is not on PyPI under its own name: pip install --no-build-isolation "
        "'git+https://github.com/facebookresearch/detectron2.git', or, without a route to GitHub, make setup in a checkout "
        "of cupre_d2, which installs PyPI's copy, sal-detectron2"
    ) from None

from cupre_d2 import data, engine, modeling
from cupre_d2.config import add_cupre_config
from cupre_d2.data.mappers import warn_of_deep_images
from cupre_d2.data.synthetic import register_synthetic

register_synthetic()
warn_of_deep_images()

# setup.py reads it here.
__version__ = "0.2.0"

__all__ = ["add_cupre_config", "data", "engine", "modeling"]
