"""What can be drawn, by name."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from cupre_d2.data.synthetic.fluorescence import Drawing, Fluorescence, draw_microscope
from cupre_d2.data.synthetic.shapes import SHAPES, Scene, draw_shapes
from cupre_d2.data.synthetic.suspension import BRIGHT_FIELD, PHASE_CONTRAST, draw_bright_field, draw_phase_contrast
from cupre_d2.errors import DatasetError

# Smallest side of an image, pixels.
SMALLEST_SIZE = 64
# Of any parameter; nothing here needs more.
_LARGEST = 1_000_000


class Kind(NamedTuple):
    """A kind of images.

    Attributes:
        draw: takes seed, index, size and parameters.
        classes: names of its categories.
        defaults: its parameters, a frozen dataclass.
        counted: whether it is one of the counting papers', whose data sets have a table of counts.
    """

    draw: Callable[[int, int, int, Any], Drawing]
    classes: tuple[str, ...]
    defaults: Any
    counted: bool = False


KINDS = {
    "cells": Kind(draw_microscope, ("cell",), Fluorescence()),
    "bright_field": Kind(draw_bright_field, ("cell",), BRIGHT_FIELD, counted=True),
    "phase_contrast": Kind(draw_phase_contrast, ("cell",), PHASE_CONTRAST, counted=True),
    "shapes": Kind(draw_shapes, SHAPES, Scene()),
}


def draw(kind: str, seed: int, index: int, size: int, **parameters: Any) -> Drawing:
    """Draws one image; the same arguments give the same bytes on any machine.

    Args:
        kind: one of KINDS.
        seed, index: from 0.
        size: side, pixels, at least 64.
        parameters: what is to differ from the defaults, by the names of the kind's dataclass.

    Returns:
        size x size x 3 uint8 image; N x size x size bool masks, N being the exact count; N class indices.

    Raises:
        DatasetError: the kind or a parameter is unknown, or a value cannot be.
    """
    require(seed=(seed, 0), index=(index, 0), size=(size, SMALLEST_SIZE))
    return kind_of(kind).draw(seed, index, size, parameters_of(kind, parameters))


def kind_of(kind: str) -> Kind:
    """The entry of KINDS, or a DatasetError that lists them."""
    if kind not in KINDS:
        raise DatasetError(f"procedural images of kind {kind!r}: expected one of {', '.join(KINDS)}")
    return KINDS[kind]


def parameters_of(kind: str, changes: Mapping[str, Any]) -> Any:
    """The kind's defaults with some of them changed; DatasetError if one does not exist or has no such value."""
    defaults = kind_of(kind).defaults
    known = asdict(defaults)
    for name, value in changes.items():
        where = f"procedural images of kind {kind!r}: parameter {name!r}"
        if name not in known:
            raise DatasetError(f"{where} does not exist; expected one of {', '.join(known)}")
        if not _is_like(known[name], value):
            raise DatasetError(
                f"{where} is {value!r}; expected numbers of {known[name]}'s types, not negative, in rising order"
            )
    changed = {name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in changes.items()}
    try:
        return replace(defaults, **changed)
    except ValueError as error:
        raise DatasetError(f"procedural images of kind {kind!r}: {error}") from error


def _is_like(default: Any, value: Any) -> bool:
    if isinstance(default, tuple):
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(default)
            and all(map(_is_like, default, value))
            and (len(value) != 2 or value[0] <= value[1])
        )
    if isinstance(value, bool) or not isinstance(value, int if isinstance(default, int) else (int, float)):
        return False
    # What has a negative default may be negative.
    return (-_LARGEST if default < 0 else 0) <= value <= _LARGEST


def require(**numbers: tuple[Any, int]) -> None:
    """DatasetError unless each is a whole number and not below the least one beside it."""
    for name, (value, least) in numbers.items():
        if not isinstance(value, int) or value < least:
            raise DatasetError(f"procedural images: {name} is {value!r}; expected a whole number of at least {least}")
