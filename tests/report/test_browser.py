"""The page in a browser, where Debian's chromium and Python's playwright are installed."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from cupre_d2.report import write_report

pytestmark = pytest.mark.slow


@pytest.fixture()
def page(visit: Callable[[Path], AbstractContextManager[Any]], output: Path) -> Iterator[Any]:
    path = write_report(output)
    assert path
    with visit(path) as opened:
        yield opened


def settle(page: Any) -> None:
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def slide(page: Any, level: int) -> None:
    page.locator("[name=level]").fill(str(level))
    settle(page)


def drawn(page: Any, picture: int) -> dict[str, int]:
    """Outlines in each layer of a picture that shows any."""
    count = "(g) => [g.getAttribute('class'), g.lastElementChild.getAttribute('d').split('M').length - 1]"
    script = f"(layers) => Object.fromEntries(layers.map({count}))"
    layers = page.locator(f".picture >> nth={picture} >> g").evaluate_all(script)
    return {name: count for name, count in layers.items() if count}


def test_errors_follow_the_slider(page: Any) -> None:
    assert drawn(page, 1) == {"hit": 1, "missed": 2, "false": 1}
    slide(page, 30)
    assert drawn(page, 1) == {"hit": 2, "missed": 1, "false": 1}
    assert page.locator("#score").text_content() == "0.30"
    slide(page, 61)
    assert drawn(page, 1) == {"hit": 1, "missed": 2}
    slide(page, 96)
    assert drawn(page, 1) == {"missed": 3}
    assert page.locator(".counts >> nth=1").text_content() == "0 found, 3 missed, 0 false"
    slide(page, 0)
    assert page.locator(".total").text_content() == (
        "3 found, 5 missed, 2 false; recall 37.5 %, precision 60.0 %, F1 46.2 %"
    )


def test_toggles(page: Any) -> None:
    page.locator("[name=errors]").uncheck()
    settle(page)
    assert drawn(page, 1) == {}
    page.locator("[name=truth]").check()
    page.locator("[name=prediction]").check()
    settle(page)
    assert drawn(page, 1) == {"truth": 3, "prediction": 2}
    slide(page, 70)
    assert drawn(page, 1) == {"truth": 3, "prediction": 1}


def test_light_and_dark(page: Any) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    style = "getComputedStyle(document.querySelector('#training {}'))"
    of_chart = f"[{style.format('text')}.fill, {style.format('path[style*=line0]')}.stroke]"
    light, chart = page.evaluate(colour), page.evaluate(of_chart)
    page.locator("#theme").click()
    dark = page.evaluate(colour)
    assert light != dark
    assert all(now != before for now, before in zip(page.evaluate(of_chart), chart, strict=True))
    page.locator("#theme").click()
    assert page.evaluate(colour) == light
    page.emulate_media(color_scheme="dark")
    page.reload()
    assert page.evaluate(colour) == dark


def test_phone(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#training svg").first.bounding_box()["width"] == 390 - 2 * 16
    before = page.locator(".frame >> nth=0").get_attribute("aria-pressed")
    page.locator(".frame >> nth=0").click()
    assert (before, page.locator(".frame >> nth=0").get_attribute("aria-pressed")) == ("false", "true")
