"""Matplotlib's figures in a page: SVG that loads nothing and takes its colours and its font from the page, light or dark."""

import hashlib
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import EngFormatter, LogLocator

Point = tuple[float, float]

# Inches; matplotlib's text has the size of the page's own where a page is one figure wide, as on a phone.
SIZE = (5.0, 3.0)
# What matplotlib draws with unless told otherwise, and what a page has for it. Its black is left out where it fills.
_PAGE_COLORS = {
    "stroke: #000000": "stroke: currentColor",
    "stroke: #b0b0b0": "stroke: currentColor; stroke-opacity: 0.2",
} | {color: f"var(--line{place}, {color})" for place, color in enumerate(list(TABLEAU_COLORS.values())[:8])}


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
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylim(y_range or (min(0.0, float(np.nanmin(values[np.isfinite(values)]))), None))
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
    """Without namespaces, style sheets, names of groups and digits that are not to be seen; in the page's colours and font."""
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
