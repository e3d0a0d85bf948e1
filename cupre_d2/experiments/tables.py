"""Tables of an experiment, for people."""

from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

from cupre_d2.experiments.scores import Row, mean_and_spread, paired
from cupre_d2.experiments.series import arms_of

TASKS = {"bbox": "box AP", "segm": "mask AP"}
# The arms that the others are compared with: what most labs do, and the same with as many COCO iterations as cupre.
CONTROLS = ("coco", "coco_long")


@dataclass(frozen=True)
class Table:
    """Text by row and column."""

    headers: list[str]
    body: list[list[str]]

    def markdown(self) -> str:
        return tabulate(self.body, headers=self.headers, tablefmt="github", disable_numparse=True)


def headline(rows: Sequence[Row]) -> Table:
    """Table II: a row an arm, a column a fraction and task; mean ± standard deviation over seeds, test images."""
    columns = [(percent, task) for percent in sorted({row.cell.percent for row in rows}) for task in TASKS]
    body = []
    for arm in arms_of(rows):
        cells = []
        for percent, task in columns:
            values = [row.value(task, "AP") for row in rows if (row.cell.arm, row.cell.percent) == (arm, percent)]
            cells.append(with_spread(values) if values else "-")
        body.append([arm, *cells])
    return Table(["arm", *(f"{TASKS[task]}, {percent:g} %" for percent, task in columns)], body)


def differences(rows: Sequence[Row]) -> Table:
    """Mask AP of every arm less that of each control, paired by fraction and seed: mean ± standard deviation, n."""
    arms = arms_of(rows)
    controls = [arm for arm in CONTROLS if arm in arms]
    body = []
    for arm in arms:
        cells = []
        for control in controls:
            values = paired(rows, arm, control, "segm", "AP") if arm != control else []
            cells.append(f"{with_spread(values, sign=True)} (n {len(values)})" if values else "-")
        body.append([arm, *cells])
    return Table(["arm", *(f"less {arm}" for arm in controls)], body)


def rates(rows: Sequence[Row]) -> Table:
    """The learning rate that was chosen an arm and fraction, and the mask AP on the validation images with it."""
    body = []
    for row in rows:
        cell, score = row.cell, row.validation["segm"].get("AP")
        shown = "-" if score is None else f"{score:.1f}"
        body.append([cell.arm, f"{cell.percent:g} %", str(cell.seed), f"{cell.learning_rate:g}", shown])
    return Table(["arm", "annotated", "seed", "learning rate", "mask AP, validation"], body)


def with_spread(values: Sequence[float], sign: bool = False) -> str:
    """
    >>> with_spread([1.0, 3.0])
    '2.0 ± 1.4'
    >>> with_spread([1.0], sign=True)
    '+1.0'
    """
    mean, spread = mean_and_spread(values)
    text = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    return text if len(values) == 1 else f"{text} ± {spread:.1f}"
