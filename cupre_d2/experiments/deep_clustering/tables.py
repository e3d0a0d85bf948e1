"""The table for people."""

import math
from collections.abc import Sequence

from cupre_d2.experiments.deep_clustering.scores import PARTS, Row, gain, groups, mean_statistic
from cupre_d2.experiments.table import Table, with_spread

# Of `cluster_statistics`.
STATISTICS = {
    "clusters": "clusters",
    "empty": "empty",
    "largest": "largest",
    "entropy": "entropy",
    "type_entropy_mean": "entropy of a type",
    "type_entropy_std": "its std over types",
}


def headline(baseline: Row, rows: Sequence[Row]) -> Table:
    """The paper's Table I: MAP (%) before and after, mean ± standard deviation over seeds, and what was gained."""
    body = [["baseline", "-", *(with_spread([baseline.value(part)]) for part in PARTS), "1"]]
    for (algorithm, clusters), found in groups(rows).items():
        values = (
            f"{with_spread([row.value(part) for row in found])} ({gain(found, baseline, part):+.1f})" for part in PARTS
        )
        body.append([algorithm, str(clusters), *values, str(len(found))])
    return Table(["clusters by", "k", *PARTS, "seeds"], body)


def statistics(rows: Sequence[Row]) -> Table:
    """What the clusters look like, means over seeds."""
    body = []
    for (algorithm, clusters), found in groups(rows).items():
        values = [mean_statistic(found, name) for name in STATISTICS]
        body.append([algorithm, str(clusters), *map(_short, values)])
    return Table(["clusters by", "k", *STATISTICS.values()], body)


def _short(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
