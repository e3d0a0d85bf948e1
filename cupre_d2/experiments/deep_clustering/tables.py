"""The table for people."""

from collections.abc import Sequence

from cupre_d2.experiments.deep_clustering.scores import PARTS, Row, gains, groups, mean_statistic
from cupre_d2.experiments.table import Table, with_spread


def headline(baseline: Row, rows: Sequence[Row]) -> Table:
    """The paper's Table I: MAP (%) before and after, mean ± standard deviation over seeds."""
    body = [["baseline", "-", *(with_spread([baseline.value(part)]) for part in PARTS)]]
    for (algorithm, clusters), found in groups(rows).items():
        body.append([algorithm, str(clusters), *(with_spread([row.value(part) for row in found]) for part in PARTS)])
    return Table(["clusters by", "k", *PARTS], body)


def differences(baseline: Row, rows: Sequence[Row]) -> Table:
    """MAP less the baseline's: mean ± standard deviation over seeds, n."""
    body = []
    for (algorithm, clusters), found in groups(rows).items():
        shown = [with_spread(gains(found, baseline, part), sign=True) for part in PARTS]
        body.append([algorithm, str(clusters), *shown, str(len(found))])
    return Table(["clusters by", "k", *PARTS, "seeds"], body)


def statistics(rows: Sequence[Row]) -> Table:
    """What the clusters look like, means over seeds."""
    names = {
        "clusters": "clusters",
        "empty": "empty",
        "largest": "largest",
        "entropy": "entropy",
        "type_entropy_mean": "entropy of a type",
        "type_entropy_std": "its std over types",
    }
    body = []
    for (algorithm, clusters), found in groups(rows).items():
        values = (mean_statistic(found, name) for name in names)
        body.append([algorithm, str(clusters), *(f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in values)])
    return Table(["clusters by", "k", *names.values()], body)
