"""Procedural images: fluorescence nuclei, suspension cells, and coloured shapes in COCO's place.

Everything follows from a seed and an image's index, to the byte, on any machine.
"""

from cupre_d2.data.synthetic.dataset import KINDS, VERSION, Kind, draw, make_dataset, register_synthetic
from cupre_d2.data.synthetic.fluorescence import SMALLEST, Drawing, Fluorescence, draw_microscope
from cupre_d2.data.synthetic.shapes import SHAPES, Scene, draw_shapes
from cupre_d2.data.synthetic.suspension import (
    BRIGHT_FIELD,
    PHASE_CONTRAST,
    Suspension,
    draw_bright_field,
    draw_phase_contrast,
)

__all__ = [
    "BRIGHT_FIELD",
    "KINDS",
    "PHASE_CONTRAST",
    "SHAPES",
    "SMALLEST",
    "VERSION",
    "Drawing",
    "Fluorescence",
    "Kind",
    "Scene",
    "Suspension",
    "draw",
    "draw_bright_field",
    "draw_microscope",
    "draw_phase_contrast",
    "draw_shapes",
    "make_dataset",
    "register_synthetic",
]
