"""The table's report: one HTML file that loads nothing, made of the pieces of a pipeline's."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from cupre_d2.experiments import pictures
from cupre_d2.experiments.deep_clustering import page, series, tables
from cupre_d2.experiments.deep_clustering.outcome import Outcome, choose_by_type
from cupre_d2.experiments.table import Table
from cupre_d2.report.charts import COLORS, Chart, Line
from cupre_d2.report.page import render_page
from cupre_d2.report.pictures import DatasetPart


@dataclass(frozen=True)
class Report:
    """
    Attributes:
        latents: the picture, as a data URI.
        datasets: images of unknown types as each arm segments them.
        links: by run, "" for none.
    """

    summary: str
    images: str
    headline: Table
    statistics: Table
    charts: list[Chart]
    latents: str
    datasets: list[DatasetPart]
    links: dict[str, str]
    command: str
    commit: str
    versions: dict[str, str]


def render(outcome: Outcome) -> str:
    """
    Raises:
        DatasetError: the images or their detections cannot be used.
        OSError: the page's figures are not there yet.
    """
    report = collect(outcome)
    return render_page("deep_clustering.html.j2", page.title(outcome), report.datasets, report=report, texts=vars(page))


def collect(outcome: Outcome) -> Report:
    """Raises DatasetError as `render`."""
    grid, dataset = outcome.experiment.grid, outcome.sets.unknown
    sizes = {"algorithms": grid.algorithms, "numbers of clusters": grid.clusters, "seeds": grid.seeds}
    detections = {arm: task.detections(dataset) for arm, task in outcome.before_and_after().items()}
    return Report(
        summary=" × ".join(f"{len(values)} {name}" for name, values in sizes.items()),
        images=page.images(outcome.sets),
        headline=tables.headline(outcome.baseline, outcome.rows),
        statistics=tables.statistics(outcome.rows),
        charts=charts(outcome),
        latents="data:image/png;base64," + base64.b64encode(outcome.beside("_latents.png").read_bytes()).decode(),
        datasets=pictures.parts(detections, dataset, outcome.use_cats, choose_by_type(dataset)),
        links={
            "baseline" if cell is None else f"{cell.algorithm} {cell.clusters} seed {cell.seed}": pictures.link(
                outcome.results.parent, task
            )
            for cell, task in outcome.tasks.items()
        },
        command=outcome.origin.command,
        commit=outcome.origin.trained_with,
        versions=outcome.origin.versions,
    )


def charts(outcome: Outcome) -> list[Chart]:
    """Fig. 6-8."""
    drawn = [_chart(panel, "MAP, %") for panel in series.scores(outcome.baseline, outcome.rows)]
    drawn.append(_chart(series.entropies(outcome.rows), "std of the entropy"))
    return [chart for chart in drawn if not chart.is_empty]


def _chart(panel: series.Panel, y_label: str) -> Chart:
    lines = [line for color, one in enumerate(panel.series) for line in _lines(one, color % COLORS)]
    if panel.baseline is not None:
        lines.append(Line("baseline", _across(panel.series, panel.baseline), color=len(panel.series) % COLORS))
    title = f"MAP, {panel.title}" if panel.title else "Normalised entropy, its std over types"
    return Chart(title, "clusters (k)", y_label, lines, log_x=True)


def _lines(one: series.Series, color: int) -> list[Line]:
    """The mean, and each seed as a dot."""
    dots = [(float(place.clusters), value) for place in one.places for value in place.values]
    means = [(float(place.clusters), place.mean) for place in one.places]
    return [Line("", dots, dots=True, color=color), Line(one.algorithm, means, color=color)]


def _across(drawn: Sequence[series.Series], value: float) -> list[tuple[float, float]]:
    clusters = [float(place.clusters) for one in drawn for place in one.places]
    return [(min(clusters), value), (max(clusters), value)]
