"""What the figures show, whoever draws them: Fig. 6-8 of the paper."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from cupre_d2.experiments.deep_clustering.scores import PARTS, Row, groups
from cupre_d2.experiments.table import mean_and_spread


@dataclass(frozen=True)
class Place:
    """Of a number of clusters: the values of all seeds, their mean and standard deviation (NaN for one)."""

    clusters: int
    values: list[float]
    mean: float
    spread: float


@dataclass(frozen=True)
class Series:
    """Of an algorithm, by number of clusters, ascending."""

    algorithm: str
    places: list[Place]


@dataclass(frozen=True)
class Panel:
    """Series in one pair of axes; `baseline` is a line across them, None where there is none."""

    title: str
    series: list[Series]
    baseline: float | None = None


def scores(baseline: Row, rows: Sequence[Row]) -> list[Panel]:
    """Fig. 6 and 7: MAP (%) against the number of clusters, of known and unknown types and all."""
    titles = {part: part if part == "all" else f"{part} types" for part in PARTS}
    return [Panel(titles[part], _series(rows, partial(Row.value, part=part)), baseline.value(part)) for part in PARTS]


def entropies(rows: Sequence[Row]) -> Panel:
    """Our reading of Fig. 8: the standard deviation over types of the normalised entropy, see `cluster_statistics`."""
    with_types = [row for row in rows if "type_entropy_std" in row.statistics]
    return Panel("", _series(with_types, lambda row: row.statistics["type_entropy_std"]))


def _series(rows: Sequence[Row], value: Callable[[Row], float]) -> list[Series]:
    # In the order of the rows, which is that of their colours in all figures.
    found: dict[str, list[Place]] = {}
    for (algorithm, clusters), of_group in groups(rows).items():
        values = [value(row) for row in of_group]
        found.setdefault(algorithm, []).append(Place(clusters, values, *mean_and_spread(values)))
    return [Series(algorithm, sorted(places, key=lambda place: place.clusters)) for algorithm, places in found.items()]
