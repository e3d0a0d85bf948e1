"""A table for people, and how values of several seeds are shown in it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate


@dataclass(frozen=True)
class Table:
    """Text by row and column."""

    headers: list[str]
    body: list[list[str]]

    def markdown(self) -> str:
        return tabulate(self.body, headers=self.headers, tablefmt="github", disable_numparse=True)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample; NaN for one value).

    >>> mean_and_spread([1.0, 3.0])
    (2.0, 1.4142135623730951)
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else float("nan")


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
