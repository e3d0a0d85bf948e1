"""Training and evaluation modes of modules."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """Within, modes may change; afterwards each module has its own again, which `network.train()` would make all alike."""
    modes = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
