"""The augmented crops that are clustered, and the loader that trains on them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch.utils.data import DataLoader

from cupre_d2.data.catalog import Record
from cupre_d2.data.loaders import EndlessBatches, SeededDataset, build_endless_loader
from cupre_d2.data.mappers import DetectionMapper

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """Augmented crops, held in memory: 5,000 of 256 pixels are 1 GB.

    Attributes:
        images: N x 3 x S x S uint8.
        files: of each the file it is cut from.
        cell_types: of each the record's cell_type, "" where it has none.
    """

    images: torch.Tensor
    files: list[str]
    cell_types: list[str]

    def __len__(self) -> int:
        return len(self.images)


def draw_samples(cfg: CfgNode, records: list[Record], count: int, seed: Sequence[int]) -> Samples:
    """So many crops of the images, each image about as often as every other, augmented by INPUT.CELL_AUGMENTATION.

    Args:
        seed: numbers that are not negative; with the records they decide every pixel, whatever the number of workers.

    Raises:
        DatasetError: an image cannot be read.
    """
    if len(records) == 1:
        logger.warning(f"one unlabeled image, {records[0]['file_name']}: its clusters are parts and looks of that image")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.CELL_AUGMENTATION.ENABLED = True
    draws = list(islice(chain.from_iterable(EndlessBatches([0] * len(records), 1, seed)), count))
    loader: Any = DataLoader(
        SeededDataset(records, DetectionMapper(cfg, True), seed),  # type: ignore[arg-type]
        sampler=draws,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        # Of its own, so that beginning an epoch draws nothing from the generator that the model draws from.
        generator=torch.Generator(),
    )
    side = cfg.INPUT.CELL_AUGMENTATION.SIZE
    images = torch.empty(count, 3, side, side, dtype=torch.uint8)
    for image, drawn in zip(images, loader, strict=True):
        image.copy_(drawn["image"])
    drawn_records = [records[draw.index] for draw in draws]
    return Samples(
        images,
        [record["file_name"] for record in drawn_records],
        [record.get("cell_type", "") for record in drawn_records],
    )


class LabeledSamples(Sequence[Record]):
    """Samples with their clusters as records: "image", "cluster", "file_name"."""

    def __init__(self, samples: Samples, clusters: Sequence[int]) -> None:
        self._samples = samples
        self._clusters = clusters

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        return {
            "image": self._samples.images[index],
            "cluster": int(self._clusters[index]),
            "file_name": self._samples.files[index],
        }


class CropMapper:
    """A random square of a sample, `size` pixels a side, which is at most the sample's."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, record: Record) -> Record:
        height, width = record["image"].shape[-2:]
        top, left = np.random.randint(height - self._size + 1), np.random.randint(width - self._size + 1)
        crop = record["image"][:, top : top + self._size, left : left + self._size]
        return {**record, "image": crop.contiguous()}


def build_sample_loader(
    cfg: CfgNode, samples: Samples, clusters: Sequence[int], seed: Sequence[int], start: int = 0
) -> DataLoader:
    """Endless loader of crops of CLUSTERING.CROP pixels with their "cluster"; `seed` and `start` as of the other loaders."""
    labeled = LabeledSamples(samples, clusters)
    return build_endless_loader(cfg, labeled, CropMapper(cfg.CLUSTERING.CROP), [0] * len(labeled), seed, start)
