"""Random numbers as a function of where training stands, so that a run goes on as if it had never been stopped."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


def derive(*parts: int) -> int:
    """A seed of 32 bits from numbers that are not negative, e.g. the run's seed, the iteration and the process."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def seed_everything(*parts: int) -> None:
    """Seeds Python, NumPy and torch, on every device, from numbers that are not negative."""
    seed = derive(*parts)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(parts: Sequence[int]) -> Iterator[None]:
    """Python, NumPy and torch (CPU) seeded within; outside, their random numbers go on as if nothing had been drawn."""
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    seed = derive(*parts)
    random.seed(seed)
    np.random.seed(seed)
    # Not torch.manual_seed, which would seed the GPUs' generators too.
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.random.set_rng_state(before[2])
