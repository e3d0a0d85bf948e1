"""Procedural images for the quickstart: coloured shapes in COCO's place, a fluorescence-like microscope in the cells'.

Nothing here is from the paper. Everything follows from a seed and an image's index. Images are drawn on first use into
a folder that people can look at: PNG files and a COCO JSON.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from pycocotools import mask as mask_util
from tqdm import tqdm

from cupre_d2.data.catalog import Record, register_records
from cupre_d2.data.formats.coco_json import load_coco_json
from cupre_d2.errors import DatasetError

logger = logging.getLogger(__name__)

# Raise it when a drawing changes, so that folders made before are drawn anew.
VERSION = 2
SHAPES = ("disc", "ellipse", "rectangle", "triangle", "star", "ring")
# Fewest pixels of a mask.
SMALLEST = 40

# Image (H x W x 3 uint8, RGB), masks (N x H x W bool), class indices (N).
Drawing = tuple[np.ndarray, np.ndarray, list[int]]


# ---------------------------------------------------------------------------------------------------- the microscope


def draw_microscope(seed: int, index: int, size: int = 192) -> Drawing:
    """A fluorescence-like image: bright nuclei on a dark, uneven ground, in clusters that touch and overlap.

    At 192 px there are 5 to 25 nuclei of 10 to 30 px (diameter of the circle of equal area); in an image of another
    size they keep theirs and their number goes with its area. Light adds up where nuclei overlap, and both masks cover
    the place. A mask follows the outline, where the light falls to half, before the lens blurs it.

    Args:
        seed, index: from 0; the same pair gives the same bytes.
        size: side, pixels, at least 32.

    Returns:
        size x size x 3 uint8 image; N x size x size bool masks of at least 40 pixels; class indices, all 0.
    """
    rng = np.random.Generator(np.random.PCG64([seed, index, 1]))
    cells = _place_cells(rng, max(1, round(rng.integers(5, 26) * (size / 192) ** 2)), size)
    light = np.zeros((size, size), np.float32)
    masks = np.zeros((len(cells), size, size), bool)
    for mask, cell in zip(masks, cells, strict=True):
        light[cell.window] += cell.light
        mask[cell.window] = cell.mask
    return np.repeat(_photograph(rng, light)[:, :, None], 3, axis=2), masks, [0] * len(cells)


class _Cell(NamedTuple):
    # y, x in pixels of the image.
    center: np.ndarray
    radius: float
    # Where in the image the next two belong.
    window: tuple[slice, slice]
    mask: np.ndarray
    light: np.ndarray


def _place_cells(rng: np.random.Generator, count: int, size: int) -> list[_Cell]:
    """About two of three nuclei lie against one placed before; no two share more than a quarter of the smaller."""
    diameter = rng.uniform(14, 25)
    elongation = rng.uniform(1.05, 1.35)
    texture = _noise(rng, 128, 1.5) + _noise(rng, 128, 4)
    covered = np.zeros((size, size), bool)
    cells: list[_Cell] = []
    smallest = size**2
    for _ in range(12 * count):
        radius = float(np.clip(diameter * rng.lognormal(0, 0.18), 10, 30)) / 2
        center = rng.uniform(0, size, 2)
        if cells and rng.random() < 0.65:
            center = _beside(rng, cells[rng.integers(len(cells))], radius)
        if center.min() < 0 or center.max() >= size:
            continue
        cell = _draw_cell(rng, center, radius, elongation, texture, size)
        pixels = np.count_nonzero(cell.mask)
        shared = np.count_nonzero(cell.mask & covered[cell.window])
        if pixels < SMALLEST or shared > 0.25 * min(pixels, smallest):
            continue
        covered[cell.window] |= cell.mask
        smallest = min(smallest, pixels)
        cells.append(cell)
        if len(cells) == count:
            break
    return cells


def _beside(rng: np.random.Generator, neighbour: _Cell, radius: float) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    distance = (radius + neighbour.radius) * rng.uniform(0.75, 1.0)
    return neighbour.center + distance * np.array([np.sin(angle), np.cos(angle)])


def _draw_cell(
    rng: np.random.Generator, center: np.ndarray, radius: float, elongation: float, texture: np.ndarray, size: int
) -> _Cell:
    reach = int(2 * radius) + 4
    low = np.maximum(np.round(center).astype(int) - reach, 0)
    high = np.minimum(np.round(center).astype(int) + reach + 1, size)
    rows, columns = np.ogrid[low[0] : high[0], low[1] : high[1]]
    depth = _depth(rng, rows - center[0], columns - center[1], radius, elongation * rng.lognormal(0, 0.1))
    top, left = rng.integers(0, np.array(texture.shape) - depth.shape)
    grain = texture[top : top + depth.shape[0], left : left + depth.shape[1]]
    dome = 0.7 + 0.3 * np.sqrt(np.clip(depth, 0, 1))
    # The edge is 1.5 pixels wide, half as bright on the outline.
    edge = np.clip(depth * radius / 1.5 + 0.5, 0, 1)
    light = rng.lognormal(0, 0.3) * edge * dome * np.clip(1 + 0.13 * grain, 0, 2)
    if rng.random() < 0.2:
        # Above or below the focal plane.
        light = cv2.GaussianBlur(light, (0, 0), rng.uniform(1, 2))
    return _Cell(center, radius, (slice(low[0], high[0]), slice(low[1], high[1])), depth >= 0, light)


def _depth(rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray, radius: float, elongation: float) -> np.ndarray:
    """1 in the middle of an irregular ellipse, 0 on its outline, negative outside."""
    turn = rng.uniform(0, np.pi)
    along = (columns * np.cos(turn) + rows * np.sin(turn)) / np.sqrt(elongation)
    across = (rows * np.cos(turn) - columns * np.sin(turn)) * np.sqrt(elongation)
    angle = np.arctan2(across, along)
    outline = np.ones_like(angle)
    for waves in range(2, 6):
        outline += rng.normal(0, 0.09 / waves) * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    return (1 - np.hypot(along, across) / (radius * outline)).astype(np.float32)


def _photograph(rng: np.random.Generator, light: np.ndarray) -> np.ndarray:
    """What optics and camera add: haze, uneven illumination, defocus, shot and read noise. H x W uint8."""
    size = light.shape[0]
    haze = cv2.GaussianBlur(light, (0, 0), 12) * rng.uniform(0.05, 0.25)
    ground = rng.uniform(0.03, 0.15) * (1 + 0.35 * _uneven(rng, size))
    illumination = 1 + 0.25 * _uneven(rng, size)
    exposed = cv2.GaussianBlur((light + haze + ground) * illumination, (0, 0), rng.uniform(0.5, 1.3))
    # Of a signal of 1: the fewer, the grainier.
    photons = rng.uniform(40, 300)
    counted = rng.poisson(np.clip(exposed, 0, None) * photons) / photons + rng.normal(0, 0.012, light.shape)
    return np.clip(counted * rng.uniform(80, 170), 0, 255).astype(np.uint8)


# --------------------------------------------------------------------------------------------------------- the shapes


def draw_shapes(seed: int, index: int, size: int = 192) -> Drawing:
    """Two to eight coloured, shaded shapes that occlude each other, on a coloured, textured ground.

    Args:
        seed, index: from 0; the same pair gives the same bytes.
        size: side, pixels, at least 64; shapes grow with it.

    Returns:
        size x size x 3 uint8 image; the visible part of each shape, if at least 40 pixels, as N x size x size bool
        masks that do not overlap; their indices in SHAPES.
    """
    rng = np.random.Generator(np.random.PCG64([seed, index, 2]))
    canvas = _ground(rng, size)
    ground_color = canvas.mean((0, 1))
    owner = np.full((size, size), -1)
    kinds = rng.integers(0, len(SHAPES), rng.integers(2, 9))
    for number, kind in enumerate(kinds):
        mask = np.zeros((size, size), np.uint8)
        # OpenCV takes sixteenths of a pixel; what lies in two outlines is a hole.
        outlines = [np.round(outline * 16).astype(np.int32) for outline in _outlines(rng, SHAPES[kind], size)]
        cv2.fillPoly(mask, outlines, (1,), shift=4)
        _paint(rng, canvas, mask, _color_unlike(rng, ground_color))
        owner[mask > 0] = number
    canvas += rng.normal(0, rng.uniform(1, 6), canvas.shape)
    masks = owner == np.arange(len(kinds))[:, None, None]
    visible = masks.sum((1, 2)) >= SMALLEST
    return np.clip(canvas, 0, 255).astype(np.uint8), masks[visible], kinds[visible].tolist()


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """A gradient between two colours, clouds and, often, stripes. H x W x 3 float32."""
    ramp = _ramp(rng, size, size)[:, :, None]
    canvas = rng.uniform(30, 225, 3) * (1 - ramp) + rng.uniform(30, 225, 3) * ramp
    clouds = rng.normal(0, 15, (int(rng.integers(4, 20)),) * 2 + (3,))
    canvas += cv2.resize(clouds, (size, size), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        waves = np.sin(2 * np.pi * rng.uniform(3, 12) * _ramp(rng, size, size))
        canvas += rng.uniform(5, 25) * waves[:, :, None]
    return canvas.astype(np.float32)


def _outlines(rng: np.random.Generator, kind: str, size: int) -> list[np.ndarray]:
    """Outlines as N x 2 arrays of x, y in pixels; the second one, if any, is a hole."""
    turn = rng.uniform(0, 2 * np.pi)
    radius = rng.uniform(0.09, 0.22) * size
    center = rng.uniform(0.05, 0.95, 2) * size
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    narrow = rng.uniform(0.4, 0.7)
    eighth = np.sqrt(0.5) * np.array([[1, 1], [-1, 1]])
    outlines = {
        "disc": [_corners(64)],
        "ellipse": [_corners(64) * [1.2, 1.2 * narrow]],
        # Stood on a side before one axis is shortened, which would make a rhomb of it otherwise.
        "rectangle": [_corners(4) @ eighth * [1.2, rng.uniform(0.5, 1.2)]],
        "triangle": [_corners(3) * [1.1, rng.uniform(0.8, 1.2)]],
        "star": [_corners(10) * np.tile([1.2, 0.5], 5)[:, None]],
        "ring": [_corners(64), _corners(64) * narrow],
    }
    return [outline * radius @ rotation + center for outline in outlines[kind]]


def _corners(count: int) -> np.ndarray:
    angles = np.arange(count) * 2 * np.pi / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _paint(rng: np.random.Generator, canvas: np.ndarray, mask: np.ndarray, color: np.ndarray) -> None:
    """Lays a shape on the canvas, brighter on one side, with an edge of a pixel."""
    x, y, width, height = cv2.boundingRect(mask)
    window = slice(max(y - 2, 0), y + height + 2), slice(max(x - 2, 0), x + width + 2)
    alpha = cv2.GaussianBlur(mask[window].astype(np.float32), (3, 3), 0)[:, :, None]
    shade = rng.uniform(0.5, 0.8) + rng.uniform(0.4, 0.7) * _ramp(rng, *alpha.shape[:2])
    canvas[window] += alpha * (color * shade[:, :, None] - canvas[window])


def _color_unlike(rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """The one of four saturated colours that differs most from another, so that most shapes can be seen."""
    colors = rng.uniform(40, 255, (4, 3))
    colors[np.arange(4), rng.integers(0, 3, 4)] *= 0.3
    return colors[np.abs(colors - other).sum(1).argmax()]


# ------------------------------------------------------------------------------------------------- textures for both


def _noise(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """Smooth noise of mean 0 and deviation 1."""
    noise = cv2.GaussianBlur(rng.standard_normal((size, size), np.float32), (0, 0), sigma)
    return noise / noise.std()


def _uneven(rng: np.random.Generator, size: int) -> np.ndarray:
    """A surface that changes over the whole image, about -1 to 1."""
    return cv2.resize(rng.uniform(-1, 1, (3, 3)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A plane that rises from 0 to 1 in any direction, H x W."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.ogrid[:height, :width]
    plane = rows * np.sin(angle) + columns * np.cos(angle)
    return ((plane - plane.min()) / max(np.ptp(plane), 1e-6)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------- data sets


DRAW: dict[str, tuple[Callable[[int, int, int], Drawing], tuple[str, ...]]] = {
    "cells": (draw_microscope, ("cell",)),
    "shapes": (draw_shapes, SHAPES),
}


def register_synthetic() -> None:
    """Registers synthetic_{shapes,cells}_{train,val} and synthetic_cells_unlabeled (the training images).

    They are drawn into $CUPRE_SYNTHETIC_ROOT, or output/synthetic, when they are first used.
    Registering them again does nothing.
    """
    if "synthetic_shapes_train" in DatasetCatalog:
        return
    # Other seeds, other images: none of the validation images is a training image.
    for kind, seed in (("shapes", 100), ("cells", 200)):
        for split, count, offset in (("train", 240, 0), ("val", 24, 1)):
            name = f"synthetic_{kind}_{split}"
            register_records(name, partial(_load, kind, name, count, seed + offset), DRAW[kind][1])
    register_records("synthetic_cells_unlabeled", _load_unlabeled)


def _load(kind: str, name: str, count: int, seed: int) -> list[Record]:
    root = Path(os.environ.get("CUPRE_SYNTHETIC_ROOT") or "output/synthetic").expanduser()
    make_dataset(kind, root / name, count, seed)
    return load_coco_json(root / name / "annotations.json", root / name / "images")[0]


def _load_unlabeled() -> list[Record]:
    records = DatasetCatalog.get("synthetic_cells_train")
    return [{field: value for field, value in record.items() if field != "annotations"} for record in records]


def make_dataset(kind: str, folder: Path, count: int, seed: int, size: int = 192) -> None:
    """Draws `folder/images/*.png`, `folder/annotations.json` (COCO, masks as RLE) and `folder/recipe.json`.

    A folder made by the same recipe is kept, one made by another is replaced. The folder appears whole or not at all,
    so several processes may ask for it at once.

    Args:
        kind: "cells" or "shapes".
        folder: the folder to make.
        count: number of images.
        seed, size: as `draw_microscope` takes them.

    Raises:
        DatasetError: the kind is unknown, the folder exists but was not made here, or it cannot be written.
    """
    if kind not in DRAW:
        raise DatasetError(f"procedural images of kind {kind!r}: expected one of {', '.join(DRAW)}")
    recipe = {"version": VERSION, "kind": kind, "count": count, "seed": seed, "size": size}
    if _recipe_of(folder) == recipe:
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _write(temporary / "new", recipe)
            _put_in_place(temporary, folder, recipe)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise DatasetError(f"{folder}: procedural images cannot be written there ({error.strerror})") from error


def _recipe_of(folder: Path) -> dict[str, Any] | None:
    """The recipe that a folder was made by; None if there is no folder."""
    if not folder.exists():
        return None
    try:
        return json.loads((folder / "recipe.json").read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{folder}: no recipe.json that can be read, so it was not drawn by this program; expected no folder of "
            "that name, or CUPRE_SYNTHETIC_ROOT set to another place"
        ) from error


def _write(folder: Path, recipe: dict[str, Any]) -> None:
    kind, seed, size = recipe["kind"], recipe["seed"], recipe["size"]
    draw, classes = DRAW[kind]
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in tqdm(range(recipe["count"]), desc=f"drawing {kind}", leave=False):
        picture, masks, categories = draw(seed, index, size)
        name = f"{kind}_{index:06d}.png"
        _, png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        (folder / "images" / name).write_bytes(png.tobytes())
        images.append({"id": index + 1, "file_name": name, "height": size, "width": size})
        for mask, category in zip(masks, categories, strict=True):
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **_annotation(mask, category + 1)})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, start=1)],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "recipe.json").write_text(json.dumps(recipe))


def _annotation(mask: np.ndarray, category: int) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask).view(np.uint8))
    return {
        "category_id": category,
        "bbox": mask_util.toBbox(rle).tolist(),
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
    }


def _put_in_place(temporary: Path, folder: Path, recipe: dict[str, Any]) -> None:
    """Moves an outdated folder out of the way and the new one in; another process may have been faster."""
    try:
        if _recipe_of(folder) not in (None, recipe):
            folder.rename(temporary / "old")
        (temporary / "new").rename(folder)
    except OSError:
        if _recipe_of(folder) != recipe:
            raise
