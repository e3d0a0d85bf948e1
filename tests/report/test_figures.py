import math
import re

import pytest
from matplotlib.figure import Figure

from cupre_d2.report.figures import Line, line_figure, svg


def drawn(*lines: Line, log_x: bool = False) -> Figure:
    figure = line_figure("Title <b>", "x", "y", lines, log_x)
    assert figure is not None
    return figure


def of_any_library() -> Figure:
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    axes.bar([1, 2], [3, 4], color="black", label="a")
    axes.imshow([[0, 1], [1, 0]])
    axes.grid()
    axes.legend()
    return figure


@pytest.mark.parametrize("figure", [drawn(Line("a", [(1, 2), (3, 4)]), Line("b", [(1, 1)], dots=True)), of_any_library()])
def test_nothing_of_it_reaches_out_of_its_element(figure: Figure) -> None:
    text = svg(figure)
    assert not re.search(r"https?:|xmlns|<\?xml|<!|<style|<metadata|DejaVu", text)
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in re.findall(r'\bhref="([^"]*)"', text))
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)(\w+)', text)) <= set(ids)


def test_ids_of_two_figures_differ() -> None:
    ids = [set(re.findall(r'\bid="([^"]*)"', svg(drawn(Line("a", [(1, 2), (3, y)]))))) for y in (4, 5)]
    assert ids[0] and not ids[0] & ids[1]


def test_the_same_figure_is_the_same_text() -> None:
    figure = drawn(Line("a", [(1, 2), (3, 4)]))
    assert svg(figure) == svg(figure) == svg(drawn(Line("a", [(1, 2), (3, 4)])))


@pytest.mark.parametrize("figure", [drawn(Line("a", [(1, 2), (3, 4)])), of_any_library()])
def test_colours_are_the_page_s(figure: Figure) -> None:
    text = svg(figure)
    assert "fill: currentColor" in text and "stroke: currentColor" in text
    # White would be the background of matplotlib's pages, black its text and axes, grey its grid.
    assert not re.search(r"#(000000|ffffff|b0b0b0)", text)


def test_text_stays_text() -> None:
    text = svg(drawn(Line("a", [(1, 2)]), Line("stroke: #000000 --> & id='x'", [(1, 1)])))
    assert "Title &lt;b&gt;" in text and "stroke: #000000 --&gt; &amp; id='x'" in text


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    points = [(0, 1), (1, 2), (2, math.nan), (3, math.inf), (4, 1)]
    (line,) = drawn(Line("", points)).axes[0].lines
    text = svg(line.figure)
    path = next(path for path in re.findall(r'<path d="([^"]*)"[^>]*var\(--line0', text))
    assert (path.count("M"), path.count("L"), "nan" in text) == (2, 1, False)
    # The last point has no neighbour: a line does not show it, a dot does.
    assert list(line.get_markevery()) == [4]
    assert line_figure("", "", "", [Line("", [(0, math.nan)])]) is None
    assert line_figure("", "", "", []) is None


def test_logarithmic_x() -> None:
    axes = drawn(Line("a", [(1, 1), (7000, 12)]), log_x=True).axes[0]
    assert axes.get_xscale() == "log"
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert {"1", "10", "100", "1k"} <= set(labels)


def test_a_chart_is_small() -> None:
    lines = [Line(name, [(x, x**0.5) for x in range(240)]) for name in "ab"]
    assert len(svg(drawn(*lines))) < 30_000
