"""How long the rest will take, from what was measured."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Timed(Protocol):
    """Work that takes time.

    Attributes:
        kind: of things that take as long for as much work.
        work: iterations, or another measure that all of a kind share.
        size: the work as people read it; "" where that says nothing.
    """

    @property
    def key(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def work(self) -> int: ...
    @property
    def size(self) -> str: ...
    def finished(self) -> bool: ...
    def seconds(self) -> float | None:
        """From start to end; None where it is not finished or was not measured."""


@dataclass
class Paces:
    """Seconds for a unit of work, by kind."""

    seconds: dict[str, float] = field(default_factory=dict)
    work: dict[str, int] = field(default_factory=dict)

    def add(self, item: Timed, seconds: float) -> None:
        self.seconds[item.kind] = self.seconds.get(item.kind, 0.0) + seconds
        self.work[item.kind] = self.work.get(item.kind, 0) + item.work

    def of(self, item: Timed) -> float | None:
        """Seconds that it will take; None where nothing of its kind has been measured."""
        done = self.work.get(item.kind, 0)
        return item.work * self.seconds[item.kind] / done if done else None


def paces(items: Iterable[Timed]) -> Paces:
    """What the finished ones took."""
    measured = Paces()
    for item in items:
        if (seconds := item.seconds()) is not None:
            measured.add(item, seconds)
    return measured


def outlook(items: Sequence[Timed], slots: int) -> str:
    """How many are done and how long the others will take."""
    left = [item for item in items if not item.finished()]
    return f"{len(items) - len(left)} of {len(items)} done, {time_left(left, paces(items), slots)}"


def lines(items: Sequence[Timed], slots: int, note: Callable[[Timed], str] = lambda item: "") -> list[str]:
    """For people: one for each, with its time and what `note` adds, if anything, and the sum."""
    measured = paces(items)
    found = []
    for item in items:
        state = "done" if item.finished() else _about(measured.of(item))
        found.append(f"{item.key}: {', '.join(filter(None, (item.size, state, note(item))))}")
    left = [item for item in items if not item.finished()]
    return [*found, f"{len(left)} of {len(items)} to run, {time_left(left, measured, slots)}"]


def _about(seconds: float | None) -> str:
    return "about ? min" if seconds is None else f"about {seconds / 60:.1f} min"


def time_left(left: Sequence[Timed], measured: Paces, slots: int) -> str:
    """For people: how long it will take `slots` at a time, as far as their like was measured."""
    estimates = [measured.of(item) for item in left]
    known = sum(seconds for seconds in estimates if seconds is not None) / slots
    unknown = sum(seconds is None for seconds in estimates)
    return f"about {known / 60:.0f} min left" + (f" and {unknown} tasks of which nothing is measured yet" if unknown else "")
