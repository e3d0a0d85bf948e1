"""A measured number and the bar it has to clear."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Figure:
    """One line of a benchmark.

    Attributes:
        name: what was measured.
        value: the number, in `unit`.
        bar: what the issue asks for, if it asks for anything.
        better: whether the value shall be at most or at least the bar.
    """

    name: str
    value: float
    unit: str
    bar: float | None = None
    better: Literal["at most", "at least"] = "at most"

    @property
    def holds(self) -> bool:
        return self.bar is None or (self.value <= self.bar if self.better == "at most" else self.value >= self.bar)

    @property
    def margin(self) -> float:
        """How far the value is from its bar, as a factor: below 1 where it misses; infinite without a bar."""
        if self.bar is None:
            return float("inf")
        low, high = (self.value, self.bar) if self.better == "at most" else (self.bar, self.value)
        return high / low if low > 0 else float("inf")

    def __str__(self) -> str:
        bar = "" if self.bar is None else f"   (bar: {self.better} {self.bar:g}: {'holds' if self.holds else 'MISSED'})"
        return f"{self.name}: {self.value:.3g} {self.unit}{bar}"
