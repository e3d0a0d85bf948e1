"""What became of the keys of a checkpoint and of a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

SHOWN = 5


@dataclass
class LoadReport:
    """What became of the keys of a checkpoint and of a model.

    Attributes:
        kind: where the weights come from, for people.
        matched: loaded.
        missing: in the model only; they keep their initialisation.
        unexpected: in the checkpoint only.
        mismatched: (key, shape in the checkpoint, shape in the model); they keep their initialisation.
        left_out: in one of the two only, and rightly: constants of the config, counters of batch norms, the classifier,
            key encoder and queue of pre-training.
        pixels: the settings that the weights' images were read with, "" where that is not known.
    """

    kind: str = ""
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    pixels: str = ""

    def table(self, shown: int = SHOWN) -> str:
        """A row for each fate: its number of tensors and the first of their names."""
        mismatched = [f"{key} {found} -> {expected}" for key, found, expected in self.mismatched]
        fates = {
            "matched": self.matched,
            "shape mismatched": mismatched,
            "missing in the file": self.missing,
            "unexpected in the file": self.unexpected,
            "left out": self.left_out,
        }
        rows = [(fate, len(keys), "\n".join(_beginning(keys, shown))) for fate, keys in fates.items()]
        return tabulate(rows, headers=["", "tensors", "names"], tablefmt="simple")


def first(items: Sequence[str], shown: int = SHOWN) -> str:
    """The first of some names in one line, and how many more there are; "none" for none."""
    return ", ".join(_beginning(items, shown)).replace(", and ", " and ") or "none"


def _beginning(items: Sequence[str], shown: int) -> list[str]:
    return [*items[:shown], *([f"and {len(items) - shown} more"] if len(items) > shown else [])]
