"""Data loaders of the trainers, and the records and augmented crops that they draw from.

What the endless ones yield follows from the seed and the iteration alone.
"""

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_test_loader
from detectron2.data.build import filter_images_with_only_crowd_annotations, trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from cupre_d2.data.catalog import Record
from cupre_d2.data.few_shot import get_records
from cupre_d2.data.mappers import DetectionMapper, TwoViewMapper
from cupre_d2.errors import ConfigError, DatasetError
from cupre_d2.randomness import derive, seeded

logger = logging.getLogger(__name__)

LONGEST_CHECKPOINT = 120


def training_records(cfg: CfgNode) -> list[Record]:
    """Records of DATASETS.TRAIN, without those that have no instance where DATALOADER.FILTER_EMPTY_ANNOTATIONS says so.

    Raises:
        DatasetError: there are unlabeled images, or no image is left.
    """
    records = [record for name in cfg.DATASETS.TRAIN for record in get_records(name)]
    unlabeled = sum("annotations" not in record for record in records)
    if unlabeled:
        raise DatasetError(
            f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}: {unlabeled} of {len(records)} images have no "
            "annotations; expected an annotated data set (unlabeled images go to DATASETS.UNLABELED)"
        )
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    if not records:
        raise DatasetError(f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN) or '()'}: no image to train on")
    return records


def unlabeled_records(cfg: CfgNode) -> list[Record]:
    """Records of DATASETS.UNLABELED, each image once, annotations taken off; repeats are counted and logged.

    Pages of a stack, and other channels of a file, are images of their own.

    Raises:
        DatasetError: there is none.
    """
    found = [record for name in cfg.DATASETS.UNLABELED for record in get_records(name)]
    records = {_image_key(record): {key: record[key] for key in record if key != "annotations"} for record in found}
    if len(records) < len(found):
        names = ", ".join(cfg.DATASETS.UNLABELED)
        logger.info(
            "DATASETS.UNLABELED %s: left out %d repeats of its %d images", names, len(found) - len(records), len(found)
        )
    if not records:
        raise DatasetError(f"DATASETS.UNLABELED {', '.join(cfg.DATASETS.UNLABELED) or '()'}: no image to learn from")
    return list(records.values())


def _image_key(record: Record) -> tuple[Any, ...]:
    return record["file_name"], record.get("page"), tuple(record.get("channels") or ())


def shard(records: list[Record], index: int, count: int, seed: int) -> list[Record]:
    """Shard `index` of `count`: disjoint, covering, equal in size to within one image, the same for the same seed.

    CUPre §III: "COCO is split into ten equal subsets"; how is not said, so at random.

    Raises:
        DatasetError: fewer records than shards.
    """
    if len(records) < count:
        raise DatasetError(f"AMT2.ROUNDS {count}: more shards than training images ({len(records)})")
    order = np.random.default_rng(max(seed, 0)).permutation(len(records))
    return [records[i] for i in sorted(np.array_split(order, count)[index])]


class Draw(NamedTuple):
    """One image of the endless stream.

    Attributes:
        position: in the stream of all processes, from 0; with the seed it decides the image's augmentations.
        index: of the record.
    """

    position: int
    index: int  # type: ignore[assignment]  # tuple.index, which nobody calls here


class EndlessBatches(Sampler[list[Draw]]):
    """Batches of shuffled passes over the records, the same for the same seed wherever one begins.

    As in Detectron2, passes follow each other without a break, and images of one group (see `aspect_groups`) are
    batched together. Process r of R gets the r-th part of each batch, so that R processes see what one would.

    Args:
        groups: group of each record.
        batch_size: images over all processes, a multiple of `processes`.
        seed: numbers that are not negative.
        start: the first batches, which are left out.

    Raises:
        ConfigError: a batch that the processes cannot share.
    """

    def __init__(
        self, groups: Sequence[int], batch_size: int, seed: Sequence[int], start: int = 0, rank: int = 0, processes: int = 1
    ) -> None:
        self._groups = list(groups)
        self._batch_size = batch_size
        self._seed = tuple(seed)
        self._start = start
        share, rest = divmod(batch_size, processes)
        if rest or not share:
            raise ConfigError(f"SOLVER.IMS_PER_BATCH {batch_size}: expected a multiple of the processes ({processes})")
        self._own = slice(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[list[Draw]]:
        for number, batch in enumerate(self._batches()):
            if number >= self._start:
                yield batch[self._own]

    def _batches(self) -> Iterator[list[Draw]]:
        waiting: dict[int, list[Draw]] = {group: [] for group in self._groups}
        for position, index in enumerate(self._indices()):
            batch = waiting[self._groups[index]]
            batch.append(Draw(position, index))
            if len(batch) == self._batch_size:
                yield list(batch)
                batch.clear()

    def _indices(self) -> Iterator[int]:
        number = 0
        while True:
            yield from np.random.default_rng((*self._seed, number)).permutation(len(self._groups)).tolist()
            number += 1


def aspect_groups(records: Sequence[Record]) -> list[int]:
    """Group of each record: 0 for wide images, 1 for others, which when batched together would be padded a lot."""
    return [0 if record["width"] > record["height"] else 1 for record in records]


class SeededDataset(Dataset[Record]):
    """What a mapper makes of a drawn record, its random numbers a function of the seed and the draw's position.

    Args:
        records: by index.
        mapper: from a record to what a model takes.
        seed: numbers that are not negative.
    """

    def __init__(self, records: Any, mapper: Callable[[Record], Record], seed: Sequence[int]) -> None:
        self._records = records
        self._mapper = mapper
        self._seed = derive(*seed)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, draw: Draw) -> Record:
        with seeded((self._seed, draw.position)):
            return self._mapper(self._records[draw.index])


def build_detection_loader(cfg: CfgNode, records: list[Record], seed: Sequence[int] = (0,), start: int = 0) -> DataLoader:
    """Endless loader of annotated images, SOLVER.IMS_PER_BATCH over all processes.

    Args:
        seed: numbers that are not negative; with the records they decide everything that is yielded.
        start: how many batches to leave out, those that an earlier run has seen.
    """
    groups = aspect_groups(records) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else [0] * len(records)
    dataset = DatasetFromList(records, copy=False)
    return build_endless_loader(cfg, dataset, DetectionMapper(cfg, True), groups, seed, start)


def build_view_loader(cfg: CfgNode, records: list[Record], seed: Sequence[int] = (0,), start: int = 0) -> DataLoader:
    """Endless loader of pairs of views, SOLVER.IMS_PER_BATCH over all processes; as `build_detection_loader`."""
    dataset = DatasetFromList(records, copy=False)
    return build_endless_loader(cfg, dataset, TwoViewMapper(cfg), [0] * len(records), seed, start)


def build_endless_loader(
    cfg: CfgNode, dataset: Any, mapper: Any, groups: list[int], seed: Sequence[int], start: int
) -> DataLoader:
    """Endless loader of what `mapper` makes of the records of `dataset`, batched by `groups`; see EndlessBatches."""
    processes = comm.get_world_size()
    batches = EndlessBatches(groups, cfg.SOLVER.IMS_PER_BATCH, seed, start, comm.get_rank(), processes)
    return DataLoader(
        SeededDataset(dataset, mapper, seed),
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        # Of its own, so that beginning an epoch draws nothing from the generator that the model draws from.
        generator=torch.Generator(),
        worker_init_fn=_outlive_signals,
    )


def _outlive_signals(worker: int) -> None:
    """What a cluster sends to all processes must not end a loader's before the run has written its checkpoint.

    Not ignored, as SIGTERM is also what ends a loader that nothing else does: it stays for LONGEST_CHECKPOINT seconds.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(LONGEST_CHECKPOINT))


def build_test_loader(cfg: CfgNode, name: str) -> Any:
    """Loader over every image of a data set once, one image at a time."""
    return build_detection_test_loader(
        get_records(name), mapper=DetectionMapper(cfg, False), num_workers=cfg.DATALOADER.NUM_WORKERS
    )


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
