"""Line charts as SVG that takes its colours from the page, light or dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.ticker import LogLocator, MaxNLocator

Point = tuple[float, float]

# How many colours of lines report.css has.
COLORS = 8


@dataclass(frozen=True)
class Line:
    """Points of ascending x. A y that is not finite leaves a gap.

    Attributes:
        name: for the legend; "" leaves it out there.
        dots: drawn unconnected.
        thin: drawn in the background.
        color: number of one of the page's colours, below COLORS; by default the line's place in the chart.
    """

    name: str
    points: Sequence[Point]
    dots: bool = False
    thin: bool = False
    color: int | None = None


@dataclass(frozen=True)
class Mark:
    """A tick: where it is in the drawing, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Drawing:
    """A chart in units of the drawing: an SVG path for each line, its dots as lines of no length."""

    x_marks: list[Mark]
    y_marks: list[Mark]
    paths: list[str]


@dataclass(frozen=True)
class Chart:
    """
    Attributes:
        log_x: x on a logarithmic scale; all x must be positive.
        y_range: lowest and highest y; None takes 0 (or the lowest y, if it is negative) and the highest y.
        width, height: of the drawing, in units that are about a pixel on a phone, where the page is one chart wide.
        left, right, top, bottom: where the axes are in it.
    """

    width: ClassVar[int] = 360
    height: ClassVar[int] = 210
    left: ClassVar[int] = 42
    right: ClassVar[int] = 350
    top: ClassVar[int] = 10
    bottom: ClassVar[int] = 172

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    y_range: Point | None = None

    @property
    def is_empty(self) -> bool:
        return not self._finite()

    def draw(self) -> Drawing:
        """Of a chart that is not empty."""
        points = self._finite()
        low, high = min(x for x, _ in points), max(x for x, _ in points)
        x_axis = _Axis(*_widened(low, high, self.log_x), self.left, self.right, self.log_x)
        lowest, highest = self.y_range or (min(0, *(y for _, y in points)), max(y for _, y in points))
        if lowest == highest:
            highest = lowest + 1
        y_axis = _Axis(lowest, highest, self.bottom, self.top)
        paths = [
            "".join(_piece(piece, x_axis, y_axis) for piece in ([[p] for p in line.points] if line.dots else [line.points]))
            for line in self.lines
        ]
        return Drawing(x_axis.marks(6), y_axis.marks(5), paths)

    def _finite(self) -> list[Point]:
        return [(x, y) for line in self.lines for x, y in line.points if math.isfinite(y)]


@dataclass(frozen=True)
class _Axis:
    """From values to units of the drawing."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def marks(self, count: int) -> list[Mark]:
        if self.is_log:
            # A 1, 2, 5 in each decade is too close together over many of them.
            subs = (1, 2, 5) if self.high / self.low < 300 else (1,)
            values = LogLocator(subs=subs, numticks=20).tick_values(self.low, self.high)
        else:
            values = MaxNLocator(count).tick_values(self.low, self.high)
        return [Mark(self(v), _text(v)) for v in map(float, values) if self.low <= v <= self.high]


def _widened(low: float, high: float, is_log: bool) -> Point:
    if low < high:
        return low, high
    return (low / 2, high * 2) if is_log else (low - 1, high + 1)


def _text(value: float) -> str:
    if abs(value) >= 1e4:
        thousands, unit = (value / 1e6, "M") if abs(value) >= 1e6 else (value / 1e3, "k")
        return f"{thousands:g} {unit}"
    # What a locator means by 0 may be 1e-17.
    return f"{round(value, 6):g}"


def _piece(points: Sequence[Point], x_axis: _Axis, y_axis: _Axis) -> str:
    """A line, broken where y is not finite; a point alone is a line of no length, which round ends make a dot."""
    text, pen = "", False
    for x, y in points:
        if math.isfinite(y):
            text += f"{'L' if pen else 'M'}{x_axis(x):g} {y_axis(y):g}" + ("" if pen else "h0")
        pen = math.isfinite(y)
    return text
