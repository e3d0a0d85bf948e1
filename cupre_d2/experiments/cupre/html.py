"""An experiment's report: one HTML file that loads nothing, made of the pieces of a pipeline's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cupre_d2.data.few_shot import get_records
from cupre_d2.experiments import pictures
from cupre_d2.experiments.cupre import page, series, tables
from cupre_d2.experiments.cupre.outcome import Outcome
from cupre_d2.experiments.table import Table, with_spread
from cupre_d2.report.charts import COLORS, Chart, Line
from cupre_d2.report.page import render_page
from cupre_d2.report.pictures import DatasetPart


@dataclass(frozen=True)
class Bar:
    """Width in percent of the longest; number of a colour of lines."""

    arm: str
    color: int
    width: float
    text: str


@dataclass(frozen=True)
class Report:
    """Attributes: datasets hold the test images as each arm segments them; links are of the rows of `rates`, "" for none."""

    summary: str
    headline: Table
    differences: Table
    rates: Table
    links: list[str]
    charts: list[Chart]
    bars: list[Bar]
    datasets: list[DatasetPart]
    command: str
    commit: str
    versions: dict[str, str]


def render(outcome: Outcome) -> str:
    """
    Raises:
        DatasetError: the test images or their detections cannot be used.
    """
    report = collect(outcome)
    return render_page("cupre.html.j2", page.title(outcome), report.datasets, report=report, texts=vars(page))


def collect(outcome: Outcome) -> Report:
    """Raises DatasetError as `render`."""
    grid, rows = outcome.experiment.grid, outcome.rows
    sizes = {"arms": grid.arms, "fractions": grid.percents, "seeds": grid.seeds}
    return Report(
        summary=" × ".join(f"{len(values)} {name}" for name, values in sizes.items()),
        headline=tables.headline(rows),
        differences=tables.differences(rows),
        rates=tables.rates(rows),
        links=[pictures.link(outcome.results.parent, outcome.tests[row.cell].task) for row in rows],
        charts=charts(rows),
        bars=bars(series.ablation(rows)),
        datasets=compared(outcome),
        command=outcome.origin.command,
        commit=outcome.origin.trained_with,
        versions=outcome.origin.versions,
    )


def charts(rows: Sequence[Any]) -> list[Chart]:
    """Fig. 4 and 3."""
    fractions = series.against_fractions(rows)
    drawn = [_chart(fractions, "Annotated images", "annotated training images, %", "mask AP, test, %")]
    for panel in series.against_epochs(rows):
        drawn.append(_chart(panel, f"Epochs, {panel.title}", "epochs of fine-tuning", "mask AP, validation, %"))
    return [chart for chart in drawn if not chart.is_empty]


def _chart(panel: series.Panel, title: str, x_label: str, y_label: str) -> Chart:
    numbered = [(place % COLORS, one) for place, one in enumerate(panel.series)]
    thin = [Line("", run, thin=True, color=color) for color, one in numbered for run in one.runs]
    thick = [Line(one.arm, one.mean, color=color) for color, one in numbered if one.mean]
    return Chart(title, x_label, y_label, [*thin, *thick])


def bars(found: Sequence[series.Bar]) -> list[Bar]:
    """Fig. 6."""
    longest = max((bar.mean for bar in found if bar.mean > 0), default=1.0)
    widths = [round(100 * bar.mean / longest, 1) if math.isfinite(bar.mean) else 0 for bar in found]
    return [
        Bar(bar.arm, bar.place % COLORS, width, with_spread(bar.values)) for bar, width in zip(found, widths, strict=True)
    ]


def compared(outcome: Outcome) -> list[DatasetPart]:
    """Fig. 8-10: a part an arm, of the same images."""
    dataset, use_cats = outcome.evaluated_on()
    detections = {arm: test.detections for arm, test in outcome.first_tests().items()}
    return pictures.parts(detections, dataset, use_cats, pictures.choose(get_records(dataset)))
