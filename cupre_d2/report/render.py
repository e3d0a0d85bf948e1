"""Writes report.html: one file that loads nothing."""

import logging
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cupre_d2.errors import CupreError
from cupre_d2.report.collect import Report, collect
from cupre_d2.report.detections import START_LEVEL
from cupre_d2.report.matching import FALSE, HIT, IOU, NEUTRAL

logger = logging.getLogger(__name__)

REPORT = "report.html"


def write_report(output_dir: Path) -> Path | None:
    """Writes OUTPUT_DIR/report.html of a finished pipeline, whose results.json is there.

    Returns:
        The file; None where it could not be written, which is logged: hours of training have gone well before.
    """
    path = output_dir / REPORT
    try:
        html = render(collect(output_dir))
        partial = path.with_suffix(".html.partial")
        # A file name may hold bytes that are no text.
        partial.write_text(html, encoding="utf-8", errors="replace")
        os.replace(partial, path)
    except (CupreError, OSError) as error:
        logger.warning(f"no {path}: {error}")
        return None
    except Exception:
        logger.exception(f"no {path}, which is a mistake of the report; the results are not touched by it")
        return None
    logger.info(f"report: {path}")
    return path


def render(report: Report) -> str:
    """The page. All text is escaped, whoever it is from; the data in it is JSON that cannot end its script element."""
    environment = Environment(
        loader=PackageLoader("cupre_d2.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        report=report, data=_data(report), start_level=START_LEVEL, iou=IOU
    )


def _data(report: Report) -> dict[str, Any]:
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
            for dataset in report.datasets
        ],
    }
