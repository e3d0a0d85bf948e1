"""The figures of a report, and any of matplotlib's as SVG that loads nothing and takes colours and font from the page."""

import hashlib
import io
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from cupre_d2.report.detections import START_LEVEL
from cupre_d2.report.matching import SCORE_STEPS, Tally

Point = tuple[float, float]

# Inches; matplotlib's text has the size of the page's own where a page is one figure wide, as on a phone.
SIZE = (5.0, 3.0)
# More points of a line, or more dots, than that are not to be seen.
MOST_POINTS, MOST_DOTS = 240, 400
GROUPS = 8
# What matplotlib draws with unless told otherwise, and what a page has for it. Its black is left out where it fills.
_PAGE_COLORS = {
    "stroke: #000000": "stroke: currentColor",
    "stroke: #b0b0b0": "stroke: currentColor; stroke-opacity: 0.2",
} | {str(color): f"var(--line{place}, {color})" for place, color in enumerate(list(TABLEAU_COLORS.values())[:8])}


@dataclass(frozen=True)
class Line:
    """Points of ascending x. A y that is not finite leaves a gap.

    Attributes:
        name: for the legend.
        dots: drawn unconnected.
    """

    name: str
    points: Sequence[Point]
    dots: bool = False


def line_figure(
    title: str, x_label: str, y_label: str, lines: Sequence[Line], log_x: bool = False, y_range: Point | None = None
) -> Figure | None:
    """A chart of lines, None where no y is finite.

    Args:
        log_x: x on a logarithmic scale; all x must be positive.
        y_range: lowest and highest y; None takes 0 (or the lowest y, if it is negative) and the highest y.
    """
    values = np.array([y for line in lines for _, y in line.points], float)
    if not np.isfinite(values).any():
        return None
    figure = Figure(SIZE, layout="constrained")
    axes = figure.add_subplot()
    for line in lines:
        x, y = np.array(line.points, float).reshape(-1, 2).T
        # A line through a point between two gaps has no length.
        gaps = np.pad(~np.isfinite(y), 1, constant_values=True)
        alone = np.flatnonzero(gaps[:-2] & gaps[2:]).tolist()
        style = {"linestyle": "", "alpha": 0.45} if line.dots else {"markevery": alone}
        axes.plot(x, y, marker=".", markersize=5, label=line.name, **style)
    if log_x:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        # A 1, 2, 5 in each decade is too close together over many of them.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    lowest, highest = y_range or (min(0.0, float(values[np.isfinite(values)].min())), None)
    axes.set_ylim(lowest, highest)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if len(lines) > 1:
        figure.legend(loc="outside lower left", ncols=3, frameon=False)
    return figure


def svg(figure: Figure) -> Markup:
    """A figure as an element of a page, as wide as there is room but no wider than the figure is.

    What matplotlib draws in its own colours follows the page: black (text, axes) and the grid's grey are the page's
    text colour, and the first eight of its colour cycle are report.css's lines. Any other colour stays as it is: over an
    area of a fixed colour, write in "#111111", not in black. Frames of legends go. The same figure gives the same text.
    """
    for legend in figure.findobj(Legend):
        legend.set_frame_on(False)
    # The layout of a second drawing differs from that of the first in its last digits.
    figure.draw_without_rendering()
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cupre_d2"}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(drawn.getvalue())
    for element in root.iter():
        _for_a_page(element)
    for place in [child for child in root if child.tag == "metadata"]:
        root.remove(place)
    # Ids are the whole page's.
    prefix = "f" + hashlib.sha256(ElementTree.tostring(root)).hexdigest()[:12]
    for element in root.iter():
        for name, value in element.items():
            if name == "id":
                element.set(name, prefix + value)
            elif value.startswith(("#", "url(#")):
                element.set(name, value.replace("#", f"#{prefix}", 1))
    width = figure.get_figwidth()
    titles = [text for axes in figure.axes for place in ("left", "center") if (text := axes.get_title(loc=place))]
    attributes = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": ", ".join(titles),
        "style": f"display: block; width: 100%; max-width: {width:g}in; height: auto; fill: currentColor; "
        "stroke-linejoin: round; stroke-linecap: butt",
    }
    root.attrib.clear()
    root.attrib.update(attributes)
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))


def _for_a_page(element: ElementTree.Element) -> None:
    """In the page's colours and font, without namespaces, style sheets, names of groups and digits that nobody sees."""
    element.tag = _local(element.tag)
    attributes: Mapping[str, str] = {_local(name): value for name, value in element.items()}
    element.attrib.clear()
    for name, value in attributes.items():
        if (name == "id" and element.tag == "g") or value.startswith("rotate(-0 "):
            continue
        if name == "style":
            value = re.sub(r"font-family: [^;]*", "font-family: system-ui, sans-serif", value)
            for color, of_page in _PAGE_COLORS.items():
                value = value.replace(color, of_page)
        elif name in ("d", "x", "y"):
            value = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}", " ".join(value.split()))
        element.set(name, value)
    for child in [child for child in element if _local(child.tag) == "style"]:
        element.remove(child)
    element.text, element.tail = (text if text and text.strip() else None for text in (element.text, element.tail))


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def training_figures(rows: Sequence[Mapping[str, Any]], scores: Mapping[str, str]) -> list[Figure]:
    """The loss, a line a phase, and a figure a metric where the stage was evaluated while it trained.

    Args:
        rows: of metrics.json. The loss is "total_loss", in AMT² "moco/total_loss" and "coco/total_loss".
        scores: y label of each metric to show, by "task/metric"; in the rows a data set may stand before it.
    """
    names = sorted({name for row in rows for name in row})
    losses = [name for name in names if name.rpartition("/")[2] == "total_loss"]
    lines = [_line(name.rpartition("/")[0] or "total loss", rows, name) for name in losses]
    figures = [line_figure("Loss", "iteration", "total loss", lines)]
    for label in dict.fromkeys(scores.values()):
        shown = [name for name in names if any(f"/{name}".endswith(f"/{end}") for end, of in scores.items() if of == label)]
        lines = [_line(name.rpartition("/")[0], rows, name) for name in shown]
        figures.append(line_figure(f"{label.partition(',')[0]} while training", "iteration", label, lines))
    return [figure for figure in figures if figure]


def _line(label: str, rows: Iterable[Mapping[str, Any]], name: str) -> Line:
    """At most MOST_POINTS, means of neighbours; a group with a value that is not finite stays so, and shows as a gap."""
    points = np.array([(row["iteration"] + 1, float(row[name])) for row in rows if row.get(name) is not None])
    if len(points) > MOST_POINTS:
        points = np.array([group.mean(axis=0) for group in np.array_split(points, MOST_POINTS)])
    return Line(label, list(map(tuple, points.tolist())))


def recall_figures(tally: Tally) -> list[Figure]:
    """Recall at IoU 0.5 against a cell's area and against the number of cells in its image; groups of about equal size.

    Of many images, MOST_DOTS have a dot, evenly over the densities; the lines are of all.
    """
    levels = {"any score": 0, f"score ≥ {SCORE_STEPS[START_LEVEL]:g}": START_LEVEL}
    by_size = [Line(name, recall_by_size(*tally.by_cell(level))) for name, level in levels.items()]
    by_density = [Line(name, recall_by_density(*tally.by_image(level))) for name, level in levels.items()]
    cells, found = tally.by_image(START_LEVEL)
    there = cells > 0
    each = sorted(zip(cells[there].tolist(), (100 * found[there] / cells[there]).tolist(), strict=True))
    chosen = np.linspace(0, len(each) - 1, min(MOST_DOTS, len(each))).astype(int).tolist()
    dots = Line("an image, " + by_density[-1].name, [each[place] for place in chosen], dots=True)
    figures = [
        line_figure("Recall by cell size", "area of a cell, square pixels", "cells found, %", by_size, True, (0, 100)),
        line_figure("Recall by density", "cells in an image", "cells found, %", [*by_density, dots], True, (0, 100)),
    ]
    return [figure for figure in figures if figure]


def recall_by_size(areas: np.ndarray, found: np.ndarray) -> list[Point]:
    """(median area, percent found) of up to GROUPS groups of as many cells.

    Args:
        areas: N float64, square pixels. found: N bool.
    """
    # Nothing may be left of a cell that was annotated at the border, and a logarithmic axis has no 0.
    order = np.argsort(areas, kind="stable")[np.count_nonzero(areas <= 0) :]
    groups = np.array_split(order, min(GROUPS, len(order))) if len(order) else []
    return _joined([(float(np.median(areas[group])), 100 * found[group].mean(), len(group)) for group in groups])


def recall_by_density(cells: np.ndarray, found: np.ndarray) -> list[Point]:
    """(median number of cells, percent found of all together) of up to GROUPS groups of as many images.

    Args:
        cells: N int64, of an image. found: N int64, of them.
    """
    order = np.argsort(cells, kind="stable")[np.count_nonzero(cells == 0) :]
    groups = np.array_split(order, min(GROUPS, len(order))) if len(order) else []
    return _joined(
        [(float(np.median(cells[g])), 100 * found[g].sum() / cells[g].sum(), int(cells[g].sum())) for g in groups]
    )


def _joined(groups: Sequence[tuple[float, float, int]]) -> list[Point]:
    """Groups of the same x as one, weighted by their numbers of cells."""
    joined = []
    for x in sorted({x for x, _, _ in groups}):
        same = [(y, weight) for other, y, weight in groups if math.isclose(other, x)]
        joined.append((x, float(np.average([y for y, _ in same], weights=[weight for _, weight in same]))))
    return joined
