"""Tidy data frames of metrics, and what tables say of them: means, spreads, differences."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cupre_d2.engine.results import Metrics


def tidy(runs: Iterable[tuple[Mapping[str, Any], Metrics]]) -> pd.DataFrame:
    """A row a run, data set, task and metric: the run's columns, then "dataset", "task", "metric" and "value" (float).

    >>> tidy([({"seed": 0}, {"cells": {"segm": {"AP": 3.0, "APl": None}}})]).to_dict("records")[0]
    {'seed': 0, 'dataset': 'cells', 'task': 'segm', 'metric': 'AP', 'value': 3.0}
    """
    rows = [
        {**columns, "dataset": dataset, "task": task, "metric": metric, "value": float("nan") if value is None else value}
        for columns, metrics in runs
        for dataset, tasks in metrics.items()
        for task, values in tasks.items()
        for metric, value in values.items()
    ]
    # As they are: of the baselines, a column of whole numbers lacks some.
    return pd.DataFrame(rows, dtype=object).astype({"value": float}) if rows else pd.DataFrame()


def where(frame: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows with these values in their columns."""
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def with_spread(values: Sequence[float], form: str = ".1f") -> str:
    """Mean ± standard deviation of a sample, as text; `form` of each is as of `format`, with "+" for a sign of the mean.

    >>> with_spread([1.0, 3.0]), with_spread([1.0], "+.1f"), with_spread([])
    ('2.0 ± 1.4', '+1.0', '-')
    """
    if not len(values):
        return "-"
    mean = f"{np.mean([*values]):{form}}"
    return mean if len(values) == 1 else f"{mean} ± {np.std([*values], ddof=1):{form.lstrip('+')}}"


def text_table(
    frame: pd.DataFrame, rows: Mapping[str, str], columns: Mapping[str, Callable[[pd.DataFrame], str]]
) -> pd.DataFrame:
    """A table for people, a row for each combination of values of some columns, in their order.

    Args:
        rows: headers by these columns; a value that is missing is "-".
        columns: the text of the others by header, each from the rows of the frame that a row of the table is of.
    """
    body = []
    for values, group in frame.groupby([*rows], sort=False, dropna=False):
        body.append([*map(short, values), *(text(group) for text in columns.values())])
    return pd.DataFrame(body, columns=[*rows.values(), *columns])


def short(value: Any) -> str:
    """Of a column of runs, for people; "-" for what a run does not have.

    >>> short(5.0), short("coco"), short(None)
    ('5', 'coco', '-')
    """
    if pd.isna(value):
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def paired(frame: pd.DataFrame, column: str, value: Any, control: Any, on: Sequence[str]) -> list[float]:
    """Differences between what has one and another value in a column, of rows that are alike in the columns `on`."""
    one, other = (where(frame, **{column: which}).set_index([*on])["value"] for which in (value, control))
    return [one[key] - other[key] for key in one.index if key in other.index]
