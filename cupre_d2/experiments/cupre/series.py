"""What the figures show, whoever draws them: Fig. 3, 4 and 6 of the paper."""

from collections.abc import Sequence
from dataclasses import dataclass

from cupre_d2.experiments.cupre.scores import Row
from cupre_d2.experiments.table import mean_and_spread

# Fig. 6; it is drawn if one of the three that stand for nothing else is there.
ABLATION = ("coco", "cocopp", "cupremm", "cupre", "cuprepp")
ABLATED = ("cocopp", "cupremm", "cuprepp")

XY = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """An arm's mean over seeds, where all seeds have a value, and each seed's own."""

    arm: str
    mean: list[XY]
    runs: list[list[XY]]


@dataclass(frozen=True)
class Panel:
    """Series in one pair of axes."""

    title: str
    series: list[Series]


@dataclass(frozen=True)
class Bar:
    """An arm's mean over seeds, their standard deviation (NaN for one) and the values; `place` is that of the arm."""

    arm: str
    place: int
    mean: float
    spread: float
    values: list[float]


def arms_of(rows: Sequence[Row]) -> list[str]:
    """Each once, in order; its place is its colour in all figures."""
    return list(dict.fromkeys(row.cell.arm for row in rows))


def against_epochs(rows: Sequence[Row]) -> list[Panel]:
    """Fig. 3: mask AP on the validation images (%) against epochs of fine-tuning, a panel a fraction."""
    return [
        Panel(f"{percent:g} % annotated", [_learning(arm, rows, percent) for arm in arms_of(rows)])
        for percent in sorted({row.cell.percent for row in rows})
    ]


def _learning(arm: str, rows: Sequence[Row], percent: float) -> Series:
    # By iteration: epochs are quotients.
    curves = [
        {point.iterations: (point.epochs, point.ap) for point in row.curve}
        for row in rows
        if (row.cell.arm, row.cell.percent) == (arm, percent)
    ]
    common = sorted(set.intersection(*map(set, curves))) if curves else []
    mean = [_middle([curve[iterations] for curve in curves]) for iterations in common]
    return Series(arm, mean, [list(curve.values()) for curve in curves])


def against_fractions(rows: Sequence[Row]) -> Panel:
    """Fig. 4: mask AP on the test images (%) against the annotated share of the training images (%)."""
    series = []
    for arm in arms_of(rows):
        of_arm = [row for row in rows if row.cell.arm == arm]
        runs = [
            sorted((row.cell.percent, row.value("segm", "AP")) for row in of_arm if row.cell.seed == seed)
            for seed in dict.fromkeys(row.cell.seed for row in of_arm)
        ]
        percents = sorted({percent for run in runs for percent, _ in run})
        series.append(Series(arm, [_middle([xy for run in runs for xy in run if xy[0] == p]) for p in percents], runs))
    return Panel("", series)


def ablation(rows: Sequence[Row]) -> list[Bar]:
    """Fig. 6: mask AP on the test images (%), the smallest fraction; empty without an ablated arm."""
    smallest = min(row.cell.percent for row in rows)
    values = {
        arm: [row.value("segm", "AP") for row in rows if (row.cell.arm, row.cell.percent) == (arm, smallest)]
        for arm in ABLATION
    }
    there = {arm: found for arm, found in values.items() if found}
    if not set(ABLATED) & set(there):
        return []
    places = arms_of(rows)
    return [Bar(arm, places.index(arm), *mean_and_spread(found), found) for arm, found in there.items()]


def _middle(points: Sequence[XY]) -> XY:
    return tuple(mean_and_spread(values)[0] for values in zip(*points, strict=True))  # type: ignore[return-value]
