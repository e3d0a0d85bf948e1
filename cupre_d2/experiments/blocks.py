"""A table's pages, RESULTS.md with its figures and RESULTS_report.html, of one list of blocks.

A block is text (a paragraph), a frame of text (a table), or one of the classes here.
"""

import base64
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import pandas as pd
from matplotlib.figure import Figure
from tabulate import tabulate

from cupre_d2.data.images import Percentiles
from cupre_d2.experiments import plots
from cupre_d2.experiments.origin import Origin, beside
from cupre_d2.report.detections import read_evaluation, read_images
from cupre_d2.report.figures import svg
from cupre_d2.report.pictures import PICTURE_BYTES, DatasetPart, dataset_part
from cupre_d2.report.sections import render_page, write_html

DPI = 120
# Of an inch of a figure in the report, at least: what is wider than a phone then can be scrolled there.
PIXELS = 60


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Plot:
    """A figure, saved as RESULTS and `ending`.

    Attributes:
        alt: what it shows, for those who can't see it.
        raster: of pictures rather than lines.
    """

    figure: Figure
    ending: str
    alt: str
    raster: bool = False


@dataclass(frozen=True)
class Gallery:
    """The same images as several runs segment them, saved as RESULTS and `ending`; a page has one at most.

    Attributes:
        detections: COCO's results format, by what a run is called.
        dataset: their registered name.
        chosen: ids of the images.
        config: of the stage that was evaluated, of which INPUT.PERCENTILES and TEST.CELL_COCO.USE_CATS are read.
    """

    detections: Mapping[str, Path]
    dataset: str
    chosen: Sequence[Hashable]
    config: Mapping[str, Any]
    ending: str
    alt: str

    @property
    def use_cats(self) -> bool:
        return self.config["TEST"]["CELL_COCO"]["USE_CATS"]

    @property
    def percentiles(self) -> Percentiles:
        return self.config["INPUT"]["PERCENTILES"]


@dataclass(frozen=True)
class Links:
    """Files by what they are called, those that are there; the report alone has them."""

    files: Mapping[str, Path]


Block: TypeAlias = str | pd.DataFrame | Heading | Plot | Gallery | Links


def write_markdown(results: Path, title: str, origin: Origin, blocks: Sequence[Block]) -> None:
    """RESULTS.md and its plots. It begins with where the numbers come from, and what people have to say of them.

    That is RESULTS_notes.md, which is theirs: the page is made anew each time.

    Raises:
        DatasetError: images or detections cannot be used.
    """
    notes, name = beside(results, "_notes.md"), results.name
    begin = [
        f"# {title}",
        f"```\n{origin.command}\n```",
        f"Commit {origin.trained_with}. Every number is in [{name}.json]({name}.json) and [{name}.csv]({name}.csv).",
        *([notes.read_text().strip()] if notes.is_file() else []),
    ]
    beside(results, ".md").write_text("\n\n".join([*begin, *_markdown(results, blocks)]) + "\n")


def _markdown(results: Path, blocks: Sequence[Block]) -> Iterator[str]:
    for block in blocks:
        if isinstance(block, str):
            yield block
        elif isinstance(block, Heading):
            yield f"## {block.text}"
        elif isinstance(block, pd.DataFrame):
            yield tabulate(block.to_numpy().tolist(), headers=[*block.columns], tablefmt="github", disable_numparse=True)
        elif isinstance(block, Plot | Gallery):
            file = beside(results, block.ending)
            if isinstance(block, Gallery):
                figure = plots.gallery(_images(block), block.percentiles)
                figure.savefig(file, dpi=110, pil_kwargs={"quality": 85})
            else:
                block.figure.savefig(file, dpi=DPI)
            yield f"![{block.alt}]({file.name})"


def _images(gallery: Gallery) -> dict[str, list[Any]]:
    return {
        name: read_images(file, gallery.dataset, gallery.use_cats, gallery.chosen)
        for name, file in gallery.detections.items()
    }


def write_report(results: Path, title: str, summary: str, origin: Origin, blocks: Sequence[Block]) -> Path | None:
    """RESULTS_report.html, one file that loads nothing; None where it could not be made, which is logged."""
    return write_html(beside(results, "_report.html"), lambda: _page(results.parent, title, summary, origin, blocks))


def _page(folder: Path, title: str, summary: str, origin: Origin, blocks: Sequence[Block]) -> str:
    shown = [_shown(folder, block) for block in blocks]
    parts = [part for kind, value in shown if kind == "gallery" for part in value]
    return render_page("experiment.html.j2", title, parts, summary=summary, origin=origin, blocks=shown)


def _shown(folder: Path, block: Block) -> tuple[str, Any]:
    """What the template knows of a block."""
    if isinstance(block, pd.DataFrame):
        return "table", {"headers": [*block.columns], "body": block.to_numpy().tolist()}
    if isinstance(block, Plot):
        if block.raster:
            png = BytesIO()
            block.figure.savefig(png, format="png", dpi=DPI)
            data = base64.b64encode(png.getvalue()).decode()
            return "picture", {"data": f"data:image/png;base64,{data}", "alt": block.alt}
        return "figure", {"svg": svg(block.figure), "width": round(PIXELS * block.figure.get_figwidth())}
    if isinstance(block, Gallery):
        return "gallery", _parts(block)
    if isinstance(block, Links):
        there = {name: file for name, file in block.files.items() if file.is_file()}
        return "links", {name: quote(os.path.relpath(file, folder)) for name, file in there.items()}
    return ("heading", block.text) if isinstance(block, Heading) else ("text", block)


def _parts(gallery: Gallery) -> list[DatasetPart]:
    """A part a run."""
    found = []
    images = _images(gallery)
    for name, file in gallery.detections.items():
        evaluated = read_evaluation(file, gallery.dataset, gallery.use_cats, keep=1)
        shown = replace(evaluated, name=name, worst=images[name])
        found.append(dataset_part(shown, PICTURE_BYTES // len(gallery.detections), gallery.percentiles))
    return found
