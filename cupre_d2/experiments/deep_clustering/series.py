"""What the figures show, whoever draws them: Fig. 6-8 of the paper."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from cupre_d2.experiments.deep_clustering.scores import PARTS, Row, groups
from cupre_d2.experiments.table import mean_and_spread


@dataclass(frozen=True)
class Series:
    """Of an algorithm, by number of clusters: mean and standard deviation over seeds (NaN for one)."""

    algorithm: str
    clusters: list[int]
    means: list[float]
    spreads: list[float]


@dataclass(frozen=True)
class Panel:
    """Series in one pair of axes; `baseline` is a line across them, None where there is none."""

    title: str
    series: list[Series]
    baseline: float | None = None


def scores(baseline: Row, rows: Sequence[Row]) -> list[Panel]:
    """Fig. 6 and 7: MAP (%) against the number of clusters, of known and unknown types and all."""
    return [
        Panel(
            f"{part} types" if part != "all" else "all",
            _series(rows, partial(Row.value, part=part)),
            baseline.value(part),
        )
        for part in PARTS
    ]


def entropies(rows: Sequence[Row]) -> Panel:
    """Fig. 8: the standard deviation over types of the normalised entropy, see `cluster_statistics`."""
    with_types = [row for row in rows if "type_entropy_std" in row.clusters]
    return Panel("", _series(with_types, lambda row: row.clusters["type_entropy_std"]))


def _series(rows: Sequence[Row], value: Callable[[Row], float]) -> list[Series]:
    found: dict[str, Series] = {}
    for (algorithm, clusters), of_group in sorted(groups(rows).items(), key=lambda item: item[0][1]):
        series = found.setdefault(algorithm, Series(algorithm, [], [], []))
        mean, spread = mean_and_spread([value(row) for row in of_group])
        series.clusters.append(clusters)
        series.means.append(mean)
        series.spreads.append(spread)
    # In the order of the rows, which is that of their colours in all figures.
    order = list(dict.fromkeys(algorithm for algorithm, _ in groups(rows)))
    return [found[algorithm] for algorithm in order]
