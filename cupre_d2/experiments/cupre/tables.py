"""Tables of an experiment, for people."""

from collections.abc import Sequence

from cupre_d2.experiments.cupre.scores import Row, paired
from cupre_d2.experiments.cupre.series import arms_of
from cupre_d2.experiments.table import Table, with_spread

TASKS = {"bbox": "box AP", "segm": "mask AP"}
# The arms that the others are compared with: what most labs do, and the same with as many COCO iterations as cupre.
CONTROLS = ("coco", "coco_long")


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
