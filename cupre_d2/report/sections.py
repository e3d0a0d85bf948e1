"""Pages, HTML files that load nothing: that of a finished pipeline, of sections. Nothing is computed that training computed.

A project adds its own, which comes after those that are here:

    def counts(pipeline: PipelineResults) -> Markup | None:
        return Markup("<h2>Counts</h2>") + svg(figure_of(pipeline.results["metrics"]))

    register_section("counts", counts)
"""

import json
import logging
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cupre_d2.checkpoint.packages import FOLDER, read_facts
from cupre_d2.errors import ConfigError, CupreError
from cupre_d2.evaluation.build import PERCENT, as_text
from cupre_d2.evaluation.cell_coco import RESULTS_FILE
from cupre_d2.files import write_text
from cupre_d2.report.detections import START_LEVEL, read_evaluation
from cupre_d2.report.figures import MOST_DOTS, recall_figures, svg, training_figures
from cupre_d2.report.matching import IOU
from cupre_d2.report.pictures import PICTURE_BYTES, DatasetPart, dataset_part, picture_data

logger = logging.getLogger(__name__)

REPORT = "report.html"
MOST_PICTURES = 12

# Numbers for the first look: not those of one class, cell type or IoU ("AP-a172", "F1_75").
_HEADLINE = re.compile(r"A[PR]\w*|[^_-]+")


@dataclass(frozen=True)
class StageResults:
    """A finished stage, as StageRecord has it, but that `folder` is a path."""

    name: str
    trainer: str
    seconds: float
    iterations: int
    folder: Path

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """What it logged while it trained; see `read_metrics`."""
        return read_metrics(self.folder / "metrics.json")

    @property
    def config(self) -> str:
        """As YAML; "" if there is none."""
        file = self.folder / "config.yaml"
        return file.read_text() if file.is_file() else ""


@dataclass(frozen=True)
class PipelineResults:
    """What a finished pipeline left.

    Attributes:
        results: content of its results.json.
        stages: those in it.
    """

    output_dir: Path
    results: Mapping[str, Any]
    stages: list[StageResults]

    @classmethod
    def read(cls, output_dir: Path) -> "PipelineResults":
        """Raises OSError, KeyError or ValueError if results.json is missing or not what a pipeline writes."""
        results = json.loads((output_dir / "results.json").read_text())
        stages = []
        for number, stage in enumerate(results["stages"], start=1):
            folder = output_dir / stage.get("folder", f"{number}_{stage['name']}")
            stages.append(StageResults(stage["name"], stage["trainer"], stage["seconds"], stage["iterations"], folder))
        return cls(output_dir, results, stages)

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the last stage, whose metrics are in `results`."""
        return self.results["config"]

    def unit(self, task: str) -> str:
        """Of a task's metrics, "" for none. Files of before there were units hold percent alone."""
        return self.results.get("units", dict.fromkeys(("bbox", "segm", "labels"), PERCENT)).get(task, "")

    @cached_property
    def datasets(self) -> list[DatasetPart]:
        """Those of DATASETS.TEST, registered, whose detections are there; raises DatasetError if one cannot be used."""
        inference = self.stages[-1].folder / "inference"
        files = {name: inference / name / RESULTS_FILE for name in self.config["DATASETS"]["TEST"]}
        files = {name: file for name, file in files.items() if file.is_file()}
        if not files:
            return []
        keep = max(1, MOST_PICTURES // len(files))
        use_cats = self.config["TEST"]["CELL_COCO"]["USE_CATS"]
        evaluated = [read_evaluation(file, name, use_cats, keep) for name, file in files.items()]
        percentiles = self.config["INPUT"]["PERCENTILES"]
        return [dataset_part(one, PICTURE_BYTES // len(files), percentiles) for one in evaluated]


T = TypeVar("T")
Make = Callable[[PipelineResults], Markup | None]

_sections: dict[str, Make] = {}


def register_section(name: str, make: Make) -> None:
    """Adds a section to the reports of all pipelines.

    Args:
        name: the id of its element.
        make: makes its content, heading included; None leaves it out. If it fails, it is left out, which is logged.

    Raises:
        ConfigError: the name is taken.
    """
    if name in _sections:
        raise ConfigError(f"report section {name!r} is registered already; expected another name")
    _sections[name] = make


def write_html(path: Path, make: Callable[[], str]) -> Path | None:
    """Makes a page and writes it.

    Returns:
        The file; None where it could not be made, which is logged: hours of training have gone well before.
    """

    def write() -> Path:
        write_text(path, make())
        logger.info(f"report: {path}")
        return path

    return _try(str(path), write)


def _try(what: str, make: Callable[[], T]) -> T | None:
    try:
        return make()
    except (CupreError, OSError) as error:
        logger.warning(f"no {what}: {error}")
    except Exception:
        logger.exception(f"no {what}, which is a mistake of the report; the results are not touched by it")
    return None


@cache
def templates() -> Environment:
    """Of this folder. All text is escaped, whoever it is from."""
    environment = Environment(
        loader=PackageLoader("cupre_d2.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["picture_data"] = picture_data
    return environment


def render_page(template: str, title: str, datasets: Sequence[DatasetPart], **values: Any) -> str:
    """A page that extends base.html.j2.

    Args:
        datasets: whose pictures are in it.
        values: of the template.
    """
    page = templates().get_template(template)
    return page.render(title=title, datasets=datasets, start_level=START_LEVEL, iou=IOU, **values)


def write_report(output_dir: Path) -> Path | None:
    """Writes OUTPUT_DIR/report.html of a finished pipeline, whose results.json is there; as `write_html`."""
    return write_html(output_dir / REPORT, lambda: page(PipelineResults.read(output_dir)))


def page(pipeline: PipelineResults) -> str:
    """report.html's text, of all sections that can be made."""
    made = {name: _try(f"section {name!r} in the report", partial(make, pipeline)) for name, make in _sections.items()}
    return render_page(
        "report.html.j2",
        title=pipeline.output_dir.resolve().name,
        datasets=(),
        stages=pipeline.stages,
        time=duration(pipeline.results["seconds"]),
        device=pipeline.results["device"],
        sections={name: content for name, content in made.items() if content},
    )


def _fill(section: str, **values: Any) -> Markup:
    """The macro of that name."""
    return getattr(templates().get_template("sections.html.j2").module, section)(**values)


def metrics(pipeline: PipelineResults) -> Markup:
    return _fill("metrics", headline=_tables(pipeline, True), details=_tables(pipeline, False))


def _tables(pipeline: PipelineResults, is_headline: bool) -> list[tuple[tuple[str, ...], list[list[str]]]]:
    """Columns and rows as text; a table for all data sets and tasks with the same metrics."""
    grouped: dict[tuple[str, ...], list[list[str]]] = {}
    for dataset, tasks in pipeline.results["metrics"].items():
        for task, values in tasks.items():
            unit = pipeline.unit(task)
            # A project's names mean what they mean there.
            chosen = [name for name in values if (unit != PERCENT or bool(_HEADLINE.fullmatch(name))) == is_headline]
            if chosen:
                row = [dataset, _with_unit(task, unit), *(as_text(values[name], unit) for name in chosen)]
                grouped.setdefault(tuple(chosen), []).append(row)
    return list(grouped.items())


def _with_unit(name: str, unit: str) -> str:
    return f"{name}, {unit}" if unit else name


def package(pipeline: PipelineResults) -> Markup | None:
    """What the model package holds: its thresholds, and of fine-tuning the better model."""
    folder = pipeline.output_dir / FOLDER
    if not folder.is_dir():
        return None
    facts = read_facts(folder)
    evaluated = facts["evaluation"]["thresholds"]
    rows = [(key, evaluated.get(key), value) for key, value in facts["thresholds"].items()]
    return _fill("package", folder=FOLDER, rows=rows, tuning=facts["tuning"], before=facts["before"])


def images(pipeline: PipelineResults) -> Markup | None:
    return _fill("images", datasets=pipeline.datasets, start_level=START_LEVEL, iou=IOU) if pipeline.datasets else None


def recall(pipeline: PipelineResults) -> Markup | None:
    charts = {part.name: [svg(figure) for figure in recall_figures(part.tally)] for part in pipeline.datasets}
    if not any(charts.values()):
        return None
    return _fill("recall", charts=charts, start_level=START_LEVEL, iou=IOU, most_dots=MOST_DOTS)


def training(pipeline: PipelineResults) -> Markup | None:
    best = pipeline.config["TEST"].get("BEST", {"TASK": "segm", "METRIC": "AP"})
    shown = [("bbox", "AP"), ("segm", "AP"), (best["TASK"], best["METRIC"])]
    scores = {f"{task}/{metric}": _with_unit(metric, pipeline.unit(task)) for task, metric in shown}
    figures = {stage.name: training_figures(stage.rows, scores) for stage in pipeline.stages}
    charts = {name: [svg(figure) for figure in of_stage] for name, of_stage in figures.items() if of_stage}
    return _fill("training", charts=charts) if charts else None


def stages(pipeline: PipelineResults) -> Markup:
    return _fill("stages", stages=[(stage, duration(stage.seconds)) for stage in pipeline.stages])


def rerun(pipeline: PipelineResults) -> Markup:
    results = pipeline.results
    environment = {"device": results["device"], **results["versions"]}
    return _fill("rerun", command=shlex.join(["python", *results["command"]]), environment=environment)


for _make in (metrics, package, images, recall, training, stages, rerun):
    register_section(_make.__name__, _make)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """A stage's metrics.json by iteration; none if there is no file.

    A run that was killed may have left half a line, and on resuming repeats iterations, of which the last is right.
    """
    rows: dict[int, dict[str, Any]] = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("iteration"), int):
            rows[row["iteration"]] = rows.get(row["iteration"], {}) | row
    return [rows[iteration] for iteration in sorted(rows)]


def duration(seconds: float) -> str:
    """In hours, minutes and seconds, the two largest that are not 0."""
    hours, minutes, rest = int(seconds) // 3600, int(seconds) // 60 % 60, int(seconds) % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.0f} s"
