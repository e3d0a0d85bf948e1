"""Procedural images for the quickstart: coloured shapes in COCO's place, a fluorescence-like microscope in the cells'.

Everything follows from a seed and an image's index. Images are drawn on first use into a folder that people can look at:
PNG files and a COCO JSON.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from pycocotools import mask as mask_util
from tqdm import tqdm

from cupre_d2.data.catalog import register_records
from cupre_d2.data.formats.coco_json import load_coco_json

logger = logging.getLogger(__name__)

# Raise it when a drawing changes, so that folders made before are drawn anew.
VERSION = 1
SHAPES = ("disc", "ellipse", "rectangle", "triangle", "star", "ring")
SMALLEST = 40

Drawing = tuple[np.ndarray, list[np.ndarray], list[int]]


def draw_microscope(seed: int, index: int, size: int = 192) -> Drawing:
    """A fluorescence-like image: bright nuclei, some touching or overlapping, out of focus, on an uneven dark ground.

    Args:
        seed, index: the same pair gives the same bytes.
        size: side, pixels; nuclei are 10 to 34 pixels wide at 192 and scale with it.

    Returns:
        size x size x 3 uint8 image; a bool mask for each nucleus, overlapping where nuclei do; class indices, all 0.
    """
    rng = np.random.Generator(np.random.PCG64([seed, index, 1]))
    light = _uneven(rng, size, 0.75, 1.25)
    signal = np.zeros((size, size), np.float32)
    masks = []
    centers: list[np.ndarray] = []
    for _ in range(int(rng.integers(5, 26))):
        radius = rng.uniform(5, 17) * size / 192
        center = rng.uniform(0.03 * size, 0.97 * size, 2)
        if centers and rng.random() < 0.4:
            # Beside one that is there: about one diameter away, so that the two touch or overlap.
            angle = rng.uniform(0, 2 * np.pi)
            center = centers[int(rng.integers(len(centers)))] + 1.6 * radius * np.array([np.cos(angle), np.sin(angle)])
        mask = _blob(rng, size, center, radius)
        if mask.sum() < SMALLEST:
            continue
        masks.append(mask)
        centers.append(center)
        signal += _nucleus(rng, mask, radius)
    image = cv2.GaussianBlur(signal, (0, 0), rng.uniform(0.5, 1.4))
    image = (image + rng.uniform(0.03, 0.1)) * light
    # Shot noise: the fewer photons a full signal stands for, the grainier.
    photons = rng.uniform(60, 400)
    image = rng.poisson(np.clip(image, 0, 2) * photons) / photons + rng.normal(0, 0.01, image.shape)
    grey = (np.clip(image * rng.uniform(0.6, 1.0), 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2), masks, [0] * len(masks)


def _uneven(rng: np.random.Generator, size: int, low: float, high: float) -> np.ndarray:
    coarse = rng.uniform(low, high, (3, 3)).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def _blob(rng: np.random.Generator, size: int, center: np.ndarray, radius: float) -> np.ndarray:
    """A roundish outline: an ellipse whose radius a few low harmonics modulate."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    outline = np.ones_like(angles)
    for harmonic in (2, 3, 4):
        outline += rng.normal(0, 0.12 / harmonic) * np.cos(harmonic * angles + rng.uniform(0, 2 * np.pi))
    axes = np.array([1, rng.uniform(0.65, 1)]) * radius
    turn = rng.uniform(0, np.pi)
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * outline[:, None] * axes
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return _fill(points @ rotation.T + center, size)


def _fill(points: np.ndarray, size: int) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1)
    return mask.astype(bool)


def _nucleus(rng: np.random.Generator, mask: np.ndarray, radius: float) -> np.ndarray:
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    dome = 0.55 + 0.45 * np.clip(distance / (0.6 * radius), 0, 1)
    grain = cv2.GaussianBlur(rng.normal(0, 1, mask.shape).astype(np.float32), (0, 0), radius / 5)
    texture = 1 + 0.12 * grain / (grain.std() + 1e-6)
    return (mask * rng.uniform(0.3, 0.9) * dome * texture).astype(np.float32)


def draw_shapes(seed: int, index: int, size: int = 192) -> Drawing:
    """Two to eight coloured, shaded shapes that occlude each other, on a coloured, textured ground.

    Returns:
        size x size x 3 uint8 image; the visible part of each shape (at least 40 pixels) as a bool mask; its index in
        SHAPES.
    """
    rng = np.random.Generator(np.random.PCG64([seed, index, 2]))
    image = _ground(rng, size)
    masks: list[np.ndarray] = []
    kinds: list[int] = []
    for _ in range(int(rng.integers(2, 9))):
        kind = int(rng.integers(len(SHAPES)))
        mask = _shape(rng, SHAPES[kind], size)
        image[mask] = _shaded(rng, size)[mask]
        masks = [below & ~mask for below in masks] + [mask]
        kinds.append(kind)
    visible = [(mask, kind) for mask, kind in zip(masks, kinds, strict=True) if mask.sum() >= SMALLEST]
    image += rng.normal(0, 4, image.shape)
    drawn = np.clip(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9)), 0, 255).astype(np.uint8)
    return drawn, [mask for mask, _ in visible], [kind for _, kind in visible]


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    coarse = rng.uniform(0, 255, (int(rng.integers(2, 9)),) * 2 + (3,)).astype(np.float32)
    smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return 0.5 * smooth + 0.5 * rng.uniform(0, 255, 3)


def _shaded(rng: np.random.Generator, size: int) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] / size
    direction = rng.normal(size=2)
    shade = 0.75 + 0.35 * (direction[0] * rows + direction[1] * columns)
    return rng.uniform(20, 255, 3) * shade[..., None]


def _shape(rng: np.random.Generator, kind: str, size: int) -> np.ndarray:
    radius = rng.uniform(0.06, 0.22) * size
    center = rng.uniform(0.1, 0.9, 2) * size
    turn = rng.uniform(0, 2 * np.pi)
    corners = {"rectangle": 4, "triangle": 3, "star": 10}.get(kind, 64)
    angles = turn + np.linspace(0, 2 * np.pi, corners, endpoint=False)
    reach = np.full(corners, radius)
    if kind == "star":
        reach[1::2] *= 0.45
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
    if kind == "ellipse":
        points *= (1, 0.5)
    mask = _fill(points + center, size)
    return mask & ~_fill(0.55 * points + center, size) if kind == "ring" else mask


DRAW: dict[str, tuple[Callable[[int, int, int], Drawing], tuple[str, ...]]] = {
    "cells": (draw_microscope, ("cell",)),
    "shapes": (draw_shapes, SHAPES),
}


def make_dataset(kind: str, folder: Path, count: int, seed: int, size: int = 192) -> None:
    """Draws `folder/images/*.png` and `folder/annotations.json`, unless the folder holds just these already.

    The folder appears whole or not at all.

    Args:
        kind: "cells" or "shapes".
    """
    recipe = {"version": VERSION, "kind": kind, "count": count, "seed": seed, "size": size}
    saved = folder / "recipe.json"
    if saved.is_file() and json.loads(saved.read_text()) == recipe:
        return
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    (partial / "images").mkdir(parents=True, exist_ok=True)
    draw, classes = DRAW[kind]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in tqdm(range(count), desc=f"drawing {folder.name}", leave=False):
        picture, masks, categories = draw(seed, index, size)
        name = f"{kind}_{index:06d}.png"
        cv2.imwrite(str(partial / "images" / name), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        images.append({"id": index + 1, "file_name": name, "height": size, "width": size})
        for mask, category in zip(masks, categories, strict=True):
            annotations.append(_annotation(len(annotations) + 1, index + 1, category + 1, mask))
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, start=1)],
    }
    (partial / "annotations.json").write_text(json.dumps(content))
    (partial / "recipe.json").write_text(json.dumps(recipe))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def _annotation(number: int, image: int, category: int, mask: np.ndarray) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    box = [float(value) for value in mask_util.toBbox(rle)]
    area = float(mask_util.area(rle))
    rle["counts"] = rle["counts"].decode("ascii")
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": area,
        "iscrowd": 0,
        "segmentation": rle,
    }


def register_synthetic() -> None:
    """Registers synthetic_{shapes,cells}_{train,val} and synthetic_cells_unlabeled (the training images).

    They are drawn into $CUPRE_SYNTHETIC_ROOT, or output/synthetic, when they are first used.
    """
    if "synthetic_shapes_train" in DatasetCatalog:
        return
    for kind, seed in (("shapes", 100), ("cells", 200)):
        for split, count, offset in (("train", 240, 0), ("val", 24, 1)):
            name = f"synthetic_{kind}_{split}"
            register_records(name, _loader(kind, name, count, seed + offset), DRAW[kind][1])
    unlabeled = _loader("cells", "synthetic_cells_train", 240, 200)
    register_records("synthetic_cells_unlabeled", lambda: [_without_annotations(record) for record in unlabeled()])


def _loader(kind: str, name: str, count: int, seed: int) -> Callable[[], list[dict[str, Any]]]:
    def load() -> list[dict[str, Any]]:
        folder = Path(os.environ.get("CUPRE_SYNTHETIC_ROOT", "output/synthetic")) / name
        make_dataset(kind, folder, count, seed)
        return load_coco_json(folder / "annotations.json", folder / "images")[0]

    return load


def _without_annotations(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "annotations"}
