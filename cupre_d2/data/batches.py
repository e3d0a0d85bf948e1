"""Endless batches whose content follows from the seed and the iteration alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset, Sampler

from cupre_d2.errors import ConfigError
from cupre_d2.randomness import derive, seeded

Record = dict[str, Any]


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
