"""Pages: HTML files that load nothing."""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cupre_d2.errors import CupreError
from cupre_d2.files import write_text
from cupre_d2.report.detections import START_LEVEL
from cupre_d2.report.matching import IOU
from cupre_d2.report.pictures import DatasetPart, picture_data

logger = logging.getLogger(__name__)


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
