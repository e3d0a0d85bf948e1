"""Writes report.html: one file that loads nothing."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cupre_d2.errors import CupreError
from cupre_d2.files import write_text
from cupre_d2.report.collect import DatasetPart, Report, collect
from cupre_d2.report.detections import START_LEVEL
from cupre_d2.report.matching import FALSE, HIT, IOU, NEUTRAL

logger = logging.getLogger(__name__)

REPORT = "report.html"


def write_report(output_dir: Path) -> Path | None:
    """Writes OUTPUT_DIR/report.html of a finished pipeline, whose results.json is there; as `write_html`."""
    return write_html(output_dir / REPORT, lambda: render(collect(output_dir)))


def write_html(path: Path, make: Callable[[], str]) -> Path | None:
    """Makes a page and writes it.

    Returns:
        The file; None where it could not be made, which is logged: hours of training have gone well before.
    """
    try:
        write_text(path, make())
    except (CupreError, OSError) as error:
        logger.warning(f"no {path}: {error}")
        return None
    except Exception:
        logger.exception(f"no {path}, which is a mistake of the report; the results are not touched by it")
        return None
    logger.info(f"report: {path}")
    return path


def render(report: Report) -> str:
    """The page of a pipeline."""
    return render_page("report.html.j2", report.title, report.datasets, report=report)


def render_page(template: str, title: str, datasets: Sequence[DatasetPart], **values: Any) -> str:
    """A page that extends base.html.j2. All text is escaped, whoever it is from; data is JSON that cannot end its element.

    Args:
        datasets: whose pictures are in it.
        values: of the template.
    """
    environment = Environment(
        loader=PackageLoader("cupre_d2.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        title=title, data=_data(datasets), start_level=START_LEVEL, iou=IOU, **values
    )


def _data(datasets: Sequence[DatasetPart]) -> dict[str, Any]:
    """What report.js draws from."""
    return {
        "outcomes": {"hit": HIT, "false": FALSE, "neutral": NEUTRAL},
        "datasets": [
            {
                "cells": dataset.cells,
                "found": dataset.found,
                "false": dataset.false,
                "pictures": [
                    {"cells": picture.cells, "crowds": picture.crowds, "detections": picture.detections}
                    for picture in dataset.pictures
                ],
            }
            for dataset in datasets
        ],
    }
