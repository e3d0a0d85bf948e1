"""Tables and figures of an experiment, for people."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from tabulate import tabulate

from cupre_d2.experiments.scores import Row, mean_and_spread, paired

TASKS = {"bbox": "box AP", "segm": "mask AP"}
# The arms that the others are compared with: what most labs do, and the same with as many COCO iterations as cupre.
CONTROLS = ("coco", "coco_long")


def table(rows: Sequence[Row]) -> str:
    """Table II: a row an arm, a column a fraction and task; mean ± standard deviation over seeds, test images."""
    arms = list(dict.fromkeys(row.cell.arm for row in rows))
    columns = [(percent, task) for percent in sorted({row.cell.percent for row in rows}) for task in TASKS]
    headers = ["arm", *(f"{TASKS[task]}, {percent:g} %" for percent, task in columns)]
    body = []
    for arm in arms:
        cells = []
        for percent, task in columns:
            values = [row.value(task, "AP") for row in rows if (row.cell.arm, row.cell.percent) == (arm, percent)]
            cells.append(with_spread(values) if values else "-")
        body.append([arm, *cells])
    return tabulate(body, headers=headers, tablefmt="github", disable_numparse=True)


def differences(rows: Sequence[Row]) -> str:
    """Mask AP of every arm less that of each control, paired by fraction and seed: mean ± standard deviation, n."""
    arms = list(dict.fromkeys(row.cell.arm for row in rows))
    controls = [arm for arm in CONTROLS if arm in arms]
    body = []
    for arm in arms:
        cells = []
        for control in controls:
            values = paired(rows, arm, control, "segm", "AP") if arm != control else []
            cells.append(f"{with_spread(values, sign=True)} (n {len(values)})" if values else "-")
        body.append([arm, *cells])
    return tabulate(body, headers=["arm", *(f"less {arm}" for arm in controls)], tablefmt="github", disable_numparse=True)


def rates(rows: Sequence[Row]) -> str:
    """The learning rate that was chosen an arm and fraction, and the mask AP on the validation images with it."""
    body = []
    for row in rows:
        cell, score = row.cell, row.validation["segm"].get("AP")
        shown = "-" if score is None else f"{score:.1f}"
        body.append([cell.arm, f"{cell.percent:g} %", cell.seed, f"{cell.learning_rate:g}", shown])
    headers = ["arm", "annotated", "seed", "learning rate", "mask AP, validation"]
    return tabulate(body, headers=headers, tablefmt="github", disable_numparse=True)


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


def draw_fractions(rows: Sequence[Row], file: Path) -> None:
    """Fig. 4: mask AP on the test images against the annotated share of the training images; a dot a run."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for arm in dict.fromkeys(row.cell.arm for row in rows):
        runs = [(row.cell.percent, row.value("segm", "AP")) for row in rows if row.cell.arm == arm]
        percents = sorted({percent for percent, _ in runs})
        means = [mean_and_spread([value for one, value in runs if one == percent])[0] for percent in percents]
        (line,) = axes.plot(percents, means, label=arm)
        axes.plot(*zip(*runs, strict=True), "o", color=line.get_color(), markersize=4)
    axes.set(xlabel="annotated training images (%)", ylabel="mask AP, test images (%)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)
