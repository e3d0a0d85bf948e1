"""The figures of a report, and any of matplotlib's as SVG that loads nothing and takes colours and font from the page."""

import hashlib
import io
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

# Inches; where a page is one figure wide, as on a phone, matplotlib's text is then as large as notes of the page.
SIZE = (4.4, 2.7)
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


# A $ in the name of a data set begins no formula.
@matplotlib.rc_context({"text.parse_math": False})
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
        if line.dots:
            axes.plot(x, y, ".", markersize=5, alpha=0.45, label=line.name)
        else:
            axes.plot(x, y, marker="." if alone else "", markevery=alone, label=line.name)
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
        # Some 54 letters have room beside each other.
        columns = max(1, 54 // (6 + max(len(line.name) for line in lines)))
        figure.legend(loc="outside lower left", ncols=columns, frameon=False)
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

    A dot is an image at START_LEVEL; of many, MOST_DOTS have one, evenly over the densities. The lines are of all.
    """
    by_size, by_density = [], []
    for name, level in {"any score": 0, f"score ≥ {SCORE_STEPS[START_LEVEL]:g}": START_LEVEL}.items():
        areas, are_found = tally.by_cell(level)
        by_size.append(Line(name, recall_against(areas, np.ones(len(areas), int), are_found)))
        cells, found = tally.by_image(level)
        by_density.append(Line(name, recall_against(cells, cells, found)))
    # Of the last level, which is START_LEVEL.
    each = sorted((count, 100 * hits / count) for count, hits in zip(cells.tolist(), found.tolist(), strict=True) if count)
    chosen = np.linspace(0, len(each) - 1, min(MOST_DOTS, len(each))).astype(int).tolist()
    by_density.append(Line("an image", [each[place] for place in chosen], dots=True))
    figures = [
        line_figure("Recall by cell size", "area of a cell, square pixels", "cells found, %", by_size, True, (0, 100)),
        line_figure("Recall by density", "cells in an image", "cells found, %", by_density, True, (0, 100)),
    ]
    return [figure for figure in figures if figure]


def recall_against(x: np.ndarray, cells: np.ndarray, found: np.ndarray) -> list[Point]:
    """(median x, percent found of all cells together) of up to GROUPS groups of about as many; those of one x are joined.

    Args:
        x: N numbers, of a cell or an image. Those that are not above 0 are left out: a logarithmic axis has no place for
            them, and nothing may be left of a cell that was annotated at the border.
        cells: N int64, how many at this x.
        found: N int64 or bool, how many of them are found.
    """
    order = np.argsort(x, kind="stable")[np.count_nonzero(x <= 0) :]
    sums: dict[float, np.ndarray] = {}
    for group in np.array_split(order, min(GROUPS, len(order))) if len(order) else ():
        middle = float(np.median(x[group]))
        sums[middle] = sums.get(middle, 0) + np.array([found[group].sum(), cells[group].sum()])
    return [(middle, float(100 * hits / there)) for middle, (hits, there) in sorted(sums.items())]
