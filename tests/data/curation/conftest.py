"""A small COCO set without a defect, to plant one in."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

HEIGHT, WIDTH = 60, 80
CELLS = 12


def save_noise(file: Path, seed: int, shape: tuple[int, ...] = (HEIGHT, WIDTH)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)).save(file)


def square(x: float, y: float, side: float = 10) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


@dataclass
class CocoSet:
    """Images of noise with a grid of square cells; `content` is written by `write`."""

    file: Path
    content: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.file.parent / "images"

    def write(self) -> Path:
        self.file.write_text(json.dumps(self.content))
        return self.file

    def add_cell(self, image: int, polygon: list[float], category: int = 1) -> dict[str, Any]:
        x, y = polygon[::2], polygon[1::2]
        annotation = {
            "id": len(self.content["annotations"]) + 1,
            "image_id": image,
            "category_id": category,
            "bbox": [min(x), min(y), max(x) - min(x), max(y) - min(y)],
            "area": 100,
            "iscrowd": 0,
            "segmentation": [polygon],
        }
        self.content["annotations"].append(annotation)
        return annotation


@pytest.fixture()
def make_set(tmp_path: Path) -> Callable[..., CocoSet]:
    """Makes <name>.json and its images, whose ids count from `first`; sets share the folder of images."""

    def make(name: str = "train", images: int = 3, first: int = 1, cells: int = CELLS) -> CocoSet:
        content: dict[str, Any] = {"info": {"year": 2021}, "categories": [{"id": 1, "name": "cell"}]}
        content |= {"images": [], "annotations": []}
        made = CocoSet(tmp_path / f"{name}.json", content)
        for number in range(first, first + images):
            save_noise(made.folder / f"A172_{number}.png", number)
            content["images"].append({"id": number, "file_name": f"A172_{number}.png", "height": HEIGHT, "width": WIDTH})
            for cell in range(cells):
                made.add_cell(number, square(2 + 19 * (cell % 4), 2 + 18 * (cell // 4)))
        return made

    return make
